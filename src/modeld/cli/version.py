"""``modeld version``."""

from __future__ import annotations

from modeld.cli.options import JsonOption
from modeld.cli.output import emit


def version(as_json: JsonOption = False) -> int:
    """Say which modeld this is, and which engines are installed."""
    import platform
    from importlib.util import find_spec

    from modeld._version import __version__
    from modeld.transport.methods import PROTOCOL

    # Looking for a package imports nothing of it.
    packages = (("llama", "llama_cpp"), ("openvino", "openvino_genai"))
    backends = [name for name, package in packages if find_spec(package) is not None]
    python = platform.python_version()
    if as_json:
        emit({"version": __version__, "protocol": PROTOCOL, "python": python, "backends": backends})
    else:
        engines = ", ".join(backends) or "none"
        print(f"modeld {__version__}, protocol {PROTOCOL}, Python {python}, engines installed: {engines}")
    return 0
