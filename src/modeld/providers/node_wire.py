"""What ``llama``, ``openvino`` and ``modeld`` share: a wire whose other end is a :class:`modeld.session.ModelService`.

Callers of a repository send whole conversations and hold no session. A session is chosen for them by content, so that
the next turn of a conversation finds the tape of the one before: see :class:`modeld.session.conversations.Tapes`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from msgspec import structs

from modeld.errors import BackendError, BackendMismatchError, ModeldError, ModelError, NodeError
from modeld.providers.facts import observe
from modeld.repository.options import make_rules, mapped, native, refused
from modeld.repository.values import CapabilityConfig, EmbedResult, Evidence, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.session.conversations import SESSION_TTL, Tapes, one_turn
from modeld.session.values import InstalledModel, ModelDescription, ModelRef, SessionConfig
from modeld.types import Message, StreamPart

if TYPE_CHECKING:
    from modeld.session.contract import ModelService

WORKSPACE: Final = "repository"
"""Of all sessions that were chosen by content."""

NODE_RULES: Final = make_rules(
    temperature=native("options.temperature"),
    max_tokens=native("options.max_tokens"),
    top_p=native("options.top_p"),
    top_k=native("options.top_k"),
    min_p=native("options.min_p"),
    seed=native("options.seed"),
    stop=native("options.stop"),
    frequency_penalty=native("options.frequency_penalty"),
    presence_penalty=native("options.presence_penalty"),
    repeat_penalty=native("options.repeat_penalty"),
    tools=native("tools"),
    tool_choice=mapped("options.tool_choice", "none: no tools are offered; it is not sent"),
    parallel_tool_calls=native("options.parallel_tool_calls"),
    response_format=mapped(
        "options.response_format", "always strict; the schema and its name are not shown to the model"
    ),
    strict_tools=native("tools[].strict"),
    text_formats=native("options.response_format"),
    logprobs=native("options.logprobs"),
    top_logprobs=native("options.top_logprobs"),
    think=native("think"),
    shift=native("shift"),
    truncate=native("truncate"),
    prompt_cache=mapped("", "every prompt is kept, as long as there is room; nothing is asked for"),
    prompt_cache_key=mapped("", "conversations that begin alike under two keys have a session each"),
    images=refused("the node's engines take no images yet"),
)


class NodeWire(Wire):
    """Executes on a node: the parts of :meth:`modeld.session.Session.turn`, unchanged, receipt included."""

    rules = NODE_RULES
    tapes: Tapes

    @abstractmethod
    def service(self) -> AbstractAsyncContextManager[ModelService]:
        """The node, for as long as the block runs."""

    @abstractmethod
    async def ref(self, model: ObservedModel) -> ModelRef:
        """What the node is asked for."""

    def model(self, name: str) -> ObservedModel:
        """Nothing is known of a model that was not listed: it may chat and it may embed."""
        named = observe(name, None)
        return structs.replace(named, capabilities=structs.replace(named.capabilities, can_embed=True))

    def unavailable(self, model: ObservedModel, feature: str) -> ModeldError | None:
        """Why ``model`` cannot be used now, and what to do about it; ``None``: nothing is known but its flags.

        :param feature: ``chat``, ``stream``, ``prompt`` or ``embed``.
        """
        said = model.meta.get("error")
        return ModelError(f"{model.name} cannot be used: {said}", name=model.name) if said else None

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """One turn. Closing the generator cancels it on the node."""
        messages = tuple(map(_sent, call.messages))
        ref = await self.ref(call.model)
        with self.tapes.take(ref, messages, call.config.prompt_cache_key or "") as name:
            async with self.service() as service:
                session = SessionConfig(workspace=WORKSPACE, name=name, ttl=SESSION_TTL)
                async with one_turn(service, ref, session, messages, call.config) as parts:
                    async for part in parts:
                        yield part

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        """The parts of :meth:`stream`: a node has one way to answer."""
        return [part async for part in self.stream(call)]

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """See :meth:`Wire.embed`. A text that is too long is an error: :meth:`modeld.session.ModelService.embed` cuts.

        :raises NotSupportedError: the model ranks documents.
        """
        ref = await self.ref(model)
        async with self.service() as service:
            found = await service.embed(ref, texts, dimensions=dimensions)
        return EmbedResult(vectors=found.vectors, model=found.model, usage=found.usage)

    async def observed(self, service: ModelService, installed: InstalledModel, ref: ModelRef) -> ObservedModel:
        """A listed model with what ``describe`` says of it. One that the node cannot use says why in ``meta``.

        :raises NodeError: the node is gone.
        """
        if installed.error:
            return listed(installed, error=installed.error)
        try:
            return listed(installed, await service.describe(ref))
        except ModeldError as error:
            if isinstance(error, NodeError) and not isinstance(error, BackendMismatchError):
                raise
            return listed(installed, error=error.message)

    def error(self, error: Exception, model: str) -> ModeldError:
        """The clients of a node raise errors of ours; anything else is a mistake here."""
        where = f"{self.type} ({model})" if model else self.type
        details = {"status": 0, "vendor_code": "", "request_id": "", "backend": self.type, "model": model}
        return BackendError(f"{where}: {type(error).__name__}: {error}", **details)


def _sent(message: Message) -> Message:
    """Without thinking, and without what is another vendor's."""
    if not message.thinking and message.provider_meta is None:
        return message
    return structs.replace(message, thinking="", provider_meta=None)


def listed(installed: InstalledModel, description: ModelDescription | None = None, *, error: str = "") -> ObservedModel:
    """A model as a catalog lists it.

    :param description: what the node says of it. :param error: why it cannot be used.
    """
    fine, embeds = (description.generates, description.embeds) if description is not None else (False, False)
    facts: dict[str, Evidence] = {}
    meta: dict[str, str] = {}
    if description is not None:
        meta = _meta(description)
        known = ("context_length", "can_chat", "can_stream", "can_prompt", "can_embed", "can_think", "digest", *meta)
        facts = dict.fromkeys(known, "probed")
        if description.template.source == "declared":
            facts |= {"can_think": "declared", "tools": "declared"}
    elif error:
        meta = {"error": error}
        facts = dict.fromkeys(("can_chat", "can_stream", "can_prompt", "can_embed", *meta), "probed")
    return ObservedModel(
        name=installed.name,
        modified_at=datetime.fromtimestamp(installed.modified, UTC) if installed.modified else None,
        size=installed.size,
        digest=description.digest if description else "",
        meta={"type": installed.type, **meta},
        evidence={"type": "declared", **facts},
        capabilities=CapabilityConfig(
            context_length=_context(description),
            max_output_tokens=0,
            can_chat=fine,
            can_stream=fine,
            can_prompt=fine,
            can_embed=embeds,
            can_think=description.thinking if description else False,
            can_vision=False,
        ),
    )


def _context(description: ModelDescription | None) -> int:
    """What a session can hold here and now; the window the model was trained for where it does not fit."""
    if description is None:
        return 0
    return description.plan.context if description.plan.fits else description.context_length


def _meta(description: ModelDescription) -> dict[str, str]:
    values = {
        "architecture": description.architecture,
        "quantization": description.quantization,
        "parameters": str(description.parameters or ""),
        "trained_context": str(description.context_length or ""),
        "tools": "true" if description.tools else "false",
        "pooling": description.pooling,
        "does_not_fit": "" if description.plan.fits else description.plan.reason,
    }
    return {name: value for name, value in values.items() if value}
