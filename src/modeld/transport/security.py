"""Who may use a node over TCP, and how it proves itself: the token, and the certificate.

The token is a shared secret of everybody who may use the node; it names no user and has no end. Who holds it can do
all that the owner's own commands can. What TLS adds: nobody between reads or changes what is said, and, with a pin,
only the holder of that one private key is taken for the node.

Not guaranteed: over plain TCP on loopback any process of the machine can listen at the port of a node that has ended,
and is then sent the token of who calls it. On a machine that several people share use ``--tls`` there too, or the
unix socket.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import ssl
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from msgspec import Struct

from modeld.errors import (
    InvalidRequestError,
    MissingDependencyError,
    NodeError,
    TLSRequiredError,
    TokenMissingError,
    TokenWrongError,
)
from modeld.node.private_file import read_private, write_private

TOKEN_NAME: Final = "token"
IDENTITY_NAME: Final = "tls.pem"
"""Private key and certificate in one file: a crash cannot leave a key without its certificate."""

AUTHORIZATION: Final = "authorization"
TLS_SCHEME: Final = "modeld+tls://"

_TOKEN: Final = re.compile(r"[\x21-\x7e]{16,512}")
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----\s*")
_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----[^-]+-----END \1-----\s*")
_TEN_YEARS: Final = timedelta(days=3652)


class Identity(Struct, frozen=True):
    """Private key and certificate chain, both PEM. The key is not in ``repr``."""

    key: bytes
    chain: bytes

    @property
    def pin(self) -> str:
        """``sha256:`` and the hex digest of the certificate: what clients pin."""
        return pin_of(_first_certificate(self.chain))

    def __repr__(self) -> str:
        return f"Identity(pin={self.pin!r})"


class Listener(Struct, frozen=True):
    """Where to listen over TCP (port 0: a free one), and what callers must show. The token is not in ``repr``."""

    host: str
    port: int
    token: str
    identity: Identity | None = None

    def __repr__(self) -> str:
        return f"Listener(host={self.host!r}, port={self.port}, identity={self.identity!r})"

    @property
    def address(self) -> str:
        """``HOST:PORT``, with brackets about IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def make_listener(
    data_root: Path,
    host: str,
    port: int,
    *,
    tls: bool | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Listener:
    """The listener that was asked for. Token and certificate are made where ``data_root`` has none yet.

    :param tls: ``None`` decides by the address: beyond loopback always.
    :param certificate: PEM, with ``key``; without both a self-made one.
    :raises TLSRequiredError: TLS was declined beyond loopback.
    :raises MissingDependencyError: a certificate must be made and the extra ``tls`` is not installed.
    :raises InvalidRequestError: certificate and key cannot be used. :raises NodeError: files cannot be read or written.
    """
    if (certificate is None) != (key is None):
        raise InvalidRequestError("a certificate needs its key, and a key its certificate", parameter="tls_cert")
    if certificate is not None and tls is False:
        raise InvalidRequestError("a certificate was given and TLS declined; choose one of both", parameter="tls")
    wanted = certificate is not None or (not is_loopback(host) if tls is None else tls)
    if not wanted:
        require_loopback(host, "listen")
    identity = None
    if certificate is not None and key is not None:
        identity = read_identity(certificate, key)
    elif wanted:
        identity = ensure_identity(data_root, host)
    return Listener(host, port, ensure_token(data_root), identity)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is 127/8, ::1 or ``localhost``. No other name is looked up, and none is believed."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def require_loopback(host: str, verb: str) -> None:
    """Check that plain TCP is allowed at ``host``.

    :raises TLSRequiredError: it is not a loopback address.
    """
    if not is_loopback(host):
        text = f"cannot {verb} at {host!r} without TLS: token and prompts would cross the network in the clear"
        raise TLSRequiredError(f"{text}; use TLS there, or 127.0.0.1", host=host)


def token_path(data_root: Path) -> Path:
    """Where the token of a data root lies."""
    return data_root / TOKEN_NAME


def read_token(data_root: Path) -> str:
    """The token of ``data_root``.

    :raises TokenMissingError: there is none yet. :raises NodeError: it cannot be used: open to others, damaged.
    """
    path = token_path(data_root)
    data = read_private(path)
    if data is None:
        raise TokenMissingError(f"there is no token at {str(path)!r}; a node makes it when it listens over TCP")
    try:
        return checked_token(data.decode("ascii", "replace"))
    except InvalidRequestError as error:
        raise NodeError(f"{str(path)!r} holds no token: {error.message}; remove it", path=str(path)) from None


def ensure_token(data_root: Path) -> str:
    """The token of ``data_root``, made where there is none: 32 random bytes, base64url.

    :raises NodeError: it cannot be read, written or used.
    """
    try:
        return read_token(data_root)
    except TokenMissingError:
        write_private(token_path(data_root), secrets.token_urlsafe(32).encode() + b"\n", replace=False)
        # Read back: another process may have made it first.
        return read_token(data_root)


def checked_token(text: str) -> str:
    """``text`` as a token, without the white space around it.

    :raises InvalidRequestError: it cannot be one. The message does not hold it.
    """
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidRequestError(
            f"a token has 16 to 512 ASCII characters and no space, this has {len(token)} characters", parameter="token"
        )
    return token


def check_authorization(values: Sequence[str | bytes], token: str) -> None:
    """Check the ``authorization`` metadata of a call, in a time that does not tell how much of it is right.

    :raises TokenMissingError: no ``Bearer`` token is there. :raises TokenWrongError: it is another one.
    """
    hint = "`modeld token --show` on the node's machine shows it"
    given = [value if isinstance(value, bytes) else value.encode() for value in values]
    if not any(value[:7].lower() == b"bearer " for value in given):
        raise TokenMissingError(f"over TCP this node needs its token as `authorization: Bearer ...`; {hint}")
    if len(given) != 1 or not hmac.compare_digest(given[0][7:].strip(), token.encode()):
        raise TokenWrongError(f"the token is not this node's; {hint}")


def pin_of(certificate: bytes) -> str:
    """The pin of a DER certificate: ``sha256:`` and its hex digest."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def read_identity(certificate: Path, key: Path) -> Identity:
    """The identity in two PEM files, the node's own certificate first. The key may be a group's, but not everybody's.

    :raises InvalidRequestError: they are not a certificate and its key, or the key has a password.
    :raises NodeError: they cannot be read, or everybody may read the key.
    """
    try:
        if key.stat().st_mode & stat.S_IRWXO:
            raise NodeError(f"everybody may use the key {str(key)!r}; run `chmod o-rwx` on it", path=str(key))
        identity = Identity(key.read_bytes(), certificate.read_bytes())
    except OSError as error:
        raise NodeError(f"cannot read {error.filename!r}: {error.strerror}", path=str(error.filename)) from error
    try:
        _first_certificate(identity.chain)
        # It reads files only, and compares both; a password is never asked for.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        text = f"{str(certificate)!r} and {str(key)!r} are no certificate and its key without password: {reason}"
        raise InvalidRequestError(text, parameter="tls_cert") from None
    return identity


def ensure_identity(data_root: Path, host: str) -> Identity:
    """The self-made identity of ``data_root``, made where there is none.

    It is made once, so that pins stay: EC P-256, valid for ten years, for ``host`` and the names of this machine at
    that time. A pinned certificate is trusted whatever its names.

    :raises MissingDependencyError: it must be made and the extra ``tls`` is not installed.
    :raises NodeError: it cannot be read, written or used.
    """
    path = data_root / IDENTITY_NAME
    data = read_private(path)
    if data is None:
        write_private(path, _make_identity(host), replace=False)
        # Read back: another process may have made it first.
        data = read_private(path) or b""
    key, chain = _KEY.search(data), _CERTIFICATE.search(data)
    if key is None or chain is None:
        raise NodeError(
            f"{str(path)!r} holds no key and certificate; remove it, and tell clients the new pin", path=str(path)
        )
    return Identity(key[0], chain[0])


def own_pin(data_root: Path, certificate: Path | None) -> str:
    """The pin that clients of this node need: of ``certificate``, or of the self-made one.

    :raises NodeError: it cannot be read. :raises ValueError: it is none.
    """
    if certificate is not None:
        return pin_of(_first_certificate(certificate.read_bytes()))
    return pin_of(_first_certificate(read_private(data_root / IDENTITY_NAME) or b""))


def _first_certificate(chain: bytes) -> bytes:
    """DER of the first certificate.

    :raises ValueError: there is none.
    """
    found = _CERTIFICATE.search(chain)
    if found is None:
        raise ValueError("no certificate in PEM form")
    try:
        return base64.b64decode(b"".join(found[0].split(b"-----")[2].split()), validate=True)
    except binascii.Error:
        raise ValueError("a certificate that is no base64") from None


def _make_identity(host: str) -> bytes:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError as error:
        text = "TLS with a certificate of our own needs cryptography: pip install 'modeld[tls]'"
        raise MissingDependencyError(f"{text} (or give --tls-cert and --tls-key)", extra="tls") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "modeld")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = []
    for text in _names(host):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            names.append(x509.DNSName(text))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of two machines differ.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + _TEN_YEARS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _names(host: str) -> list[str]:
    """``modeld`` first: a client that pins can always ask for that name."""
    found = ["modeld", "localhost", "127.0.0.1", "::1", host, socket.gethostname()]
    usable = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9a-fA-F:.]{2,45}")
    return [name for name in dict.fromkeys(found) if name not in ("0.0.0.0", "::") and usable.fullmatch(name)]
