"""What is known of backends and their models."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from msgspec import Struct, field

from modeld.types import Usage

Evidence = Literal["declared", "probed", "measured", "named"]
"""Where a fact about a model comes from.

``declared``: the backend's own listing says so; ``probed``: a request showed it; ``measured``: we counted or timed it;
``named``: a table of ours says so for models of that name, with the vendor's page (:mod:`modeld.providers.facts`).
"""


class BackendSpec(Struct, frozen=True):
    """Where a backend is and how it is entered.

    :param type: ``openai``, ``gemini``, ``vertex-google``, ``vllm``, ``ollama``, ``anthropic``, ``mistral``,
        ``openrouter``, ``llama`` (alias ``local``), ``openvino``, ``modeld``, or one that somebody registered.
    :param base_url: root of the service; ``""`` is the vendor's own. ``llama`` and ``openvino``: a folder of models,
        ``""`` the node's own. ``vertex-google``: ``https://REGION-aiplatform.googleapis.com/v1/projects/P/locations/R``.
    :param api_key: the secret itself; not in ``repr``. ``vertex-google``: the JSON text of a service account, ``""``
        the application default credentials. ``modeld``: the node's token.
    """

    type: str
    base_url: str = ""
    api_key: str = ""

    def __repr__(self) -> str:
        return f"BackendSpec({self.type!r}, {self.base_url!r}, api_key={'...' if self.api_key else ''!r})"


class CapabilityConfig(Struct, frozen=True, kw_only=True):
    """What a model can do. No flag has a default: who makes one has to answer.

    :param context_length: tokens of the window, 0 unknown.
    :param max_output_tokens: the hard ceiling of an answer, 0 unknown.
    """

    context_length: int
    max_output_tokens: int
    can_chat: bool
    can_embed: bool
    can_stream: bool
    can_prompt: bool
    can_think: bool
    can_vision: bool


class ObservedModel(Struct, frozen=True, kw_only=True):
    """A model as a backend lists it. ``name`` selects it.

    :param size: bytes, 0 unknown. :param digest: of its content, ``""`` unknown.
    :param evidence: for each field of ``capabilities``, and each key of ``meta``, that is known, where from.
    """

    name: str
    capabilities: CapabilityConfig
    modified_at: datetime | None = None
    size: int = 0
    digest: str = ""
    meta: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Tokens of the window, 0 unknown."""
        return self.capabilities.context_length


class EmbedResult(Struct, frozen=True, kw_only=True):
    """Vectors, in the order of the texts, and what they cost."""

    vectors: tuple[tuple[float, ...], ...]
    model: str = ""
    usage: Usage = Usage()
