from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol", "version", "proof")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    proof: bytes
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., proof: _Optional[bytes] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("ref", "config", "generation")
    REF_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    config: SessionConfig
    generation: int
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., config: _Optional[_Union[SessionConfig, _Mapping]] = ..., generation: _Optional[int] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("ref", "config")
    REF_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    config: SessionConfig
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., config: _Optional[_Union[SessionConfig, _Mapping]] = ...) -> None: ...

class InstalledModels(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[InstalledModel]
    def __init__(self, models: _Optional[_Iterable[_Union[InstalledModel, _Mapping]]] = ...) -> None: ...

class SessionInfos(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionInfo]
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionInfo, _Mapping]]] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("handle",)
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ...) -> None: ...

class EnsurePrefixRequest(_message.Message):
    __slots__ = ("handle", "messages", "tools")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ...) -> None: ...

class PrefillSuffixRequest(_message.Message):
    __slots__ = ("handle", "messages", "think", "shift", "truncate")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    THINK_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    think: str
    shift: bool
    truncate: bool
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., think: _Optional[str] = ..., shift: _Optional[bool] = ..., truncate: _Optional[bool] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("handle", "options", "request_id")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    options: DecodeOptions
    request_id: str
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ..., options: _Optional[_Union[DecodeOptions, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class TurnRequest(_message.Message):
    __slots__ = ("handle", "messages", "tools", "think", "options", "request_id", "shift", "truncate", "raw")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    THINK_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    think: str
    options: DecodeOptions
    request_id: str
    shift: bool
    truncate: bool
    raw: RawPrompt
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., think: _Optional[str] = ..., options: _Optional[_Union[DecodeOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., shift: _Optional[bool] = ..., truncate: _Optional[bool] = ..., raw: _Optional[_Union[RawPrompt, _Mapping]] = ...) -> None: ...

class RawPrompt(_message.Message):
    __slots__ = ("text", "tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class VectorsRequest(_message.Message):
    __slots__ = ("ref", "inputs", "normalize", "dimensions", "overflow", "context")
    REF_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    inputs: _containers.RepeatedCompositeFieldContainer[EmbedInput]
    normalize: bool
    dimensions: int
    overflow: str
    context: int
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[EmbedInput, _Mapping]]] = ..., normalize: _Optional[bool] = ..., dimensions: _Optional[int] = ..., overflow: _Optional[str] = ..., context: _Optional[int] = ...) -> None: ...

class RerankRequest(_message.Message):
    __slots__ = ("ref", "query", "documents", "overflow", "context")
    REF_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    overflow: str
    context: int
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., overflow: _Optional[str] = ..., context: _Optional[int] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("ref", "text", "add_special")
    REF_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    text: str
    add_special: bool
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., text: _Optional[str] = ..., add_special: _Optional[bool] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("ref", "tokens")
    REF_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class RenderRequest(_message.Message):
    __slots__ = ("ref", "messages", "tools", "think", "generate")
    REF_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    THINK_FIELD_NUMBER: _ClassVar[int]
    GENERATE_FIELD_NUMBER: _ClassVar[int]
    ref: ModelRef
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    think: str
    generate: bool
    def __init__(self, ref: _Optional[_Union[ModelRef, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., think: _Optional[str] = ..., generate: _Optional[bool] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelReply(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("handle", "snapshot_id")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    snapshot_id: str
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ..., snapshot_id: _Optional[str] = ...) -> None: ...

class ForkRequest(_message.Message):
    __slots__ = ("handle", "name", "workspace")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    handle: SessionHandle
    name: str
    workspace: str
    def __init__(self, handle: _Optional[_Union[SessionHandle, _Mapping]] = ..., name: _Optional[str] = ..., workspace: _Optional[str] = ...) -> None: ...

class RemoveSessionRequest(_message.Message):
    __slots__ = ("name", "workspace", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    workspace: str
    model: str
    def __init__(self, name: _Optional[str] = ..., workspace: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("snapshot_id",)
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    def __init__(self, snapshot_id: _Optional[str] = ...) -> None: ...

class SnapshotInfos(_message.Message):
    __slots__ = ("snapshots",)
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotInfo]
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotInfo, _Mapping]]] = ...) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("data", "snapshot_id")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    snapshot_id: str
    def __init__(self, data: _Optional[bytes] = ..., snapshot_id: _Optional[str] = ...) -> None: ...

class RegisterBackendRequest(_message.Message):
    __slots__ = ("backend", "secret", "replace")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    backend: ConfiguredBackend
    secret: str
    replace: bool
    def __init__(self, backend: _Optional[_Union[ConfiguredBackend, _Mapping]] = ..., secret: _Optional[str] = ..., replace: _Optional[bool] = ...) -> None: ...

class BackendRequest(_message.Message):
    __slots__ = ("backend",)
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    backend: str
    def __init__(self, backend: _Optional[str] = ...) -> None: ...

class ConfiguredBackends(_message.Message):
    __slots__ = ("backends",)
    BACKENDS_FIELD_NUMBER: _ClassVar[int]
    backends: _containers.RepeatedCompositeFieldContainer[ConfiguredBackend]
    def __init__(self, backends: _Optional[_Iterable[_Union[ConfiguredBackend, _Mapping]]] = ...) -> None: ...

class ObservedModels(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ObservedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ObservedModel, _Mapping]]] = ...) -> None: ...

class ChatRequest(_message.Message):
    __slots__ = ("backend", "model", "messages", "config")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    backend: str
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    config: ChatConfig
    def __init__(self, backend: _Optional[str] = ..., model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., config: _Optional[_Union[ChatConfig, _Mapping]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("backend", "model", "texts", "dimensions")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    backend: str
    model: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    dimensions: int
    def __init__(self, backend: _Optional[str] = ..., model: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., dimensions: _Optional[int] = ...) -> None: ...

class Vector(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class EmbedReply(_message.Message):
    __slots__ = ("vectors", "model", "usage")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    vectors: _containers.RepeatedCompositeFieldContainer[Vector]
    model: str
    usage: Usage
    def __init__(self, vectors: _Optional[_Iterable[_Union[Vector, _Mapping]]] = ..., model: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class PromptRequest(_message.Message):
    __slots__ = ("backend", "model", "system", "temperature", "prompt")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    backend: str
    model: str
    system: str
    temperature: float
    prompt: str
    def __init__(self, backend: _Optional[str] = ..., model: _Optional[str] = ..., system: _Optional[str] = ..., temperature: _Optional[float] = ..., prompt: _Optional[str] = ...) -> None: ...

class PromptReply(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class FunctionCall(_message.Message):
    __slots__ = ("name", "arguments")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: str
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class ToolCall(_message.Message):
    __slots__ = ("id", "function", "type", "provider_meta")
    ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_META_FIELD_NUMBER: _ClassVar[int]
    id: str
    function: FunctionCall
    type: str
    provider_meta: str
    def __init__(self, id: _Optional[str] = ..., function: _Optional[_Union[FunctionCall, _Mapping]] = ..., type: _Optional[str] = ..., provider_meta: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "thinking", "tool_calls", "tool_call_id", "name", "provider_meta", "images")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_META_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    thinking: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    tool_call_id: str
    name: str
    provider_meta: str
    images: _containers.RepeatedCompositeFieldContainer[ImagePart]
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ..., thinking: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ..., tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., provider_meta: _Optional[str] = ..., images: _Optional[_Iterable[_Union[ImagePart, _Mapping]]] = ...) -> None: ...

class ImagePart(_message.Message):
    __slots__ = ("data", "mime_type")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MIME_TYPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    mime_type: str
    def __init__(self, data: _Optional[bytes] = ..., mime_type: _Optional[str] = ...) -> None: ...

class FunctionTool(_message.Message):
    __slots__ = ("name", "description", "parameters", "strict", "provider_meta")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_META_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: str
    strict: bool
    provider_meta: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[str] = ..., strict: _Optional[bool] = ..., provider_meta: _Optional[str] = ...) -> None: ...

class Tool(_message.Message):
    __slots__ = ("function", "type")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    function: FunctionTool
    type: str
    def __init__(self, function: _Optional[_Union[FunctionTool, _Mapping]] = ..., type: _Optional[str] = ...) -> None: ...

class ResponseFormat(_message.Message):
    __slots__ = ("schema", "name", "strict", "regex", "choice", "ebnf")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    EBNF_FIELD_NUMBER: _ClassVar[int]
    schema: str
    name: str
    strict: bool
    regex: str
    choice: _containers.RepeatedScalarFieldContainer[str]
    ebnf: str
    def __init__(self, schema: _Optional[str] = ..., name: _Optional[str] = ..., strict: _Optional[bool] = ..., regex: _Optional[str] = ..., choice: _Optional[_Iterable[str]] = ..., ebnf: _Optional[str] = ...) -> None: ...

class ChatConfig(_message.Message):
    __slots__ = ("temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty", "presence_penalty", "repeat_penalty", "tools", "tool_choice", "parallel_tool_calls", "response_format", "think", "shift", "truncate", "timeout", "logprobs", "top_logprobs", "prompt_cache", "prompt_cache_key")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPEAT_PENALTY_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    THINK_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CACHE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CACHE_KEY_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    max_tokens: int
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    frequency_penalty: float
    presence_penalty: float
    repeat_penalty: float
    tools: _containers.RepeatedCompositeFieldContainer[Tool]
    tool_choice: str
    parallel_tool_calls: bool
    response_format: ResponseFormat
    think: str
    shift: bool
    truncate: bool
    timeout: float
    logprobs: bool
    top_logprobs: int
    prompt_cache: str
    prompt_cache_key: str
    def __init__(self, temperature: _Optional[float] = ..., max_tokens: _Optional[int] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., repeat_penalty: _Optional[float] = ..., tools: _Optional[_Iterable[_Union[Tool, _Mapping]]] = ..., tool_choice: _Optional[str] = ..., parallel_tool_calls: _Optional[bool] = ..., response_format: _Optional[_Union[ResponseFormat, _Mapping]] = ..., think: _Optional[str] = ..., shift: _Optional[bool] = ..., truncate: _Optional[bool] = ..., timeout: _Optional[float] = ..., logprobs: _Optional[bool] = ..., top_logprobs: _Optional[int] = ..., prompt_cache: _Optional[str] = ..., prompt_cache_key: _Optional[str] = ...) -> None: ...

class DecodeOptions(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty", "penalty_last_n", "seed", "stop", "ignore_eos", "response_format", "tool_choice", "parallel_tool_calls", "logprobs", "top_logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPEAT_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PENALTY_LAST_N_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_last_n: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    response_format: ResponseFormat
    tool_choice: str
    parallel_tool_calls: bool
    logprobs: bool
    top_logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repeat_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., penalty_last_n: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: _Optional[bool] = ..., response_format: _Optional[_Union[ResponseFormat, _Mapping]] = ..., tool_choice: _Optional[str] = ..., parallel_tool_calls: _Optional[bool] = ..., logprobs: _Optional[bool] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input", "cache_read", "cache_write", "output", "reasoning", "source", "reused", "restored", "prefilled", "drafted", "accepted", "prefill_seconds", "decode_seconds")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    CACHE_READ_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    source: str
    reused: int
    restored: int
    prefilled: int
    drafted: int
    accepted: int
    prefill_seconds: float
    decode_seconds: float
    def __init__(self, input: _Optional[int] = ..., cache_read: _Optional[int] = ..., cache_write: _Optional[int] = ..., output: _Optional[int] = ..., reasoning: _Optional[int] = ..., source: _Optional[str] = ..., reused: _Optional[int] = ..., restored: _Optional[int] = ..., prefilled: _Optional[int] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ..., prefill_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ...) -> None: ...

class ReuseStop(_message.Message):
    __slots__ = ("reason", "token", "message_index", "character", "old", "new", "detail", "tokens", "seconds", "advice")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    CHARACTER_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    token: int
    message_index: int
    character: int
    old: str
    new: str
    detail: str
    tokens: int
    seconds: float
    advice: str
    def __init__(self, reason: _Optional[str] = ..., token: _Optional[int] = ..., message_index: _Optional[int] = ..., character: _Optional[int] = ..., old: _Optional[str] = ..., new: _Optional[str] = ..., detail: _Optional[str] = ..., tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., advice: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("reused", "restored", "prefilled", "dropped", "resident", "window", "generation", "rebound", "stop", "queue_seconds", "prefill_seconds", "decode_seconds", "left", "left_tokens", "recomputed")
    REUSED_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REBOUND_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    LEFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    reused: int
    restored: int
    prefilled: int
    dropped: int
    resident: int
    window: int
    generation: int
    rebound: bool
    stop: ReuseStop
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    left: int
    left_tokens: int
    recomputed: int
    def __init__(self, reused: _Optional[int] = ..., restored: _Optional[int] = ..., prefilled: _Optional[int] = ..., dropped: _Optional[int] = ..., resident: _Optional[int] = ..., window: _Optional[int] = ..., generation: _Optional[int] = ..., rebound: _Optional[bool] = ..., stop: _Optional[_Union[ReuseStop, _Mapping]] = ..., queue_seconds: _Optional[float] = ..., prefill_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., left: _Optional[int] = ..., left_tokens: _Optional[int] = ..., recomputed: _Optional[int] = ...) -> None: ...

class TextPart(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ThinkingPart(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ToolCallStart(_message.Message):
    __slots__ = ("index", "id", "name")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "arguments")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    arguments: str
    def __init__(self, index: _Optional[int] = ..., arguments: _Optional[str] = ...) -> None: ...

class ToolCallEnd(_message.Message):
    __slots__ = ("index", "provider_meta")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_META_FIELD_NUMBER: _ClassVar[int]
    index: int
    provider_meta: str
    def __init__(self, index: _Optional[int] = ..., provider_meta: _Optional[str] = ...) -> None: ...

class ProgressPart(_message.Message):
    __slots__ = ("cached", "done", "total", "position", "rate", "seconds_left", "cache_write")
    CACHED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_FIELD_NUMBER: _ClassVar[int]
    cached: int
    done: int
    total: int
    position: int
    rate: float
    seconds_left: float
    cache_write: int
    def __init__(self, cached: _Optional[int] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., position: _Optional[int] = ..., rate: _Optional[float] = ..., seconds_left: _Optional[float] = ..., cache_write: _Optional[int] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("logprob", "data", "token")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    data: bytes
    token: int
    def __init__(self, logprob: _Optional[float] = ..., data: _Optional[bytes] = ..., token: _Optional[int] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("logprob", "data", "token", "kind", "top")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    data: bytes
    token: int
    kind: str
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, logprob: _Optional[float] = ..., data: _Optional[bytes] = ..., token: _Optional[int] = ..., kind: _Optional[str] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class LogprobsPart(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class WarningPart(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ErrorPart(_message.Message):
    __slots__ = ("code", "message", "raw", "call")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    raw: str
    call: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., raw: _Optional[str] = ..., call: _Optional[int] = ...) -> None: ...

class EndPart(_message.Message):
    __slots__ = ("finish_reason", "usage", "receipt", "model", "seed", "stop", "id", "provider_meta")
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_META_FIELD_NUMBER: _ClassVar[int]
    finish_reason: str
    usage: Usage
    receipt: Receipt
    model: str
    seed: int
    stop: str
    id: str
    provider_meta: str
    def __init__(self, finish_reason: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ..., model: _Optional[str] = ..., seed: _Optional[int] = ..., stop: _Optional[str] = ..., id: _Optional[str] = ..., provider_meta: _Optional[str] = ...) -> None: ...

class StreamPart(_message.Message):
    __slots__ = ("text", "thinking", "tool_call_start", "tool_call_delta", "tool_call_end", "progress", "warning", "error", "end", "logprobs")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_START_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_DELTA_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_END_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    text: TextPart
    thinking: ThinkingPart
    tool_call_start: ToolCallStart
    tool_call_delta: ToolCallDelta
    tool_call_end: ToolCallEnd
    progress: ProgressPart
    warning: WarningPart
    error: ErrorPart
    end: EndPart
    logprobs: LogprobsPart
    def __init__(self, text: _Optional[_Union[TextPart, _Mapping]] = ..., thinking: _Optional[_Union[ThinkingPart, _Mapping]] = ..., tool_call_start: _Optional[_Union[ToolCallStart, _Mapping]] = ..., tool_call_delta: _Optional[_Union[ToolCallDelta, _Mapping]] = ..., tool_call_end: _Optional[_Union[ToolCallEnd, _Mapping]] = ..., progress: _Optional[_Union[ProgressPart, _Mapping]] = ..., warning: _Optional[_Union[WarningPart, _Mapping]] = ..., error: _Optional[_Union[ErrorPart, _Mapping]] = ..., end: _Optional[_Union[EndPart, _Mapping]] = ..., logprobs: _Optional[_Union[LogprobsPart, _Mapping]] = ...) -> None: ...

class StreamFrame(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[StreamPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[StreamPart, _Mapping]]] = ...) -> None: ...

class ChatResult(_message.Message):
    __slots__ = ("message", "end", "warnings", "errors", "logprobs")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    message: Message
    end: EndPart
    warnings: _containers.RepeatedCompositeFieldContainer[WarningPart]
    errors: _containers.RepeatedCompositeFieldContainer[ErrorPart]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, message: _Optional[_Union[Message, _Mapping]] = ..., end: _Optional[_Union[EndPart, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[WarningPart, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[ErrorPart, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class ConfiguredBackend(_message.Message):
    __slots__ = ("name", "type", "base_url", "key", "pin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    base_url: str
    key: str
    pin: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., base_url: _Optional[str] = ..., key: _Optional[str] = ..., pin: _Optional[str] = ...) -> None: ...

class CapabilityConfig(_message.Message):
    __slots__ = ("context_length", "max_output_tokens", "can_chat", "can_embed", "can_stream", "can_prompt", "can_think", "can_vision")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CAN_CHAT_FIELD_NUMBER: _ClassVar[int]
    CAN_EMBED_FIELD_NUMBER: _ClassVar[int]
    CAN_STREAM_FIELD_NUMBER: _ClassVar[int]
    CAN_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CAN_THINK_FIELD_NUMBER: _ClassVar[int]
    CAN_VISION_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    max_output_tokens: int
    can_chat: bool
    can_embed: bool
    can_stream: bool
    can_prompt: bool
    can_think: bool
    can_vision: bool
    def __init__(self, context_length: _Optional[int] = ..., max_output_tokens: _Optional[int] = ..., can_chat: _Optional[bool] = ..., can_embed: _Optional[bool] = ..., can_stream: _Optional[bool] = ..., can_prompt: _Optional[bool] = ..., can_think: _Optional[bool] = ..., can_vision: _Optional[bool] = ...) -> None: ...

class ObservedModel(_message.Message):
    __slots__ = ("name", "capabilities", "modified_at", "size", "digest", "meta", "evidence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_AT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    capabilities: CapabilityConfig
    modified_at: str
    size: int
    digest: str
    meta: str
    evidence: str
    def __init__(self, name: _Optional[str] = ..., capabilities: _Optional[_Union[CapabilityConfig, _Mapping]] = ..., modified_at: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[str] = ..., meta: _Optional[str] = ..., evidence: _Optional[str] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("kind", "stable", "message_index", "characters")
    KIND_FIELD_NUMBER: _ClassVar[int]
    STABLE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    stable: bool
    message_index: int
    characters: int
    def __init__(self, kind: _Optional[str] = ..., stable: _Optional[bool] = ..., message_index: _Optional[int] = ..., characters: _Optional[int] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("engine", "engine_build", "model_digest", "template_digest", "tokenizer_digest", "add_bos", "kv_type", "adapters", "kv_layout")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_BUILD_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ADD_BOS_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    engine: str
    engine_build: str
    model_digest: str
    template_digest: str
    tokenizer_digest: str
    add_bos: bool
    kv_type: str
    adapters: _containers.RepeatedScalarFieldContainer[str]
    kv_layout: str
    def __init__(self, engine: _Optional[str] = ..., engine_build: _Optional[str] = ..., model_digest: _Optional[str] = ..., template_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., add_bos: _Optional[bool] = ..., kv_type: _Optional[str] = ..., adapters: _Optional[_Iterable[str]] = ..., kv_layout: _Optional[str] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "type", "digest", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    digest: str
    path: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("name", "scale", "digest", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    scale: float
    digest: str
    path: str
    def __init__(self, name: _Optional[str] = ..., scale: _Optional[float] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class SessionConfig(_message.Message):
    __slots__ = ("workspace", "name", "context", "kv_type", "session_class", "pin", "ttl", "shift", "truncate", "adapters")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    SESSION_CLASS_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    context: int
    kv_type: str
    session_class: str
    pin: bool
    ttl: float
    shift: bool
    truncate: bool
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., context: _Optional[int] = ..., kv_type: _Optional[str] = ..., session_class: _Optional[str] = ..., pin: _Optional[bool] = ..., ttl: _Optional[float] = ..., shift: _Optional[bool] = ..., truncate: _Optional[bool] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ...) -> None: ...

class SessionHandle(_message.Message):
    __slots__ = ("workspace", "name", "ref", "generation", "window", "epoch")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    ref: ModelRef
    generation: int
    window: int
    epoch: int
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., ref: _Optional[_Union[ModelRef, _Mapping]] = ..., generation: _Optional[int] = ..., window: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("fits", "context", "cells", "max_context", "kv_bytes_per_token", "kv_type", "weights", "kv", "overhead", "required", "free", "reserve", "usable", "device", "gpu_layers", "reason", "alternatives")
    FITS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    OVERHEAD_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    USABLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GPU_LAYERS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    fits: bool
    context: int
    cells: int
    max_context: int
    kv_bytes_per_token: int
    kv_type: str
    weights: int
    kv: int
    overhead: int
    required: int
    free: int
    reserve: int
    usable: int
    device: str
    gpu_layers: int
    reason: str
    alternatives: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, fits: _Optional[bool] = ..., context: _Optional[int] = ..., cells: _Optional[int] = ..., max_context: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., kv_type: _Optional[str] = ..., weights: _Optional[int] = ..., kv: _Optional[int] = ..., overhead: _Optional[int] = ..., required: _Optional[int] = ..., free: _Optional[int] = ..., reserve: _Optional[int] = ..., usable: _Optional[int] = ..., device: _Optional[str] = ..., gpu_layers: _Optional[int] = ..., reason: _Optional[str] = ..., alternatives: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("name", "type", "digest", "path", "size", "architecture", "quantization", "parameters", "layers", "context_length", "sliding_window", "vocabulary", "has_template", "tools", "thinking", "resident", "plan", "template", "generates", "embeds", "pooling", "adapters", "adapts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SLIDING_WINDOW_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    HAS_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    GENERATES_FIELD_NUMBER: _ClassVar[int]
    EMBEDS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ADAPTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    digest: str
    path: str
    size: int
    architecture: str
    quantization: str
    parameters: int
    layers: int
    context_length: int
    sliding_window: int
    vocabulary: int
    has_template: bool
    tools: bool
    thinking: bool
    resident: bool
    plan: Plan
    template: TemplateFacts
    generates: bool
    embeds: bool
    pooling: str
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    adapts: bool
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., architecture: _Optional[str] = ..., quantization: _Optional[str] = ..., parameters: _Optional[int] = ..., layers: _Optional[int] = ..., context_length: _Optional[int] = ..., sliding_window: _Optional[int] = ..., vocabulary: _Optional[int] = ..., has_template: _Optional[bool] = ..., tools: _Optional[bool] = ..., thinking: _Optional[bool] = ..., resident: _Optional[bool] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., template: _Optional[_Union[TemplateFacts, _Mapping]] = ..., generates: _Optional[bool] = ..., embeds: _Optional[bool] = ..., pooling: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., adapts: _Optional[bool] = ...) -> None: ...

class TemplateFacts(_message.Message):
    __slots__ = ("source", "name", "system", "tools", "tool_results", "parallel_tool_calls", "object_arguments", "documents", "thinking", "thinking_switch", "efforts", "opens_thinking", "thinking_history")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_RESULTS_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    OBJECT_ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    THINKING_SWITCH_FIELD_NUMBER: _ClassVar[int]
    EFFORTS_FIELD_NUMBER: _ClassVar[int]
    OPENS_THINKING_FIELD_NUMBER: _ClassVar[int]
    THINKING_HISTORY_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    system: bool
    tools: bool
    tool_results: bool
    parallel_tool_calls: bool
    object_arguments: bool
    documents: bool
    thinking: bool
    thinking_switch: bool
    efforts: _containers.RepeatedScalarFieldContainer[str]
    opens_thinking: bool
    thinking_history: str
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ..., system: _Optional[bool] = ..., tools: _Optional[bool] = ..., tool_results: _Optional[bool] = ..., parallel_tool_calls: _Optional[bool] = ..., object_arguments: _Optional[bool] = ..., documents: _Optional[bool] = ..., thinking: _Optional[bool] = ..., thinking_switch: _Optional[bool] = ..., efforts: _Optional[_Iterable[str]] = ..., opens_thinking: _Optional[bool] = ..., thinking_history: _Optional[str] = ...) -> None: ...

class EmbedInput(_message.Message):
    __slots__ = ("text", "tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, text: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class EmbeddedItem(_message.Message):
    __slots__ = ("tokens", "used", "chunks")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    used: int
    chunks: int
    def __init__(self, tokens: _Optional[int] = ..., used: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class Embeddings(_message.Message):
    __slots__ = ("model", "data", "dimensions", "items", "usage", "pooling", "pooling_source", "normalized")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    POOLING_SOURCE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_FIELD_NUMBER: _ClassVar[int]
    model: str
    data: bytes
    dimensions: int
    items: _containers.RepeatedCompositeFieldContainer[EmbeddedItem]
    usage: Usage
    pooling: str
    pooling_source: str
    normalized: bool
    def __init__(self, model: _Optional[str] = ..., data: _Optional[bytes] = ..., dimensions: _Optional[int] = ..., items: _Optional[_Iterable[_Union[EmbeddedItem, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., pooling: _Optional[str] = ..., pooling_source: _Optional[str] = ..., normalized: _Optional[bool] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("model", "scores", "order", "items", "usage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    scores: _containers.RepeatedScalarFieldContainer[float]
    order: _containers.RepeatedScalarFieldContainer[int]
    items: _containers.RepeatedCompositeFieldContainer[EmbeddedItem]
    usage: Usage
    def __init__(self, model: _Optional[str] = ..., scores: _Optional[_Iterable[float]] = ..., order: _Optional[_Iterable[int]] = ..., items: _Optional[_Iterable[_Union[EmbeddedItem, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class TokenList(_message.Message):
    __slots__ = ("model", "tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class RenderedPrompt(_message.Message):
    __slots__ = ("model", "text", "tokens", "template")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[int]
    template: str
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Iterable[int]] = ..., template: _Optional[str] = ...) -> None: ...

class SideStatus(_message.Message):
    __slots__ = ("task", "state", "model", "digest", "pid", "backend", "context", "rss")
    TASK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    RSS_FIELD_NUMBER: _ClassVar[int]
    task: str
    state: str
    model: str
    digest: str
    pid: int
    backend: str
    context: int
    rss: int
    def __init__(self, task: _Optional[str] = ..., state: _Optional[str] = ..., model: _Optional[str] = ..., digest: _Optional[str] = ..., pid: _Optional[int] = ..., backend: _Optional[str] = ..., context: _Optional[int] = ..., rss: _Optional[int] = ...) -> None: ...

class InstalledModel(_message.Message):
    __slots__ = ("name", "type", "path", "size", "modified", "bundled", "resident", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MODIFIED_FIELD_NUMBER: _ClassVar[int]
    BUNDLED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    path: str
    size: int
    modified: float
    bundled: bool
    resident: bool
    error: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., modified: _Optional[float] = ..., bundled: _Optional[bool] = ..., resident: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class EngineStatus(_message.Message):
    __slots__ = ("pid", "backend", "build", "rss")
    PID_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    RSS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    backend: str
    build: str
    rss: int
    def __init__(self, pid: _Optional[int] = ..., backend: _Optional[str] = ..., build: _Optional[str] = ..., rss: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("instance_id", "epoch", "pid", "version", "data_root", "endpoints", "state", "generation", "uptime", "idle_ttl", "rss", "model", "digest", "context", "ledger", "engine", "sessions", "active", "idle_seconds", "last_error", "clients", "sides", "kv_type", "adapters", "http", "plan", "waiting", "totals")
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DATA_ROOT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    IDLE_TTL_FIELD_NUMBER: _ClassVar[int]
    RSS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    SIDES_FIELD_NUMBER: _ClassVar[int]
    KV_TYPE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    epoch: int
    pid: int
    version: str
    data_root: str
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    state: str
    generation: int
    uptime: float
    idle_ttl: float
    rss: int
    model: str
    digest: str
    context: int
    ledger: Ledger
    engine: EngineStatus
    sessions: int
    active: int
    idle_seconds: float
    last_error: str
    clients: _containers.RepeatedCompositeFieldContainer[ClientInfo]
    sides: _containers.RepeatedCompositeFieldContainer[SideStatus]
    kv_type: str
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    http: str
    plan: Plan
    waiting: int
    totals: Totals
    def __init__(self, instance_id: _Optional[str] = ..., epoch: _Optional[int] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., data_root: _Optional[str] = ..., endpoints: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ..., generation: _Optional[int] = ..., uptime: _Optional[float] = ..., idle_ttl: _Optional[float] = ..., rss: _Optional[int] = ..., model: _Optional[str] = ..., digest: _Optional[str] = ..., context: _Optional[int] = ..., ledger: _Optional[_Union[Ledger, _Mapping]] = ..., engine: _Optional[_Union[EngineStatus, _Mapping]] = ..., sessions: _Optional[int] = ..., active: _Optional[int] = ..., idle_seconds: _Optional[float] = ..., last_error: _Optional[str] = ..., clients: _Optional[_Iterable[_Union[ClientInfo, _Mapping]]] = ..., sides: _Optional[_Iterable[_Union[SideStatus, _Mapping]]] = ..., kv_type: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., http: _Optional[str] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., waiting: _Optional[int] = ..., totals: _Optional[_Union[Totals, _Mapping]] = ...) -> None: ...

class Totals(_message.Message):
    __slots__ = ("calls", "reused", "restored", "prefilled", "generated", "crashes")
    CALLS_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    calls: int
    reused: int
    restored: int
    prefilled: int
    generated: int
    crashes: int
    def __init__(self, calls: _Optional[int] = ..., reused: _Optional[int] = ..., restored: _Optional[int] = ..., prefilled: _Optional[int] = ..., generated: _Optional[int] = ..., crashes: _Optional[int] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("cells", "cells_used", "hot", "hot_budget", "ram", "ram_budget", "disk", "disk_budget")
    CELLS_FIELD_NUMBER: _ClassVar[int]
    CELLS_USED_FIELD_NUMBER: _ClassVar[int]
    HOT_FIELD_NUMBER: _ClassVar[int]
    HOT_BUDGET_FIELD_NUMBER: _ClassVar[int]
    RAM_FIELD_NUMBER: _ClassVar[int]
    RAM_BUDGET_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    DISK_BUDGET_FIELD_NUMBER: _ClassVar[int]
    cells: int
    cells_used: int
    hot: int
    hot_budget: int
    ram: int
    ram_budget: int
    disk: int
    disk_budget: int
    def __init__(self, cells: _Optional[int] = ..., cells_used: _Optional[int] = ..., hot: _Optional[int] = ..., hot_budget: _Optional[int] = ..., ram: _Optional[int] = ..., ram_budget: _Optional[int] = ..., disk: _Optional[int] = ..., disk_budget: _Optional[int] = ...) -> None: ...

class AuditReport(_message.Message):
    __slots__ = ("ledger", "faults")
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    ledger: Ledger
    faults: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ledger: _Optional[_Union[Ledger, _Mapping]] = ..., faults: _Optional[_Iterable[str]] = ...) -> None: ...

class ClientInfo(_message.Message):
    __slots__ = ("pid", "program", "address", "calls", "idle_seconds")
    PID_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    program: str
    address: str
    calls: int
    idle_seconds: float
    def __init__(self, pid: _Optional[int] = ..., program: _Optional[str] = ..., address: _Optional[str] = ..., calls: _Optional[int] = ..., idle_seconds: _Optional[float] = ...) -> None: ...

class SessionInfo(_message.Message):
    __slots__ = ("workspace", "name", "model", "digest", "generation", "tape", "hot", "window", "active", "handles", "session_class", "pin", "last_used", "engine_pid", "kept", "adapters", "shared", "ram", "disk", "last_receipt")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TAPE_FIELD_NUMBER: _ClassVar[int]
    HOT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    SESSION_CLASS_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_FIELD_NUMBER: _ClassVar[int]
    ENGINE_PID_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    RAM_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    LAST_RECEIPT_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    model: str
    digest: str
    generation: int
    tape: int
    hot: int
    window: int
    active: bool
    handles: int
    session_class: str
    pin: bool
    last_used: float
    engine_pid: int
    kept: int
    adapters: _containers.RepeatedCompositeFieldContainer[Adapter]
    shared: int
    ram: int
    disk: int
    last_receipt: Receipt
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., digest: _Optional[str] = ..., generation: _Optional[int] = ..., tape: _Optional[int] = ..., hot: _Optional[int] = ..., window: _Optional[int] = ..., active: _Optional[bool] = ..., handles: _Optional[int] = ..., session_class: _Optional[str] = ..., pin: _Optional[bool] = ..., last_used: _Optional[float] = ..., engine_pid: _Optional[int] = ..., kept: _Optional[int] = ..., adapters: _Optional[_Iterable[_Union[Adapter, _Mapping]]] = ..., shared: _Optional[int] = ..., ram: _Optional[int] = ..., disk: _Optional[int] = ..., last_receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class PrefixStatus(_message.Message):
    __slots__ = ("receipt", "prefix_tokens", "available", "prefix_token_hash", "manifest_digest")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKEN_HASH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    prefix_tokens: int
    available: int
    prefix_token_hash: str
    manifest_digest: str
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., prefix_tokens: _Optional[int] = ..., available: _Optional[int] = ..., prefix_token_hash: _Optional[str] = ..., manifest_digest: _Optional[str] = ...) -> None: ...

class SuffixStatus(_message.Message):
    __slots__ = ("receipt", "prefix_tokens", "suffix_tokens", "available", "manifest_digest")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    prefix_tokens: int
    suffix_tokens: int
    available: int
    manifest_digest: str
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., prefix_tokens: _Optional[int] = ..., suffix_tokens: _Optional[int] = ..., available: _Optional[int] = ..., manifest_digest: _Optional[str] = ...) -> None: ...

class SnapshotInfo(_message.Message):
    __slots__ = ("id", "tokens", "size", "manifest_digest", "tape_hash", "created", "ref", "config", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TAPE_HASH_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    tokens: int
    size: int
    manifest_digest: str
    tape_hash: str
    created: float
    ref: ModelRef
    config: SessionConfig
    error: str
    def __init__(self, id: _Optional[str] = ..., tokens: _Optional[int] = ..., size: _Optional[int] = ..., manifest_digest: _Optional[str] = ..., tape_hash: _Optional[str] = ..., created: _Optional[float] = ..., ref: _Optional[_Union[ModelRef, _Mapping]] = ..., config: _Optional[_Union[SessionConfig, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class Break(_message.Message):
    __slots__ = ("at", "stop")
    AT_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    at: float
    stop: ReuseStop
    def __init__(self, at: _Optional[float] = ..., stop: _Optional[_Union[ReuseStop, _Mapping]] = ...) -> None: ...

class BreakTotal(_message.Message):
    __slots__ = ("reason", "count", "tokens", "seconds")
    REASON_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    count: int
    tokens: int
    seconds: float
    def __init__(self, reason: _Optional[str] = ..., count: _Optional[int] = ..., tokens: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class ContextReport(_message.Message):
    __slots__ = ("workspace", "name", "model", "generation", "resident", "prefix_tokens", "window", "available", "tape_hash", "manifest", "segments", "last_receipt", "prefill_calls", "prefill_tokens", "decode_calls", "decode_tokens", "fatal", "ahead_tokens", "breaks", "break_totals")
    WORKSPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    TAPE_HASH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CALLS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_CALLS_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FATAL_FIELD_NUMBER: _ClassVar[int]
    AHEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BREAKS_FIELD_NUMBER: _ClassVar[int]
    BREAK_TOTALS_FIELD_NUMBER: _ClassVar[int]
    workspace: str
    name: str
    model: str
    generation: int
    resident: int
    prefix_tokens: int
    window: int
    available: int
    tape_hash: str
    manifest: Manifest
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    last_receipt: Receipt
    prefill_calls: int
    prefill_tokens: int
    decode_calls: int
    decode_tokens: int
    fatal: str
    ahead_tokens: int
    breaks: _containers.RepeatedCompositeFieldContainer[Break]
    break_totals: _containers.RepeatedCompositeFieldContainer[BreakTotal]
    def __init__(self, workspace: _Optional[str] = ..., name: _Optional[str] = ..., model: _Optional[str] = ..., generation: _Optional[int] = ..., resident: _Optional[int] = ..., prefix_tokens: _Optional[int] = ..., window: _Optional[int] = ..., available: _Optional[int] = ..., tape_hash: _Optional[str] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ..., last_receipt: _Optional[_Union[Receipt, _Mapping]] = ..., prefill_calls: _Optional[int] = ..., prefill_tokens: _Optional[int] = ..., decode_calls: _Optional[int] = ..., decode_tokens: _Optional[int] = ..., fatal: _Optional[str] = ..., ahead_tokens: _Optional[int] = ..., breaks: _Optional[_Iterable[_Union[Break, _Mapping]]] = ..., break_totals: _Optional[_Iterable[_Union[BreakTotal, _Mapping]]] = ...) -> None: ...
