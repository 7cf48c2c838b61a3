"""The session contract: what a client may ask of a warm conversation, whoever serves it."""

from modeld.session.contract import ModelService, PartStream, Session
from modeld.session.manifest import Manifest, Segment, token_hash
from modeld.session.values import (
    Break,
    BreakTotal,
    ClientInfo,
    ContextReport,
    EngineStatus,
    InstalledModel,
    ModelDescription,
    ModelRef,
    NodeStatus,
    Plan,
    PrefixStatus,
    SessionConfig,
    SessionHandle,
    SessionInfo,
    SnapshotInfo,
    SuffixStatus,
)

__all__ = [
    "Break",
    "BreakTotal",
    "ClientInfo",
    "ContextReport",
    "EngineStatus",
    "InstalledModel",
    "Manifest",
    "ModelDescription",
    "ModelRef",
    "ModelService",
    "NodeStatus",
    "PartStream",
    "Plan",
    "PrefixStatus",
    "Segment",
    "Session",
    "SessionConfig",
    "SessionHandle",
    "SessionInfo",
    "SnapshotInfo",
    "SuffixStatus",
    "token_hash",
]
