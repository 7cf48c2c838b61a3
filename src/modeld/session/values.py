"""The values of the session contract: references, configuration, plans, statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct, structs

from modeld.errors import InvalidRequestError
from modeld.session.adapters import MAX_ADAPTERS, Adapter
from modeld.session.manifest import Manifest, Segment
from modeld.session.names import check_name, check_path
from modeld.template_facts import TemplateFacts
from modeld.types import Receipt, ReuseReason, ReuseStop

SlotState = Literal["empty", "loading", "ready", "unloading", "failed"]
SessionClass = Literal["main", "subagent", "side"]
KVType = Literal["f16", "q8_0", "q4_0", "f32"]
Overflow = Literal["error", "shift", "truncate"]
"""What becomes of a conversation that does not fit the window: see :class:`SessionConfig`."""


class ModelRef(Struct, frozen=True, omit_defaults=True):
    """Which model. Identity is name, type and digest; ``path`` is a hint where its file lies.

    :param name: an installed name; empty with a ``path``: the name is the file's.
    :param type: ``llama``, ``openvino``, ``fake``; empty: whatever the file is.
    :param digest: hex SHA-256 of the file; where given, a file of another digest is refused.
    """

    name: str = ""
    type: str = ""
    digest: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if not self.name and not self.path:
            raise InvalidRequestError("a model reference needs a name or a path", parameter="name")
        if self.name:
            check_name("model name", self.name)
        check_path("a model path", self.path)

    @classmethod
    def of(cls, model: ModelRef | str) -> ModelRef:
        """The model that a person means: text with a ``/``, or that ends in ``.gguf``, is a path; other text is a name.

        Paths are made absolute, relative ones from the current folder. No file is looked at.

        :raises InvalidRequestError: neither a name nor a path.
        """
        if isinstance(model, str):
            model = cls(path=model) if "/" in model or model.endswith(".gguf") else cls(model)
        if not model.path:
            return model
        return structs.replace(model, path=str(Path(model.path).expanduser().absolute()))


class SessionConfig(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How a session is opened.

    :param workspace: scope of ``name``: the same name in two workspaces is two sessions.
    :param context: tokens the session must be able to hold; 0 takes what the plan gives.
    :param kv_type: type of the KV cells; part of the manifest.
    :param session_class: what the session is for; weighs in what leaves memory first.
    :param pin: its KV is the last to leave.
    :param ttl: seconds after its last use when the node forgets the session; 0 is never.
    :param shift: when the window is full, before or in an answer, the oldest turns leave the conversation. The stream
        and the receipt say how many. System messages, the stable prefix, tools and the newest turn stay.
    :param truncate: the same before an answer only. Without both, what does not fit is a ``ContextOverflowError``.
    :param adapters: LoRA adapters on the model, all active from its load on; part of the manifest. Their order says
        nothing. Where others are resident, the model is loaded again with these.
    :raises InvalidRequestError: a value outside its range, or ``shift`` and ``truncate`` both.
    """

    workspace: str = "default"
    name: str = "default"
    context: int = 0
    kv_type: KVType = "f16"
    session_class: SessionClass = "main"
    pin: bool = False
    ttl: float = 0.0
    shift: bool = False
    truncate: bool = False
    adapters: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        check_name("workspace", self.workspace)
        check_name("session name", self.name)
        if not 0 <= self.context <= 2**31 - 1:
            raise InvalidRequestError(f"context must be 0 or more tokens, not {self.context}", parameter="context")
        if not 0 <= self.ttl <= 10**9:
            raise InvalidRequestError(f"ttl must be 0 or more seconds, not {self.ttl}", parameter="ttl")
        if not isinstance(self.adapters, tuple) or len(self.adapters) > MAX_ADAPTERS:
            raise InvalidRequestError(
                f"adapters takes a tuple of at most {MAX_ADAPTERS}, not {self.adapters!r:.80}", parameter="adapters"
            )
        self.overflow()

    def absolute(self) -> SessionConfig:
        """The same, where every adapter is what :meth:`Adapter.of` makes of it: with an absolute path."""
        return structs.replace(self, adapters=tuple(map(Adapter.of, self.adapters))) if self.adapters else self

    def overflow(self, shift: bool | None = None, truncate: bool | None = None) -> Overflow:
        """What a call does that was given these; ``None`` is the session's own.

        :raises InvalidRequestError: both.
        """
        shift = self.shift if shift is None else shift
        truncate = self.truncate if truncate is None else truncate
        if shift and truncate:
            raise InvalidRequestError(
                "shift and truncate exclude each other: set one, and the other to False where the session has it",
                parameter="truncate",
            )
        return "shift" if shift else "truncate" if truncate else "error"


class SessionHandle(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Names a session towards the node. It is all a client holds: the node keeps no table of handles that could leak.

    :param ref: the resolved model, with its digest.
    :param generation: of the residency that the client last saw.
    :param epoch: of the owner that the client last saw.
    """

    workspace: str
    name: str
    ref: ModelRef
    generation: int
    window: int = 0
    epoch: int = 0


class Plan(Struct, frozen=True, kw_only=True):
    """The capacity planner's answer, with its arithmetic. All sizes are bytes.

    ``required = weights + kv + overhead``; ``usable = free - reserve``; it fits when ``required <= usable``.

    :param context: tokens one session can hold. :param cells: KV cells in all, shared by the sessions.
    :param max_context: the largest ``context`` that would fit now.
    :param gpu_layers: layers on the device; -1 is all, 0 is none (processor). :param device: where it runs.
    """

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
    device: str = "cpu"
    gpu_layers: int = 0
    reason: str = ""
    alternatives: tuple[str, ...] = ()


class ModelDescription(Struct, frozen=True, kw_only=True):
    """What a model is and how it would run here, read without loading it.

    :param context_length: the window it was trained for, in tokens.
    :param template: what its chat template can do: rendered once the model was resident, before that what its text
        mentions. ``tools`` and ``thinking`` say the same.
    :param plan: of a model that does not generate: for its vectors.
    :param generates: it writes text. :param embeds: it makes vectors; without both it ranks (``pooling`` is ``rank``).
    :param pooling: ``mean``, ``cls``, ``last`` or ``rank`` where its file says so. :param adapts: LoRA adapters can go
        on it.
    :param adapters: those that were asked for, as they were found; their files count as weights in the plan.
    """

    name: str
    type: str
    digest: str
    path: str
    size: int
    architecture: str = ""
    quantization: str = ""
    parameters: int = 0
    layers: int = 0
    context_length: int = 0
    sliding_window: int = 0
    vocabulary: int = 0
    has_template: bool = False
    tools: bool = False
    thinking: bool = False
    resident: bool = False
    plan: Plan
    template: TemplateFacts = TemplateFacts(source="declared")
    generates: bool = True
    embeds: bool = True
    pooling: str = ""
    adapters: tuple[Adapter, ...] = ()
    adapts: bool = True


class InstalledModel(Struct, frozen=True, kw_only=True):
    """A model that the node can name. ``error`` says why a file cannot be served."""

    name: str
    type: str
    path: str
    size: int
    modified: float = 0.0
    bundled: bool = False
    resident: bool = False
    error: str = ""


class EngineStatus(Struct, frozen=True, kw_only=True):
    """The engine process."""

    pid: int
    backend: str
    build: str = ""
    rss: int = 0


class SideStatus(Struct, frozen=True, kw_only=True):
    """An engine process beside that of the resident model: see :meth:`modeld.session.ModelService.embed`.

    :param task: ``embed``, or ``vocabulary``: it has no weights, and counts tokens of models that are not resident.
    :param context: tokens that one input may have.
    """

    task: Literal["embed", "vocabulary"]
    state: SlotState
    model: str
    digest: str
    pid: int
    backend: str
    context: int = 0
    rss: int = 0


class ClientInfo(Struct, frozen=True, kw_only=True):
    """A client that called lately, as it names itself. ``address`` is ``unix`` or that of a TCP peer."""

    pid: int
    program: str
    address: str
    calls: int = 0
    idle_seconds: float = 0.0


class Ledger(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where KV is, all in bytes but the cells. A budget of 0: nothing is kept there.

    :param cells: of the engine, each holds one token; ``cells_used``: those that sessions share are counted once.
    :param hot: in the engine. :param ram: left the engine, and can come back without being computed.
    :param disk: likewise, in files; they outlive the engine.
    """

    cells: int = 0
    cells_used: int = 0
    hot: int = 0
    hot_budget: int = 0
    ram: int = 0
    ram_budget: int = 0
    disk: int = 0
    disk_budget: int = 0


class AuditReport(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What was found when everything that is held was counted again.

    :param faults: a sentence for each place where ledger and count differ, or where something is held for nobody.
    """

    ledger: Ledger = Ledger()
    faults: tuple[str, ...] = ()


class Totals(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What all calls on the node's sessions cost since it started, by whatever way they came. Tokens, as in receipts.

    :param calls: that ended with a receipt. :param generated: tokens of answers.
    :param crashes: of the resident model's engine process.
    """

    calls: int = 0
    reused: int = 0
    restored: int = 0
    prefilled: int = 0
    generated: int = 0
    crashes: int = 0


class NodeStatus(Struct, frozen=True, kw_only=True):
    """The node, readable at any time, during loads and decodes too.

    :param generation: grows at each load. :param idle_ttl: seconds without use until the engine exits; 0 never.
    :param kv_type: of the resident model's KV cells, ``""`` without one.
    :param clients: those that called over a wire within the last minute. :param sides: engines beside ``engine``.
    :param adapters: that are active on the resident model.
    :param http: where HTTP is served, or ``off`` and why; empty: the node's program has none.
    :param plan: of the resident model, as it was made before its load.
    :param waiting: calls that wait for a model: it is being loaded, or others use another one.
    """

    instance_id: str
    epoch: int
    pid: int
    version: str
    data_root: str
    endpoints: tuple[str, ...]
    state: SlotState
    generation: int
    uptime: float
    idle_ttl: float
    rss: int = 0
    model: str = ""
    digest: str = ""
    context: int = 0
    ledger: Ledger = Ledger()
    engine: EngineStatus | None = None
    sessions: int = 0
    active: int = 0
    idle_seconds: float = 0.0
    last_error: str = ""
    clients: tuple[ClientInfo, ...] = ()
    sides: tuple[SideStatus, ...] = ()
    kv_type: str = ""
    adapters: tuple[Adapter, ...] = ()
    http: str = ""
    plan: Plan | None = None
    waiting: int = 0
    totals: Totals = Totals()


class SessionInfo(Struct, frozen=True, kw_only=True):
    """A session as ``ps`` shows it.

    :param tape: tokens of its conversation. :param hot: tokens whose KV the engine holds now.
    :param kept: leading tokens of the tape that need not be computed again: those the engine holds, for this session
        or another, and those that can come back. ``None``: not known; the model is not resident, or the engine busy.
    :param adapters: with which it runs.
    :param shared: the part of ``kept`` that the engine holds for other sessions. :param ram: the part that left the
        engine and comes back from main memory. :param disk: from files. All 0 where ``kept`` is not known.
    :param last_receipt: of its last call since the node came to know it.
    """

    workspace: str
    name: str
    model: str
    digest: str
    generation: int
    tape: int
    hot: int
    window: int
    active: bool = False
    handles: int = 0
    session_class: SessionClass = "main"
    pin: bool = False
    last_used: float = 0.0
    engine_pid: int = 0
    kept: int | None = None
    adapters: tuple[Adapter, ...] = ()
    shared: int = 0
    ram: int = 0
    disk: int = 0
    last_receipt: Receipt | None = None

    def handle(self, node: NodeStatus) -> SessionHandle:
        """Names the session towards ``node``; one whose model is not resident is found by name and digest alone."""
        kind = node.engine.backend if node.engine is not None and node.digest == self.digest else ""
        return SessionHandle(
            workspace=self.workspace,
            name=self.name,
            ref=ModelRef(self.model, type=kind, digest=self.digest),
            generation=self.generation,
            window=self.window,
            epoch=node.epoch,
        )


class PrefixStatus(Struct, frozen=True, kw_only=True):
    """After ``ensure_prefix``: the stable prefix is in the KV.

    What followed it on the tape stays until the next call says whether it is needed.

    :param available: tokens that still fit the window after the prefix.
    """

    receipt: Receipt
    prefix_tokens: int
    available: int
    prefix_token_hash: str
    manifest_digest: str


class SuffixStatus(Struct, frozen=True, kw_only=True):
    """After ``prefill_suffix``: prefix and suffix are in the KV, ready for ``decode``."""

    receipt: Receipt
    prefix_tokens: int
    suffix_tokens: int
    available: int
    manifest_digest: str


class SnapshotInfo(Struct, frozen=True, kw_only=True):
    """A saved session state. ``id`` is the SHA-256 of the file.

    :param size: of the file, in bytes. :param created: seconds since 1970.
    :param ref: the model, without a path. :param config: how the session was opened.
    :param error: why the file cannot be used; then only ``id`` and ``size`` are known.
    """

    id: str
    tokens: int
    size: int
    manifest_digest: str
    tape_hash: str
    created: float = 0.0
    ref: ModelRef | None = None
    config: SessionConfig | None = None
    error: str = ""


class Break(Struct, frozen=True, kw_only=True):
    """A call that could not reuse all of its session's tape. ``at``: seconds since 1970, when it ended."""

    at: float
    stop: ReuseStop


class BreakTotal(Struct, frozen=True, kw_only=True):
    """What all breaks of one cause cost a session.

    :param count: how many. :param tokens: computed again. :param seconds: likewise, as in the receipts.
    """

    reason: ReuseReason
    count: int
    tokens: int
    seconds: float


class ContextReport(Struct, frozen=True, kw_only=True):
    """What ``explain`` tells: the session's context, its identity, and what it cost so far.

    :param ahead_tokens: computed while nobody waited, because the next turn would need them; in no call's receipt.
    Of a session whose model is not resident it tells what the node remembers.

    :param breaks: the last ten calls that could not reuse the whole tape, the oldest first.
    :param break_totals: all of them since the node came to know the session, the dearest cause first.
    """

    workspace: str
    name: str
    model: str
    generation: int
    resident: int
    prefix_tokens: int
    window: int
    available: int
    tape_hash: str
    manifest: Manifest | None = None
    segments: tuple[Segment, ...] = ()
    last_receipt: Receipt | None = None
    prefill_calls: int = 0
    prefill_tokens: int = 0
    decode_calls: int = 0
    decode_tokens: int = 0
    ahead_tokens: int = 0
    fatal: str = ""
    breaks: tuple[Break, ...] = ()
    break_totals: tuple[BreakTotal, ...] = ()
