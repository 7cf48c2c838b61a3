"""Vendors that speak OpenAI's Chat Completions: one data row each (``docs/adding-a-provider.md``).

What a row says is from the vendor's documentation or from the types of the vendor's own SDK; the comments name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from msgspec import Struct, structs

from modeld.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ContextOverflowError,
    InvalidRequestError,
    ModeldError,
    ModelNotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    RefusedError,
)
from modeld.providers.chat_completions import (
    EFFORTS,
    FIELDS,
    FINISH_REASONS,
    ChatCodec,
    Dialect,
    ModelFacts,
    chat_rules,
)
from modeld.providers.facts import observe
from modeld.providers.openai import OpenAIWire
from modeld.repository.catalog import CatalogOptions, Constructor
from modeld.repository.names import ToolNames
from modeld.repository.options import Rules, mapped, refused
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, CapabilityConfig, EmbedResult, Evidence, ObservedModel
from modeld.repository.wire import Call


class Vendor(Struct, frozen=True, kw_only=True):
    """One vendor.

    A *place* is a path in an entry of the listing, ``top_provider.context_length``; ``modalities[text]`` asks whether
    the list there has that word.

    :param type: canonical type of the backend. :param base_url: the vendor's own, with the version in it.
    :param page: the documentation; named where something is refused because the listing says so.
    :param dialect: how its requests and answers differ. :param rules: what becomes of every option.
    :param facts: about models, what the listing does not say.
    :param listing: field of :class:`CapabilityConfig` to the places that declare it, the first that is there wins.
    :param meta: places that go into ``ObservedModel.meta`` under their path, lists joined by commas.
    :param query: parameters of the listing's URL.
    :param parameters: place that lists the request fields a model takes; options without one are refused for it.
    :param efforts: place that lists the vendor's words for a model's thinking levels; ``null`` there: all it has.
    :param always_thinks: place that says that thinking cannot be switched off.
    :param dimensions: field of an embedding request for the length of the vectors.
    :param no_embeddings: the page that says that the vendor has none; ``""``: it has.
    :param impossible: the vendor's words for a request that no model of it can do.
    """

    type: str
    base_url: str
    page: str
    dialect: Dialect
    rules: Rules
    facts: Sequence[ModelFacts] = ()
    listing: Mapping[str, Sequence[str]] = {}
    meta: Sequence[str] = ()
    query: Mapping[str, str] = {}
    parameters: str = ""
    efforts: str = ""
    always_thinks: str = ""
    dimensions: str = "dimensions"
    no_embeddings: str = ""
    impossible: str = ""


class CompatibleWire(OpenAIWire):
    """A vendor that a row describes; :func:`catalog_of` makes the class of a row."""

    vendor: ClassVar[Vendor]

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        self._chat = ListedCodec(self.vendor)

    def listed(self, entry: dict[str, Any]) -> ObservedModel | None:
        """See :meth:`OpenAIWire.listed`. A model that neither chats nor embeds is not of interest."""
        model = super().listed(entry)
        if model is None:
            return None
        declared = _declared(self.vendor, entry)
        values = {**structs.asdict(model.capabilities), **declared}
        model = structs.replace(
            observe(model.name, self.find(model.name), CapabilityConfig(**values), list(declared)),
            modified_at=model.modified_at,
            meta={**model.meta, **_meta(self.vendor, entry)},
        )
        if not (model.capabilities.can_chat or model.capabilities.can_embed):
            return None
        evidence: dict[str, Evidence] = {**model.evidence, **dict.fromkeys(model.meta, "declared")}
        return structs.replace(model, evidence=evidence)

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """See :meth:`OpenAIWire.embed`.

        :raises NotSupportedError: the vendor has no embeddings; the error names the page that says so.
        """
        if page := self.vendor.no_embeddings:
            raise NotSupportedError(f"{self.type} has no embeddings ({page})", feature="embeddings", backend=self.type)
        return await super().embed(model, texts, dimensions)

    def error(self, error: Exception, model: str) -> ModeldError:
        """See :meth:`OpenAIWire.error`."""
        typed = super().error(error, model)
        words = self.vendor.impossible
        if words and words in typed.message:
            return NotSupportedError(typed.message, **{**typed.details, "feature": "options"})
        return typed

    async def _page(self, session: Any, params: dict[str, str]) -> Any:
        return await super()._page(session, {**self.vendor.query, **params})


class ListedCodec(ChatCodec):
    """Requests and answers of one vendor; what the listing says of a model wins over the tables."""

    def __init__(self, vendor: Vendor) -> None:
        super().__init__(vendor.dialect)
        self._vendor = vendor

    def build(self, call: Call, names: ToolNames, facts: ModelFacts | None) -> dict[str, Any]:
        """See :meth:`ChatCodec.build`."""
        body = super().build(call, names, _listed_facts(self._vendor, call.model) or facts)
        for tool in body.get("tools", ()):
            # Some vendors insist on a schema, and all take this one for none.
            tool["function"].setdefault("parameters", {"type": "object", "properties": {}})
        return body


_MISSING: Final = object()


def _at(entry: dict[str, Any], place: str) -> Any:
    """What is at ``place``; ``_MISSING``: nothing is. ``null`` is something."""
    path, bracket, word = place.rstrip("]").partition("[")
    value: Any = entry
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value if not bracket else word in value if isinstance(value, list) else _MISSING


def _declared(vendor: Vendor, entry: dict[str, Any]) -> dict[str, Any]:
    """The capabilities that ``entry`` declares. A number that is ``null`` or 0 declares nothing."""
    declared: dict[str, Any] = {}
    for name, places in vendor.listing.items():
        wanted = int if name.endswith(("length", "tokens")) else bool
        said = (value for place in places if type(value := _at(entry, place)) is wanted)
        value = next((value for value in said if wanted is bool or value > 0), None)
        if value is not None:
            declared[name] = value
    return declared


def _meta(vendor: Vendor, entry: dict[str, Any]) -> dict[str, str]:
    """What is kept as text: the row's places, and what the codec wants to know of the model."""
    meta: dict[str, str] = {}
    for place in (*vendor.meta, vendor.parameters, vendor.efforts, vendor.always_thinks):
        value = _at(entry, place) if place else _MISSING
        if isinstance(value, list):
            meta[place] = ",".join(map(str, value))
        elif value is not _MISSING and value is not None:
            meta[place] = str(value).lower() if isinstance(value, bool) else str(value)
    if (
        vendor.efforts
        and _at(entry, vendor.efforts) is _MISSING
        and _at(entry, _parent(vendor.efforts)) is not _MISSING
    ):
        meta[vendor.efforts] = ""
    return meta


def _parent(place: str) -> str:
    return place.rpartition(".")[0]


def _listed_facts(vendor: Vendor, model: ObservedModel) -> ModelFacts | None:
    """What the listing said of a model, as the tables say it; ``None``: it was not listed, or says nothing."""
    parameters = model.meta.get(vendor.parameters, "")
    if not parameters:
        return None
    taken = set(parameters.split(","))
    fields = {**vendor.dialect.fields, "tools": "tools", "tool_choice": "tool_choice"}
    refuses = [option for option, field in fields.items() if field not in taken]
    if not taken & {"response_format", "structured_outputs"}:
        refuses.append("response_format")
    efforts: dict[str, str] | None = None
    if vendor.efforts in model.meta:
        words = model.meta[vendor.efforts].split(",")
        efforts = {level: word for level, word in vendor.dialect.efforts.items() if word in words}
        if words == [""]:
            # The vendor switches it on and off, and offers no levels: on is as much as the vendor says it is.
            efforts = {"medium": "enabled"}
        if model.meta.get(vendor.always_thinks) != "true":
            efforts = {"off": vendor.dialect.efforts["off"], **efforts}
    return ModelFacts(match="*", source=vendor.page, checked="", efforts=efforts, refuses=tuple(refuses))


def catalog_of(vendor: Vendor) -> Constructor:
    """What makes catalogs of ``vendor``: for the registry, or for the entry point of another package."""
    attributes = {
        "__module__": __name__,
        "__doc__": f"The wire of {vendor.type}.",
        "vendor": vendor,
        "type": vendor.type,
        "rules": vendor.rules,
        "dialect": vendor.dialect,
        "facts": vendor.facts,
        "default_url": vendor.base_url,
        "dimensions_field": vendor.dimensions,
    }
    wire: type[CompatibleWire] = type(f"{vendor.type.title()}Wire", (CompatibleWire,), attributes)
    return lambda spec, options: WireCatalog(wire(spec, options))


_MISTRAL: Final = Dialect(
    # Fields, tool_choice "any" and the finish reasons: types of github.com/mistralai/client-python (chatcompletion*.py,
    # toolchoiceenum.py). It takes no stream_options: usage comes with the last chunk. Unknown fields are a 422.
    backend="mistral",
    fields={
        **{option: name for option, name in FIELDS.items() if option not in ("logprobs", "top_logprobs")},
        "max_tokens": "max_tokens",
        "seed": "random_seed",
    },
    id_length=9,
    result_name=True,
    required_choice="any",
    max_stop=0,
    usage_option=False,
    efforts={"off": "none", "high": "high"},
    think={"reasoning mode": {"prompt_mode": "reasoning"}},
    finish_reasons={**FINISH_REASONS, "model_length": "context_full"},
    codes={
        # Seen in public bug reports with status 400; no page lists the vendor's codes.
        "1500": ModelNotFoundError,
        "invalid_model": ModelNotFoundError,
        "error": BackendUnavailableError,
    },
)

_ADJUSTABLE: Final = "https://docs.mistral.ai/capabilities/reasoning/adjustable"


def _adjustable(match: str, efforts: Mapping[str, str]) -> ModelFacts:
    return ModelFacts(match=match, source=_ADJUSTABLE, checked="2026-11-22", can_think=True, efforts=efforts)


def _embeds(match: str, context: int) -> ModelFacts:
    page = "https://docs.mistral.ai/capabilities/embeddings"
    return ModelFacts(
        match=match, source=page, checked="2026-11-22", context_length=context, can_chat=False, can_embed=True
    )


MISTRAL: Final = Vendor(
    type="mistral",
    base_url="https://api.mistral.ai/v1",
    page="https://docs.mistral.ai/api",
    dialect=_MISTRAL,
    rules=chat_rules(
        _MISTRAL,
        seed=mapped("random_seed", "the vendor's name for it"),
        tool_choice=mapped("tool_choice", "required is any; a tool's name becomes an object; not sent without tools"),
        think=mapped(
            "reasoning_effort | prompt_mode",
            "auto sends nothing; off is none; models have none and high, the native ones high only; others are errors",
        ),
        top_k=refused("the vendor has top_p only"),
        min_p=refused("the vendor has top_p only"),
        repeat_penalty=refused("the vendor has frequency_penalty and presence_penalty"),
        logprobs=refused("the vendor does not tell them"),
        top_logprobs=refused("the vendor does not tell them"),
        shift=refused("the vendor never drops turns of a conversation"),
        truncate=refused("the vendor never drops turns of a conversation"),
    ),
    facts=(
        _adjustable("mistral-small-latest", {"off": "none", "high": "high"}),
        _adjustable("mistral-small-2603", {"off": "none", "high": "high"}),
        _adjustable("mistral-medium-3-5*", {"off": "none", "high": "high"}),
        _adjustable("mistral-medium-2604", {"off": "none", "high": "high"}),
        _adjustable("mistral-large-4-0*", {"off": "none", "low": "low", "medium": "medium", "high": "high"}),
        ModelFacts(
            match="magistral-*",
            source="https://docs.mistral.ai/capabilities/reasoning/native",
            checked="2026-11-22",
            can_think=True,
            efforts={"high": "reasoning mode"},
        ),
        _embeds("mistral-embed*", 8192),
        _embeds("codestral-embed*", 8192),
    ),
    # Listing: types basemodelcard.py and modelcapabilities.py of the same; "reasoning" is in answers seen in public.
    listing={
        "context_length": ("max_context_length",),
        "can_chat": ("capabilities.completion_chat",),
        "can_think": ("capabilities.reasoning",),
        "can_vision": ("capabilities.vision",),
    },
    meta=("name", "deprecation", "deprecation_replacement_model"),
    dimensions="output_dimension",
)

_OPENROUTER: Final = Dialect(
    # https://openrouter.ai/docs/api/reference/parameters; usage always comes, stream_options are without effect
    # (https://openrouter.ai/docs/use-cases/usage-accounting). Names of tools: types of its SDK (chatfunctiontool.ts).
    backend="openrouter",
    fields={
        **FIELDS,
        "max_tokens": "max_tokens",
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repetition_penalty",
    },
    usage_option=False,
    think={
        **{word: {"reasoning": {"effort": word}} for word in EFFORTS.values()},
        "enabled": {"reasoning": {"enabled": True}},
    },
    details_field="reasoning_details",
    # Without it a host of the model that does not know a field drops it and says nothing.
    # https://openrouter.ai/docs/guides/routing/provider-selection
    extra={"provider": {"require_parameters": True}},
    # https://openrouter.ai/docs/api/reference/errors-and-debugging, "Typed Error Codes"
    codes={
        "context_length_exceeded": ContextOverflowError,
        "string_too_long": InvalidRequestError,
        "token_limit_exceeded": QuotaError,
        "authentication": AuthenticationError,
        "permission_denied": PermissionDeniedError,
        "payment_required": QuotaError,
        "rate_limit_exceeded": RateLimitError,
        "provider_overloaded": BackendUnavailableError,
        "provider_unavailable": BackendUnavailableError,
        "server": BackendUnavailableError,
        "timeout": BackendUnavailableError,
        "not_found": ModelNotFoundError,
        "content_policy_violation": RefusedError,
        "refusal": RefusedError,
        "error": BackendUnavailableError,
    },
)

OPENROUTER: Final = Vendor(
    type="openrouter",
    base_url="https://openrouter.ai/api/v1",
    page="https://openrouter.ai/docs/guides/overview/models",
    dialect=_OPENROUTER,
    rules=chat_rules(
        _OPENROUTER,
        think=mapped(
            "reasoning.effort | reasoning.enabled",
            "auto sends nothing; off is none; a level that the listing says a model lacks is an error",
        ),
        shift=refused("the vendor has a transform that drops the middle of a conversation, not its oldest turns"),
        truncate=refused("the vendor has a transform that drops the middle of a conversation, not its oldest turns"),
    ),
    listing={
        "context_length": ("top_provider.context_length", "context_length"),
        "max_output_tokens": ("top_provider.max_completion_tokens",),
        "can_chat": ("architecture.output_modalities[text]",),
        "can_embed": ("architecture.output_modalities[embeddings]",),
        "can_think": ("supported_parameters[reasoning]",),
        "can_vision": ("architecture.input_modalities[image]",),
    },
    meta=("name", "canonical_slug", "expiration_date"),
    # Without it only models that write text are listed; https://openrouter.ai/docs/api/reference/embeddings
    query={"output_modalities": "text,embeddings"},
    parameters="supported_parameters",
    efforts="reasoning.supported_efforts",
    always_thinks="reasoning.mandatory",
    impossible="No endpoints found that",
)

VENDORS: Final = {row.type: row for row in list(globals().values()) if isinstance(row, Vendor)}
"""Every row above, by type. The registry looks here for a type: a row is all that a vendor needs to be known."""


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """A catalog of the vendor whose row has the spec's type."""
    catalog = catalog_of(VENDORS[spec.type])(spec, options)
    assert isinstance(catalog, WireCatalog)
    return catalog
