"""What is known of models' chat templates: seen when an engine rendered them, kept for when it has another model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from modeld._version import __version__
from modeld.node.lockfile import write_atomic
from modeld.template_facts import TemplateFacts

NAME = "template-facts.json"
MAX_BYTES = 1 << 20
MAX_MODELS = 200


class _Page(Struct):
    version: str = __version__
    facts: dict[str, TemplateFacts] = {}


class FactsBook:
    """Facts by the digest of the model, in one file of the data root. It is a cache: what cannot be read is not known.

    Facts of another version of modeld do not count: it may have looked for other things.
    """

    def __init__(self, data_root: Path) -> None:
        self._folder = data_root

    def of(self, digest: str) -> TemplateFacts | None:
        """What was seen of this model. Reads a file."""
        return self._read().get(digest)

    def learn(self, digest: str, facts: TemplateFacts) -> None:
        """Remember it. A failure to write costs what is shown before the next load, nothing else."""
        known = self._read()
        if known.get(digest) == facts:
            return
        known.pop(digest, None)
        known[digest] = facts
        newest = dict(list(known.items())[-MAX_MODELS:])
        with suppress(OSError):
            write_atomic(self._folder, NAME, msgspec.json.encode(_Page(facts=newest)), "facts")

    def _read(self) -> dict[str, TemplateFacts]:
        try:
            with (self._folder / NAME).open("rb") as file:
                page = msgspec.json.decode(file.read(MAX_BYTES), type=_Page)
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
            return {}
        return page.facts if page.version == __version__ else {}


def declared(template: str) -> TemplateFacts:
    """What the text of a template mentions, for a model that was never resident. A guess, and called so."""
    if not template:
        return TemplateFacts(source="default", name="chatml", system=True)
    return TemplateFacts(
        source="declared",
        system="system" in template,
        tools="tools" in template,
        documents="documents" in template,
        thinking="enable_thinking" in template or "</think>" in template,
        thinking_switch="enable_thinking" in template,
    )
