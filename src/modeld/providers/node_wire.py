"""What ``llama``, ``openvino`` and ``modeld`` share: a wire whose other end is a :class:`modeld.session.ModelService`.

Callers of a repository send whole conversations and hold no session. A session is chosen for them by content, so that
the next turn of a conversation finds the tape of the one before: see :class:`Tapes`.
"""

from __future__ import annotations

import hashlib
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct, structs

from modeld.errors import BackendError, BackendMismatchError, ModeldError, ModelError, NodeError
from modeld.providers.facts import observe
from modeld.repository.options import make_rules, mapped, native, refused
from modeld.repository.values import CapabilityConfig, EmbedResult, Evidence, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.session.values import InstalledModel, ModelDescription, ModelRef, SessionConfig
from modeld.thinking import parse_think
from modeld.types import ChatConfig, DecodeOptions, Message, StreamPart, Tool

if TYPE_CHECKING:
    from modeld.session.contract import ModelService

WORKSPACE: Final = "repository"
"""Of all sessions that were chosen by content."""
SESSION_TTL: Final = 3600.0
"""Seconds after its last turn when a node forgets a conversation: nobody else ever closes it."""
REMEMBERED: Final = 1024
"""Beginnings of conversations kept; one is some 200 bytes."""

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
    images=refused("the node's engines take no images yet"),
)
_SAMPLING: Final = tuple(name for name in DecodeOptions.__struct_fields__ if name in ChatConfig.__struct_fields__)


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
        options, tools = decode_options(call.config), _tools(call)
        messages = tuple(map(_sent, call.messages))
        ref = await self.ref(call.model)
        with self.tapes.take(ref, messages) as name:
            async with self.service() as service:
                config = SessionConfig(workspace=WORKSPACE, name=name, ttl=SESSION_TTL)
                session = await service.open_session(ref, config)
                asked = session.turn(
                    messages,
                    tools=tools,
                    think=parse_think(call.config.think),
                    options=options,
                    shift=call.config.shift,
                    truncate=call.config.truncate,
                )
                async with asked as parts:
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


def decode_options(config: ChatConfig) -> DecodeOptions:
    """The sampling options of ``config``; what is not set is the engine's default.

    :raises InvalidRequestError: a value is beyond what the engines take, such as a seed above 2**32 - 2.
    """
    values = {name: getattr(config, name) for name in _SAMPLING}
    if config.tool_choice == "none":
        values["tool_choice"] = None
    return DecodeOptions(**{name: value for name, value in values.items() if value is not None})


def _tools(call: Call) -> tuple[Tool, ...]:
    return () if call.config.tool_choice == "none" else call.config.tools


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


class _Tape(Struct):
    busy: bool = False
    seen: bytes = b""
    """Hash of the conversation of its last call."""


class Tapes:
    """Names of sessions by content: the model, and the messages up to the first of the user.

    Of calls with the same beginning, one that comes while another runs gets a session of its own. It does not wait:
    whoever reads the first stream may be the one who asks again. Which of several tapes a later call gets is decided
    by the longest conversation that it continues. Other processes choose the same names: on one node their calls with
    the same beginning wait for each other, and find each other's tapes.

    A wrong choice costs tokens that are computed again, and never changes an answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, list[_Tape]] = {}

    @contextmanager
    def take(self, ref: ModelRef, messages: Sequence[Message]) -> Iterator[str]:
        """The name of the session that answers ``messages``, which nobody else here is given meanwhile."""
        name, hashes = _content(ref, messages)
        with self._lock:
            tapes = self._known[name] = self._known.pop(name, [])  # the last used is the last of all
            free = [number for number, tape in enumerate(tapes) if not tape.busy]
            if not free:
                free = [len(tapes)]
                tapes.append(_Tape())
            best = max(free, key=lambda number: (hashes.get(tapes[number].seen, 0), -number))
            tape = tapes[best]
            tape.busy, tape.seen = True, next(reversed(hashes), b"")
            self._forget()
        try:
            yield f"{name}-{best}" if best else name
        finally:
            with self._lock:
                tape.busy = False

    def _forget(self) -> None:
        """The oldest beginnings of which nothing runs."""
        for name in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            if not any(tape.busy for tape in self._known[name]):
                del self._known[name]


def _content(ref: ModelRef, messages: Sequence[Message]) -> tuple[str, dict[bytes, int]]:
    """The name of the beginning, and for the hash of each start of the conversation how long that is."""
    # Not the digest: a model is the same before and after it was listed.
    running = hashlib.blake2b(msgspec.msgpack.encode((ref.type, ref.name, ref.path)), digest_size=16)
    name = ""
    hashes: dict[bytes, int] = {}
    for count, message in enumerate(messages, 1):
        running.update(msgspec.msgpack.encode(message))
        hashes[running.digest()] = count
        if message.role == "user" and not name:
            name = running.hexdigest()
    return name or running.hexdigest(), hashes
