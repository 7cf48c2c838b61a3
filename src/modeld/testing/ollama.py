"""Ollama's wire: ``/api/tags``, ``/api/show``, ``/api/chat``, ``/api/embed`` and ``/api/version``.

Source: https://docs.ollama.com/api and the server's own types and handlers (``api/types.go``, ``server/routes.go``).
Stricter than the server, which ignores fields that it does not know: here they are a 400.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from modeld.testing.server import Answer, FakeServer, Recorded, Rejected, Reply, split, vectors_for
from modeld.testing.token_logprobs import shares, token_entries
from modeld.types import TokenLogprob, ToolCall

B = TypeVar("B", bound=Struct)
CREATED: Final = "2026-09-05T10:20:30.123456789Z"


class FakeModel(Struct, frozen=True, kw_only=True):
    """A model that the fake has installed.

    :param thinking: the values that ``think`` takes; empty with capability ``thinking``: the server is one that does
        not list them, and the model only switches.
    :param parameters: of its Modelfile, as ``/api/show`` prints them.
    """

    name: str
    architecture: str
    context_length: int
    capabilities: tuple[str, ...]
    thinking: tuple[bool | str, ...] = ()
    parameters: str = ""


MODELS: Final = (
    FakeModel(name="llama3.2:3b", architecture="llama", context_length=131072, capabilities=("completion", "tools")),
    FakeModel(
        name="qwen3:8b",
        architecture="qwen3",
        context_length=40960,
        capabilities=("completion", "tools", "thinking"),
        thinking=(False, True),
        parameters='temperature                    0.6\nstop                           "<|im_end|>"',
    ),
    FakeModel(
        name="gpt-oss:20b",
        architecture="gptoss",
        context_length=131072,
        capabilities=("completion", "tools", "thinking"),
        thinking=("low", "medium", "high"),
    ),
    FakeModel(name="gemma3:4b", architecture="gemma3", context_length=131072, capabilities=("completion", "vision")),
    FakeModel(
        name="nomic-embed-text:latest", architecture="nomic-bert", context_length=2048, capabilities=("embedding",)
    ),
)


class _Strict(Struct, forbid_unknown_fields=True):
    pass


class Function(_Strict):
    """A call within the history."""

    name: str
    arguments: dict[str, Any]
    index: int = 0


class Call(_Strict):
    """``id`` since 0.12.10."""

    function: Function
    id: str = ""


class ChatMessage(_Strict):
    """A message of the history."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str = ""
    tool_call_id: str = ""


class Parameters(Struct):
    """Schemas have more keywords than the server reads: the others are allowed."""

    type: Literal["object"]
    properties: dict[str, Any]
    required: list[str] | UnsetType = UNSET


class ToolFunction(_Strict):
    """A function that may be called."""

    name: str
    parameters: Parameters
    description: str = ""


class ChatTool(_Strict):
    """A tool."""

    type: Literal["function"]
    function: ToolFunction


class Options(_Strict):
    """Options of the runner and of sampling."""

    num_ctx: int | UnsetType = UNSET
    num_batch: int | UnsetType = UNSET
    num_gpu: int | UnsetType = UNSET
    main_gpu: int | UnsetType = UNSET
    use_mmap: bool | UnsetType = UNSET
    num_thread: int | UnsetType = UNSET
    num_keep: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    num_predict: int | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    typical_p: float | UnsetType = UNSET
    repeat_last_n: int | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    repeat_penalty: float | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    stop: list[str] | UnsetType = UNSET


class ChatBody(_Strict):
    """The body of ``/api/chat``."""

    model: str
    messages: list[ChatMessage]
    tools: list[ChatTool] | UnsetType = UNSET
    format: Literal["json"] | dict[str, Any] | UnsetType = UNSET
    options: Options | UnsetType = UNSET
    stream: bool = True
    keep_alive: float | str | UnsetType = UNSET
    think: bool | str | UnsetType = UNSET
    logprobs: bool = False
    top_logprobs: int = 0
    truncate: bool = True
    shift: bool = True


class EmbedBody(_Strict):
    """The body of ``/api/embed``."""

    model: str
    input: str | list[str]
    truncate: bool = True
    dimensions: int | UnsetType = UNSET
    options: Options | UnsetType = UNSET
    keep_alive: float | str | UnsetType = UNSET


class ShowBody(_Strict):
    """The body of ``/api/show``."""

    model: str
    verbose: bool = False


class FakeOllama(FakeServer):
    """An Ollama server behind a proxy that asks for a key, as ollama.com does.

    :param key: the only one it takes; ``""``: it asks for none, as a server of one's own, and takes no other header.
    :param models: what is installed.
    """

    def __init__(self, *, key: str = "test-key", models: Sequence[FakeModel] = MODELS) -> None:
        super().__init__(key=key)
        self.models = {model.name: model for model in models}
        self.prompt_tokens = 0
        """Tokens that every prompt is said to have; 0: those of the answer's usage. Decides what overflows."""
        self.loads: list[tuple[str, int]] = []
        """Models with their windows, each time one had to be loaded."""
        self.unshown: set[str] = set()
        """Models whose ``/api/show`` fails."""
        self.untold = False
        """Whether this is a server before 0.34.3, which does not list the values of ``think``."""

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_body`: the vendor has one sentence and no codes."""
        return msgspec.json.encode({"error": message})

    def error_event(self, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_event`."""
        return self.error_body(0, code, message) + b"\n"

    def broken_event(self) -> bytes:
        """See :meth:`FakeServer.broken_event`."""
        return b'{"model":"llama3.2:3b","message":{"role":"assistant","con\n'

    async def respond(self, request: Recorded) -> Reply:
        """See :meth:`FakeServer.respond`."""
        wanted = f"Bearer {self.key}" if self.key else None
        if request.headers.get("authorization") != wanted:
            raise Rejected("unauthorized", status=401)
        match request.method, request.path:
            case "GET", "/api/version":
                return _json({"version": "0.34.3"})
            case "GET", "/api/tags":
                return _json({"models": [_tag(model) for model in self.models.values()]})
            case "POST", "/api/show":
                return self._show(_decode(request, ShowBody))
            case "POST", "/api/chat":
                return self._chat(_decode(request, ChatBody))
            case "POST", "/api/embed":
                return self._embed(_decode(request, EmbedBody))
        return Reply(status=404, content_type="text/plain", body=b"404 page not found")

    def _model(self, name: str) -> FakeModel:
        if name not in self.models:
            raise Rejected(f"model '{name}' not found", status=404)
        return self.models[name]

    def _show(self, body: ShowBody) -> Reply:
        model = self._model(body.model)
        if model.name in self.unshown:
            raise Rejected("the manifest cannot be read", status=500)
        shown: dict[str, Any] = {
            "license": "none",
            "modelfile": f"FROM {model.name}",
            "parameters": model.parameters,
            "template": "{{ .Prompt }}",
            "details": _details(model),
            "model_info": {
                "general.architecture": model.architecture,
                "general.parameter_count": 3212749888,
                # A picture encoder's own, in front of the text model's: not to be taken for it.
                f"clip.{model.architecture}.context_length": 77,
                f"{model.architecture}.context_length": model.context_length,
                "tokenizer.ggml.tokens": None,
            },
            "capabilities": list(model.capabilities),
            "modified_at": CREATED,
        }
        if model.thinking and not self.untold:
            shown["thinking"] = {"values": list(model.thinking), "default": model.thinking[-1]}
        return _json(shown)

    def _chat(self, body: ChatBody) -> Reply:
        model = self._model(body.model)
        self._check(body, model)
        answer = self.next_answer()
        window = self._load(model, body.options)
        prompt = self.prompt_tokens or answer.usage.input or 0
        if prompt > window - 1 and not body.truncate:
            raise Rejected(overflow_text(prompt, window))
        end = _end(body.model, answer, min(prompt, window), window)
        if not body.stream:
            message: dict[str, Any] = {"role": "assistant", "content": answer.text or answer.refusal}
            if answer.thinking:
                message["thinking"] = answer.thinking
            if answer.tool_calls:
                message["tool_calls"] = [_call(call, index) for index, call in enumerate(answer.tool_calls)]
            return _json({**end, "message": message, **_logprobs(body, answer.logprobs)})
        frames = [_frame(body.model, message) for message in _deltas(answer)]
        texts = [frame for frame in frames if frame["message"]["content"]]
        for frame, tokens in zip(texts, shares(answer.logprobs, len(texts)), strict=True):
            frame |= _logprobs(body, tokens)
        pieces = [_line(frame) for frame in frames]
        return Reply(content_type="application/x-ndjson", pieces=(*pieces, _line(end)))

    def _check(self, body: ChatBody, model: FakeModel) -> None:
        if "completion" not in model.capabilities:
            raise Rejected(f'"{model.name}" does not support chat')
        for message in body.messages:
            for image in message.images or ():
                _check_image(image)
                if "vision" not in model.capabilities:
                    raise Rejected(f'"{model.name}" does not support vision')
        if body.tools is not UNSET and "tools" not in model.capabilities:
            raise Rejected(f"registry.ollama.ai/library/{model.name} does not support tools")
        if body.think not in (UNSET, False) and "thinking" not in model.capabilities:
            raise Rejected(f'"{model.name}" does not support thinking')
        if body.think is not UNSET and body.think not in (model.thinking or (False, True)) and body.think is not False:
            raise Rejected(f'think value "{body.think}" is not supported for this model')

    def _load(self, model: FakeModel, options: Options | UnsetType) -> int:
        """The window, and a load where it is another than the last one's."""
        asked = UNSET if options is UNSET else options.num_ctx
        window = min(4096 if asked is UNSET else asked, model.context_length)
        last = next((size for name, size in reversed(self.loads) if name == model.name), 0)
        if window != last:
            self.loads.append((model.name, window))
        return window

    def _embed(self, body: EmbedBody) -> Reply:
        model = self._model(body.model)
        if "embedding" not in model.capabilities:
            raise Rejected("this model does not support embeddings", status=501)
        answer = self.next_answer()
        window = self._load(model, body.options)
        if self.prompt_tokens > window and not body.truncate:
            raise Rejected("the input length exceeds the context length")
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = vectors_for(answer, texts, None if body.dimensions is UNSET else body.dimensions)
        found = {"model": body.model, "embeddings": vectors, "total_duration": 14143917, "load_duration": 1019500}
        return _json({**found, "prompt_eval_count": answer.usage.input})


def overflow_text(tokens: int, window: int) -> str:
    """What the engine says to a prompt that does not fit, as the server wraps it."""
    message = f"request ({tokens} tokens) exceeds the available context size ({window} tokens), try increasing it"
    error = {"code": 400, "message": message, "type": "exceed_context_size_error"}
    return msgspec.json.encode({"error": {**error, "n_prompt_tokens": tokens, "n_ctx": window}}).decode()


def _decode(request: Recorded, kind: type[B]) -> B:
    if request.headers.get("content-type") != "application/json":
        raise Rejected("invalid content type")
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.MsgspecError as error:
        raise Rejected(f"json: {error}") from None


def _check_image(image: str) -> None:
    try:
        b64decode(image, validate=True)
    except binascii.Error as error:
        raise Rejected(f"illegal base64 data at input byte 0: {error}") from None


def _json(value: object) -> Reply:
    return Reply(content_type="application/json; charset=utf-8", body=msgspec.json.encode(value))


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _tag(model: FakeModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": "2026-08-04T08:52:19.385406455-07:00",
        "size": 2019393189,
        "digest": sha256(model.name.encode()).hexdigest(),
        "details": _details(model),
    }


def _details(model: FakeModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": "3.2B",
        "quantization_level": "Q4_K_M",
    }


def _call(call: ToolCall, index: int) -> dict[str, Any]:
    arguments = msgspec.json.decode(call.function.arguments)
    return {"id": call.id, "function": {"index": index, "name": call.function.name, "arguments": arguments}}


def _logprobs(body: ChatBody, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """What was asked for of the tokens; left out where there are none."""
    return {"logprobs": token_entries(tokens, body.top_logprobs)} if body.logprobs and tokens else {}


def _deltas(answer: Answer) -> list[dict[str, Any]]:
    """Messages of the frames before the last: the first may be empty; a call comes whole."""
    thoughts = [{"content": "", "thinking": piece} for piece in split(answer.thinking, answer.pieces)]
    texts = [{"content": piece} for piece in split(answer.text or answer.refusal, answer.pieces)]
    calls = [{"content": "", "tool_calls": [_call(call, index)]} for index, call in enumerate(answer.tool_calls)]
    return [{"content": ""}, *thoughts, *texts, *calls]


def _frame(model: str, message: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "created_at": CREATED, "message": {"role": "assistant", **message}, "done": False}


def _end(model: str, answer: Answer, prompt: int, window: int) -> dict[str, Any]:
    """The last frame. The server calls a full window ``length``, and leaves counts of 0 out."""
    output = answer.usage.output
    if answer.finish_reason == "context_full":
        output = window - prompt
    counts = {"prompt_eval_count": prompt, "eval_count": output}
    if answer.usage.cache_read is not None:
        counts["prompt_eval_cached_count"] = answer.usage.cache_read
    return {
        **_frame(model, {"content": ""}),
        "done": True,
        "done_reason": "length" if answer.finish_reason in ("length", "context_full") else "stop",
        "total_duration": 5043500667,
        "load_duration": 5025959,
        **{name: count for name, count in counts.items() if count},
        "prompt_eval_duration": 325953000,
        "eval_duration": 4709213000,
    }
