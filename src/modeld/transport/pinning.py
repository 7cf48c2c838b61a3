"""The address of a remote node, and the one certificate that is trusted there."""

from __future__ import annotations

import asyncio
import hmac
import re
import ssl
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from modeld.errors import InvalidRequestError, NodeUnreachableError
from modeld.transport.security import TLS_SCHEME, pin_of, require_loopback

_URL: Final = re.compile(
    r"modeld(\+tls)?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?):([0-9]{1,5})"
)
_PIN: Final = re.compile(r"sha256:([0-9a-f]{64})")


class RemoteURL(Struct, frozen=True):
    """``modeld://HOST:PORT``, plain and for loopback only, or ``modeld+tls://HOST:PORT``."""

    host: str
    port: int
    tls: bool

    @property
    def address(self) -> str:
        """``HOST:PORT``, with brackets about IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def endpoint(self) -> str:
        """As an owner record has it, and as a client dials it."""
        return f"{TLS_SCHEME}{self.address}" if self.tls else self.address


class PinnedCertificate(Struct, frozen=True):
    """The only certificate that is trusted, as PEM, and a name that it holds."""

    pem: bytes
    name: str


def parse_url(text: str) -> RemoteURL:
    """The address in ``text``.

    :raises InvalidRequestError: it is none. :raises TLSRequiredError: it is plain and beyond loopback.
    """
    match = _URL.fullmatch(text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InvalidRequestError(
            f"{text[:200]!r} is no address of a node: write modeld+tls://HOST:PORT, or modeld://127.0.0.1:PORT",
            parameter="url",
        )
    url = RemoteURL(match[2].strip("[]"), int(match[3]), match[1] is not None)
    if not url.tls:
        require_loopback(url.host, "reach a node")
    return url


def checked_pin(text: str) -> str:
    """``text`` as a pin, in lower case; colons between the bytes, as OpenSSL prints them, are left out.

    :raises InvalidRequestError: it is none.
    """
    scheme, _, digits = text.strip().lower().partition(":")
    pin = f"{scheme}:{digits.replace(':', '')}"
    if not _PIN.fullmatch(pin):
        raise InvalidRequestError(
            f"{text[:100]!r} is no pin: write sha256: and the 64 hex digits that the node printed", parameter="pin"
        )
    return pin


async def pinned_certificate(url: RemoteURL, pin: str, seconds: float) -> PinnedCertificate:
    """Fetch the certificate at ``url``, and check that it is the pinned one and valid now.

    Two handshakes without a word of ours: the first takes the certificate from whoever answers, the second proves that
    he has its key, with that certificate as the only trust. The connection that calls use proves it once more.

    :param seconds: for each handshake.
    :raises NodeUnreachableError: nobody answers, or ``reason`` is ``pin`` (another certificate; ``expected`` and
        ``actual`` name both) or ``certificate`` (expired, or not his).
    """
    found = (await _handshake(url, _context(), seconds)).getpeercert(binary_form=True) or b""
    actual = pin_of(found)
    if not hmac.compare_digest(actual, pin):
        raise NodeUnreachableError(
            f"{url.address} shows the certificate {actual} and not the pinned {pin}: somebody else answers there, or "
            f"the node has a new one; compare with what it prints at its start before you pin that",
            endpoint=url.endpoint,
            pid=0,
            reason="pin",
            expected=pin,
            actual=actual,
        )
    trusting = _context()
    # The node's own certificate is enough, also where an authority issued it.
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.verify_mode = ssl.CERT_REQUIRED
    trusting.load_verify_locations(cadata=found)
    told = (await _handshake(url, trusting, seconds)).getpeercert()
    names = _names(told or {})
    pem = ssl.DER_cert_to_PEM_cert(found).encode()
    return PinnedCertificate(pem, url.host if url.host in names else (names or [url.host])[0])


def _context() -> ssl.SSLContext:
    """Trusts anybody. The pin decides, not the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def _handshake(url: RemoteURL, context: ssl.SSLContext, seconds: float) -> ssl.SSLObject:
    """Connect, shake hands and leave."""
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        text = f"the pinned certificate of {url.address} is not accepted: {error.verify_message}"
        raise NodeUnreachableError(
            f"{text}; give the node a new one and pin that", endpoint=url.endpoint, pid=0, reason="certificate"
        ) from error
    except TimeoutError:
        raise _unreachable(url, f"no answer within {seconds:g} s") from None
    except (OSError, ssl.SSLError) as error:
        raise _unreachable(url, str(error)) from error
    shaken = writer.get_extra_info("ssl_object")
    assert isinstance(shaken, ssl.SSLObject)
    # Nobody waits for the goodbye of the other side.
    writer.transport.abort()
    return shaken


def _unreachable(url: RemoteURL, reason: str) -> NodeUnreachableError:
    return NodeUnreachableError(
        f"no node can be reached at {url.address} with TLS: {reason}", endpoint=url.endpoint, pid=0
    )


def _names(certificate: Mapping[str, Any]) -> list[str]:
    """The names that gRPC accepts for it: DNS names without wildcards, and addresses; without any, the common name."""
    alternatives = certificate.get("subjectAltName", ())
    names = [value for kind, value in alternatives if kind in ("DNS", "IP Address") and "*" not in value]
    if alternatives:
        return names
    return [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
