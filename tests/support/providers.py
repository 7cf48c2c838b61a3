"""The providers that the conformance suite runs, each with the fake of its vendor's wire."""

from collections.abc import AsyncIterator, Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from msgspec import Struct

from modeld.repository import BackendSpec
from modeld.testing.server import FakeServer, Fault
from modeld.types import ProgressPart, StreamPart

MODULES = ("openai", "responses", "vllm", "compatible", "anthropic", "gemini", "vertex", "ollama")
"""Each a ``case_NAME.py`` beside the suite, with ``CASES``."""


class ProviderCase(Struct, frozen=True, kw_only=True):
    """One wire of one provider.

    :param model: a model that the fake lists: it chats, streams, calls tools. :param thinking_model: one that thinks.
    :param vision_model: takes images; ``""``: the wire takes none.
    :param embed_model: ``""``: the vendor has no embeddings; ``no_embed`` is the vendor's page that says so.
    :param overflow: the vendor's words for a conversation that is too long; ``window`` and ``tokens`` are in them, or
        ``None``.
    :param quota: the vendor's words for an account without credit; ``None``: it has none of its own.
    :param can_refuse: the vendor has a way to decline.
    :param samples: values of options that are not those of the others.
    :param unlisted: fields of ObservedModel and its capabilities that the vendor's listing does not send, by page.
    """

    id: str
    type: str
    server: Callable[[], FakeServer]
    spec: Callable[[FakeServer], BackendSpec]
    model: str
    thinking_model: str
    vision_model: str
    embed_model: str
    no_embed: str = ""
    overflow: Fault
    window: int | None = None
    tokens: int | None = None
    quota: Fault | None = None
    can_refuse: bool = True
    samples: dict[str, object] = {}
    unlisted: dict[str, str] = {}


def provider_cases() -> list[ProviderCase]:
    """All of them."""
    return [case for name in MODULES for case in _cases(Path(__file__).parent.parent / "providers" / f"case_{name}.py")]


def _cases(path: Path) -> list[ProviderCase]:
    if not path.exists():
        return []
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    cases: list[ProviderCase] = module.CASES
    return cases


async def first_of(stream: AsyncIterator[StreamPart]) -> StreamPart:
    """The first part of the answer itself; what a vendor counted before it is passed over."""
    part = await anext(stream)
    return await anext(stream) if isinstance(part, ProgressPart) else part
