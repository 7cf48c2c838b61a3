"""``python -m modeld`` is the command ``modeld``."""

from modeld.cli import main

if __name__ == "__main__":
    main()
