"""Every error modeld raises, in one tree.

    ModeldError                     internal
    ├── InvalidRequestError         invalid_request        the call itself is wrong; nothing was changed
    ├── NotSupportedError           unsupported_feature    the feature is not there
    ├── MissingDependencyError      missing_dependency     an extra is not installed; the message has the pip line
    ├── RefusedError                refused                the model declined
    ├── CancelledError              cancelled              the caller cancelled; the session stays usable
    ├── DeadlineExceededError       deadline_exceeded      the caller's deadline passed
    ├── NodeError
    │   ├── NodeNotRunningError     not_running            no node owns the data root
    │   ├── NodeStaleError          stale                  a record is there, its owner is dead
    │   ├── NodeUnreachableError    unreachable            an owner lives, but nobody matching answers
    │   ├── BackendMismatchError    backend_mismatch       the node cannot serve this type of model
    │   ├── OwnerHeldError          owner_held             another process owns the data root
    │   ├── OwnerWedgedError        owner_wedged           the owner stands still and may not be ended from here
    │   ├── DeviceBusyError         device_busy            a node of another data root holds the accelerator
    │   ├── TokenMissingError       token_missing          TCP needs a token and the call has none
    │   ├── TokenWrongError         token_wrong            the token is not this node's
    │   ├── TLSRequiredError        tls_required           beyond loopback there is no plain TCP
    │   ├── LeaseLostError          lease_lost             this process stopped being the owner
    │   ├── NotOwnerError           not_owner              the process called is not the owner
    │   ├── StaleEpochError         stale_epoch            the call was meant for an earlier owner
    │   └── StorageError            storage_failed         a disk is full, or a file cannot be read or written
    ├── ModelError
    │   ├── ModelNotFoundError      model_not_found        no installed model and no file of that name
    │   ├── InvalidModelError       invalid_model          the file is not a model that can be read safely
    │   ├── DigestMismatchError     digest_mismatch        the file is not the one that was named
    │   ├── ModelLoadError          model_load_failed      the engine could not load it
    │   ├── ModelBusyError          model_busy             the resident model is in use
    │   └── CapacityError           does_not_fit           it does not fit; the details hold the arithmetic
    ├── SessionError
    │   ├── SessionClosedError      session_closed         the handle was closed or never existed
    │   ├── SessionFatalError       session_fatal          the session cannot go on; the message says why
    │   ├── StaleGenerationError    stale_generation       the model behind the handle is another one now
    │   ├── ContextOverflowError    context_overflow       the tokens do not fit the window; nothing was cut
    │   ├── ManifestMismatchError   manifest_mismatch      KV of another identity; ``field`` names the difference
    │   ├── SnapshotNotFoundError   snapshot_not_found     no snapshot of that id
    │   ├── SessionNotFoundError    session_not_found      no session of that name
    │   ├── SessionBusyError        session_busy           a call on the session runs
    │   └── TemplateError           template_error         the chat template failed on these messages
    ├── EngineError
    │   ├── EngineCrashedError      engine_crashed         the engine process died; the next call loads again
    │   └── EngineProtocolError     engine_protocol        a frame could not be understood
    └── BackendError                backend_error          a backend's server failed in a way of its own
        ├── BackendNotFoundError    backend_not_found      no backend of that id is registered
        ├── AuthenticationError     authentication         the backend does not take this key
        ├── PermissionDeniedError   permission_denied      the key is known and may not do this
        ├── RateLimitError          rate_limited           too many calls; ``retry_after`` where the backend says it
        ├── QuotaError              quota_exceeded         the account has nothing left; waiting does not help
        ├── BackendUnavailableError unavailable            it does not answer, is overloaded or broken
        └── BackendProtocolError    backend_protocol       its answer could not be understood, or was cut off

``code`` is stable and crosses every wire; ``details`` are plain JSON values and cross with it, so that a client catches
the class the node raised, with the same attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar

Details = dict[str, Any]
"""Plain JSON values by name."""


class ModeldError(Exception):
    """Root of the tree.

    :param message: one sentence with the numbers and the next step.
    :param details: JSON values; each becomes an attribute.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: Details = details
        self.__dict__.update({k: v for k, v in details.items() if not hasattr(type(self), k)})

    def __reduce__(self) -> tuple[Any, ...]:
        return error_from_code, (self.code, self.message, self.details)


class InvalidRequestError(ModeldError, ValueError):
    """The call itself is wrong; nothing was changed."""

    code = "invalid_request"


class NotSupportedError(ModeldError):
    """The feature is not there; ``feature`` names it."""

    code = "unsupported_feature"


class MissingDependencyError(ModeldError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_dependency"


class RefusedError(ModeldError):
    """The model declined to answer."""

    code = "refused"


class CancelledError(ModeldError):
    """The caller cancelled. The session stays usable."""

    code = "cancelled"
    retryable = True


class DeadlineExceededError(ModeldError):
    """The caller's deadline passed."""

    code = "deadline_exceeded"
    retryable = True


class NodeError(ModeldError):
    """Something about the node: who owns it, and whether it answers."""

    code = "node_error"


class NodeNotRunningError(NodeError):
    """No node owns the data root."""

    code = "not_running"
    retryable = True
    data_root: str


class NodeStaleError(NodeError):
    """An owner record is there, but the kernel says that its owner is dead."""

    code = "stale"
    retryable = True
    data_root: str
    pid: int
    epoch: int


class NodeUnreachableError(NodeError):
    """An owner lives, but nobody matching its record answers at its endpoint."""

    code = "unreachable"
    retryable = True
    endpoint: str
    pid: int


class BackendMismatchError(NodeError):
    """The node does not serve models of this type."""

    code = "backend_mismatch"
    wanted: str
    served: list[str]


class OwnerHeldError(NodeError):
    """Another process owns the data root."""

    code = "owner_held"
    exit_code = 3
    pid: int
    endpoint: str
    epoch: int


class OwnerWedgedError(NodeError):
    """The owner's record stands still, and this process may not end it: ``pid`` and ``command`` name it."""

    code = "owner_wedged"
    exit_code = 3
    pid: int
    command: str


class DeviceBusyError(NodeError):
    """A node of another data root holds the accelerator."""

    code = "device_busy"
    retryable = True
    device: str
    pid: int
    data_root: str


class TokenMissingError(NodeError):
    """Over TCP a call needs the node's token."""

    code = "token_missing"


class TokenWrongError(NodeError):
    """The token is not this node's."""

    code = "token_wrong"


class TLSRequiredError(NodeError):
    """Beyond loopback a node is reached by TLS only."""

    code = "tls_required"


class LeaseLostError(NodeError):
    """This process stopped being the owner; ``reason`` is a literal of :mod:`modeld.node.owner`."""

    code = "lease_lost"
    exit_code = 4
    reason: str


class NotOwnerError(NodeError):
    """The process called does not own the data root."""

    code = "not_owner"
    retryable = True


class StaleEpochError(NodeError):
    """The call carries the epoch of an earlier owner."""

    code = "stale_epoch"
    retryable = True
    epoch: int
    current: int


class StorageError(NodeError):
    """A disk is full, or a file cannot be read or written; ``path`` is the file or its folder. Nothing half is left."""

    code = "storage_failed"
    path: str


class ModelError(ModeldError):
    """Something about a model file or the place where a model is resident."""

    code = "model_error"


class ModelNotFoundError(ModelError):
    """No installed model and no file of that name."""

    code = "model_not_found"
    name: str


class InvalidModelError(ModelError):
    """The file is not a model that can be read safely."""

    code = "invalid_model"
    path: str


class DigestMismatchError(ModelError):
    """The file's content is not the one that was named."""

    code = "digest_mismatch"
    expected: str
    actual: str


class ModelLoadError(ModelError):
    """The engine could not load the model."""

    code = "model_load_failed"


class ModelBusyError(ModelError):
    """The resident model is in use and was not interrupted."""

    code = "model_busy"
    retryable = True


class CapacityError(ModelError):
    """It does not fit; the details hold the arithmetic and alternatives that would."""

    code = "does_not_fit"


class SessionError(ModeldError):
    """Something about one session."""

    code = "session_error"


class SessionClosedError(SessionError):
    """The handle was closed or never existed."""

    code = "session_closed"


class SessionFatalError(SessionError):
    """The session cannot go on. Open it again to start anew."""

    code = "session_fatal"


class StaleGenerationError(SessionError):
    """The model behind the handle is another one now."""

    code = "stale_generation"
    generation: int
    current: int


class ContextOverflowError(SessionError):
    """The tokens do not fit the window. Nothing was cut and the session is unchanged."""

    code = "context_overflow"
    stage: str
    resident: int
    additional: int
    window: int


class ManifestMismatchError(SessionError):
    """KV of another identity; ``field`` names the first difference."""

    code = "manifest_mismatch"
    field: str


class SnapshotNotFoundError(SessionError):
    """No snapshot of that id."""

    code = "snapshot_not_found"
    id: str


class SessionNotFoundError(SessionError):
    """No session of that name."""

    code = "session_not_found"
    name: str
    workspace: str


class SessionBusyError(SessionError):
    """A call on the session runs, and was not interrupted."""

    code = "session_busy"
    retryable = True
    name: str
    workspace: str


class TemplateError(SessionError):
    """The model's chat template failed on these messages."""

    code = "template_error"


class EngineError(ModeldError):
    """Something about the engine process."""

    code = "engine_error"


class EngineCrashedError(EngineError):
    """The engine process died. The node lives and the next call loads the model again."""

    code = "engine_crashed"
    retryable = True


class EngineProtocolError(EngineError):
    """A frame between node and engine could not be understood."""

    code = "engine_protocol"


class BackendError(ModeldError):
    """A backend's server failed in a way that has no class of its own.

    :param status: HTTP status, 0 where there was none. :param vendor_code: the vendor's own code, ``""`` for none.
    :param backend: type of the backend. :param request_id: what the vendor's support asks for, ``""`` for none.
    """

    code = "backend_error"
    status: int
    vendor_code: str
    backend: str
    request_id: str


class BackendNotFoundError(BackendError):
    """No backend of that id is registered."""

    code = "backend_not_found"
    id: str


class AuthenticationError(BackendError):
    """The backend does not take this key, or there is none."""

    code = "authentication"


class PermissionDeniedError(BackendError):
    """The key is known and may not do this."""

    code = "permission_denied"


class RateLimitError(BackendError):
    """Too many calls for now. ``retry_after`` is seconds; ``None``: the backend does not say."""

    code = "rate_limited"
    retryable = True
    retry_after: float | None


class QuotaError(BackendError):
    """The account has no credit left, or is past its limit of spending. Waiting does not help."""

    code = "quota_exceeded"


class BackendUnavailableError(BackendError):
    """The backend does not answer, is overloaded, or is broken on its side."""

    code = "unavailable"
    retryable = True
    retry_after: float | None


class BackendProtocolError(BackendError):
    """The backend's answer could not be understood, or ended before its end."""

    code = "backend_protocol"


def _tree(cls: type[ModeldError]) -> dict[str, type[ModeldError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found.update(_tree(child))
    return found


def error_from_code(code: str, message: str, details: Details | None = None) -> ModeldError:
    """Rebuild the error that another process raised.

    An unknown code (a newer peer) becomes the root class and keeps the code in ``details["code"]``.
    """
    details = {k: v for k, v in (details or {}).items() if isinstance(k, str) and k.isidentifier()}
    details.pop("message", None)
    details.pop("self", None)
    cls = _tree(ModeldError).get(code)
    if cls is None:
        return ModeldError(message, **{**details, "code": code})
    return cls(message, **details)
