"""Connect to a node by its address: on another machine, or of another data root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeld.errors import DeadlineExceededError, InvalidRequestError, NodeUnreachableError

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord
    from modeld.session.values import NodeStatus
    from modeld.transport.grpc.client import RemoteNode as Client
    from modeld.transport.grpc.options import Access
    from modeld.transport.pinning import RemoteURL


async def connect_remote(
    url: str,
    *,
    token: str,
    pin: str | None = None,
    timeout: float = 10.0,  # noqa: ASYNC109 - of each step, so that the error can say which one
) -> Client:
    """Connect to the node at ``url``, and learn who owns it.

    A node that takes over later is not followed: calls that change something then fail with ``stale_epoch``; connect
    again. The connection belongs to the running event loop.

    :param url: ``modeld+tls://HOST:PORT``, or ``modeld://HOST:PORT`` on loopback.
    :param token: the node's; sent to nobody but who has shown the pinned certificate, where there is a pin.
    :param pin: ``sha256:`` and the hex digest of the only certificate to trust. ``None``: one that a public authority
        issued for this host.
    :param timeout: seconds for each step: at most two TLS handshakes and two calls.
    :raises InvalidRequestError: url, token or pin is none. :raises TLSRequiredError: plain and beyond loopback.
    :raises NodeUnreachableError: nobody answers; with ``reason`` ``pin`` or ``certificate`` somebody else does.
    :raises TokenWrongError: the token is another node's.
    """
    from modeld.transport.grpc.client import RemoteNode
    from modeld.transport.grpc.options import Access
    from modeld.transport.pinning import pinned_certificate

    where, token, pin = check_remote(url, token=token, pin=pin)
    certificate = None if pin is None else await pinned_certificate(where, pin, timeout)
    access = Access(token=token, certificate=certificate)
    record = _record(where.endpoint, await _status(where.endpoint, access, timeout))
    client = RemoteNode(where.endpoint, record, access=access)
    try:
        await client.prove(timeout)
    except BaseException:
        await client.aclose()
        raise
    return client


def check_remote(url: str, *, token: str, pin: str | None = None) -> tuple[RemoteURL, str, str | None]:
    """Address, token and pin of a node as :func:`connect_remote` takes them. Nobody is called.

    :raises InvalidRequestError: one of them is none. :raises TLSRequiredError: plain and beyond loopback.
    """
    from modeld.transport.pinning import checked_pin, parse_url
    from modeld.transport.security import checked_token

    where = parse_url(url)
    if pin is not None and not where.tls:
        raise InvalidRequestError(f"a pin needs TLS: write modeld+tls://{where.address}", parameter="pin")
    return where, checked_token(token), None if pin is None else checked_pin(pin)


async def _status(endpoint: str, access: Access, seconds: float) -> NodeStatus:
    """What the node says of itself, before anything else is known of it."""
    from modeld.transport.grpc.client import RemoteNode

    async with RemoteNode(endpoint, _unknown(endpoint), timeout=seconds, access=access) as stranger:
        try:
            return await stranger.status()
        except DeadlineExceededError:
            text = f"no node answers at {endpoint} within {seconds:g} s"
            raise NodeUnreachableError(text, endpoint=endpoint, pid=0) from None
        except NodeUnreachableError as error:
            if "CERTIFICATE_VERIFY_FAILED" in error.message or "Hostname Verification" in error.message:
                text = f"the certificate at {endpoint} is none that a public authority issued for that name; pin it"
                hint = "the node prints its pin at its start"
                raise NodeUnreachableError(f"{text} ({hint})", endpoint=endpoint, pid=0, reason="certificate") from None
            # Nobody knows its process yet.
            text = error.message.replace(" (pid 0)", "")
            raise NodeUnreachableError(text, endpoint=endpoint, pid=0) from error


def _unknown(endpoint: str) -> OwnerRecord:
    return _make_record(endpoint, instance_id="0" * 32, epoch=0, pid=0, version="", uptime=0.0)


def _record(endpoint: str, status: NodeStatus) -> OwnerRecord:
    return _make_record(
        endpoint,
        instance_id=status.instance_id,
        epoch=status.epoch,
        pid=status.pid,
        version=status.version,
        uptime=status.uptime,
    )


def _make_record(endpoint: str, *, instance_id: str, epoch: int, pid: int, version: str, uptime: float) -> OwnerRecord:
    """Of what identifies a process only the number is known from afar."""
    import time

    from modeld.node.record import OwnerRecord

    return OwnerRecord(
        instance_id=instance_id,
        epoch=epoch,
        pid=pid,
        boot_id="",
        start_time=None,
        host="",
        endpoint=endpoint,
        endpoints=(endpoint,),
        ttl=10.0,
        version=version,
        started=time.time() - uptime,
    )
