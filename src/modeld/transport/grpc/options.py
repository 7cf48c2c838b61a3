"""Settings of channels and servers, and the targets that endpoints stand for."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from modeld.transport.errors import MAX_METADATA
from modeld.transport.methods import MAX_MESSAGE

Options = list[tuple[str, int | str]]

_BOTH: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    # A window that grows with the bandwidth lets megabytes of tokens pile up before a slow reader.
    ("grpc.http2.bdp_probe", 0),
)

_PING_MS: Final = 30_000


def server_options() -> Options:
    """Clients may ping every 10 s, also between calls; a port that is taken is an error, not shared."""
    return [
        *_BOTH,
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def channel_options() -> Options:
    """Half-open TCP is noticed within a minute; nothing is retried behind the caller's back, and no proxy is asked."""
    return [
        *_BOTH,
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PING_MS),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        # Without a pool of its own a new channel would wait out the reconnect pause of an older one to the same path.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.default_authority", "localhost"),
    ]


def target(endpoint: str) -> str:
    """What gRPC calls ``endpoint``: it reads ``unix:`` as a URI, so a path with a space or ``%`` must be quoted."""
    scheme, colon, path = endpoint.partition(":")
    return f"unix:{quote(path)}" if colon and scheme == "unix" else endpoint
