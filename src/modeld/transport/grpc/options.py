"""Settings of channels and servers, and the channels that endpoints stand for."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import grpc
from msgspec import Struct

from modeld.transport.errors import MAX_METADATA
from modeld.transport.methods import MAX_MESSAGE
from modeld.transport.pinning import PinnedCertificate
from modeld.transport.security import AUTHORIZATION, TLS_SCHEME, require_loopback

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


class Access(Struct, frozen=True, kw_only=True):
    """What a client shows, and whom it trusts, over TCP. The token is not in ``repr``.

    :param certificate: the only one to trust; ``None``: those that public authorities issued.
    """

    token: str = ""
    certificate: PinnedCertificate | None = None

    def __repr__(self) -> str:
        return f"Access(certificate={self.certificate!r})"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """To be sent with every call."""
        return ((AUTHORIZATION, f"Bearer {self.token}"),) if self.token else ()


NO_ACCESS: Final = Access()


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
    ]


def open_channel(endpoint: str, access: Access) -> grpc.aio.Channel:
    """A channel to ``unix:/path``, ``HOST:PORT`` or ``modeld+tls://HOST:PORT``. It connects at the first call.

    :raises TLSRequiredError: plain TCP beyond loopback.
    """
    options = channel_options()
    if endpoint.startswith(TLS_SCHEME):
        # A name is only ever a name: without the scheme a host called "unix" would be a path.
        address = f"dns:///{endpoint.removeprefix(TLS_SCHEME)}"
        pinned = access.certificate
        if pinned is not None:
            # The pin has decided whom we talk to; gRPC cannot be told not to compare names.
            options += [("grpc.ssl_target_name_override", pinned.name), ("grpc.default_authority", pinned.name)]
        credentials = grpc.ssl_channel_credentials(pinned.pem if pinned else None)
        return grpc.aio.secure_channel(address, credentials, options=options)
    if not endpoint.startswith("unix:"):
        require_loopback(endpoint.rpartition(":")[0].strip("[]"), "reach a node")
    options.append(("grpc.default_authority", "localhost"))
    return grpc.aio.insecure_channel(target(endpoint), options=options)


def target(endpoint: str) -> str:
    """What gRPC calls ``endpoint``: it reads ``unix:`` as a URI, so a path with a space or ``%`` must be quoted."""
    scheme, colon, path = endpoint.partition(":")
    return f"unix:{quote(path)}" if colon and scheme == "unix" else endpoint
