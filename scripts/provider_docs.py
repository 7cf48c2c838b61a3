"""Write ``docs/providers.md`` from the tables that drive the providers, so that the page cannot say something else.

``python scripts/provider_docs.py`` writes it, ``python scripts/provider_docs.py --check`` fails when it differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from modeld.repository import BackendSpec, new_catalog_provider
from modeld.repository.catalog import built_in_types
from modeld.repository.options import FEATURES, OPTIONS
from modeld.repository.provider import WireCatalog
from modeld.repository.wire import Wire

PAGE = Path(__file__).resolve().parent.parent / "docs" / "providers.md"

SPECS = {
    "vertex-google": "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4",
    "vllm": "http://127.0.0.1:8000",
    "modeld": "modeld://127.0.0.1:9000",
}
"""Base URLs of types that have no default. Nothing is called."""

HEAD = """# Providers and their options

Written by `python scripts/provider_docs.py` from the tables in the code that decide what is sent; do not edit.

**native**: the backend has the option under its own name. **mapped**: it has something that means the same, written
another way. **error**: it has nothing of the kind; asking for it raises `NotSupportedError` before anything is sent. No
option is dropped. What a single *model* cannot do (by its listing, or by a table of facts with the vendor's page) is
refused in the same way; what nobody knows is left to the vendor. `images` are those of messages, `strict_tools` is
`strict=True` of a tool, `text_formats` are a `response_format` with `regex`, `choice` or `ebnf`.
"""


def wires() -> dict[str, Wire]:
    """One wire of each built-in type."""
    found = {}
    for name in built_in_types():
        key = "t" * 43 if name == "modeld" else ""
        catalog = new_catalog_provider(BackendSpec(name, SPECS.get(name, ""), key))
        assert isinstance(catalog, WireCatalog)
        found[name] = catalog.wire
    return found


def page() -> str:
    """The whole page."""
    found = wires()
    options = [*OPTIONS, *FEATURES]
    lines = [HEAD, "| option | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for option in options:
        lines.append(f"| `{option}` | " + " | ".join(wire.rules[option].kind for wire in found.values()) + " |")
    for name, wire in found.items():
        lines += ["", f"## {name}", "", "| option | | on the wire | how, or why not |", "| --- | --- | --- | --- |"]
        for option in options:
            rule = wire.rules[option]
            where = f"`{rule.wire}`" if rule.wire else ""
            lines.append(f"| `{option}` | {rule.kind} | {where.replace('|', ', ')} | {rule.note.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check; 0 is fine, 1 is drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on drift")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
        return 0
    if not PAGE.exists() or PAGE.read_text() != text:
        print(f"docs/{PAGE.name} differs from the tables: run python scripts/provider_docs.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
