"""Hazards of TCP: callers without the token, impostors, certificates that are not the pinned one, secrets that leak."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from modeld.errors import (
    InvalidRequestError,
    ManifestMismatchError,
    ModeldError,
    NodeUnreachableError,
    StaleEpochError,
    TLSRequiredError,
    TokenMissingError,
    TokenWrongError,
)
from modeld.node.record import OwnerRecord
from modeld.remote import connect_remote
from modeld.session import NodeStatus
from modeld.transport.errors import DETAILS_KEY
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.grpc.options import Access
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.methods import METHODS
from modeld.transport.pinning import PinnedCertificate, checked_pin, parse_url, pinned_certificate
from modeld.transport.security import Identity, Listener, ensure_identity, make_listener, pin_of

pytestmark = pytest.mark.anyio

TOKEN = "the-token-of-this-node-4711"
OTHER = "some-other-token-of-40-characters-or-so-x"
INSTANCE = "0123456789abcdef0123456789abcdef"
EPOCH = 7
HOST = "127.0.0.1"


def certificate(
    *names: str, days: float = 1, issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, Identity]:
    """One for ``names`` (``modeld`` without), that ends in ``days`` and began the day before the last two."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=3))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names or ("modeld",)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made, key, Identity(private, pem)


class Node:
    """A server over TCP."""

    def __init__(self, endpoint: str, identity: Identity | None, make: Callable[..., OwnerRecord]) -> None:
        self.endpoint = endpoint
        self.identity = identity
        self.make = make
        self.pin = identity.pin if identity else None
        self.url = endpoint if identity else f"modeld://{endpoint}"

    def record(self, **values: object) -> OwnerRecord:
        return self.make(self.endpoint, **({"instance_id": INSTANCE, "epoch": EPOCH} | values))

    async def access(self, token: str = TOKEN) -> Access:
        if self.pin is None:
            return Access(token=token)
        return Access(token=token, certificate=await pinned_certificate(parse_url(self.url), self.pin, 5))


Serve = Callable[[Identity | None], "asynccontextmanager[Node]"]


@pytest.fixture
def serve(service: Any, tmp_path: Path, record_of: Callable[..., OwnerRecord]) -> Serve:
    said = service.status

    async def status() -> NodeStatus:
        return msgspec.structs.replace(await said(), instance_id=INSTANCE, epoch=EPOCH)

    service.status = status

    @asynccontextmanager
    async def serving(identity: Identity | None) -> AsyncIterator[Node]:
        server = GrpcServer(service, instance_id=INSTANCE, epoch=EPOCH, on_shutdown=lambda: None)
        _, endpoint = await server.start(tmp_path / "s", Listener(HOST, 0, TOKEN, identity))
        try:
            yield Node(endpoint, identity, record_of)
        finally:
            await server.stop(0)

    return serving


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return ensure_identity(tmp_path / "root", HOST)


@pytest.fixture(params=["plain", "tls"])
async def node(request: pytest.FixtureRequest, serve: Serve, identity: Identity) -> AsyncIterator[Node]:
    async with serve(identity if request.param == "tls" else None) as node:
        yield node


async def test_who_has_token_and_pin_gets_all(node: Node) -> None:
    async with await connect_remote(node.url, token=TOKEN, pin=node.pin) as client:
        assert (client.record.epoch, client.record.instance_id) == (EPOCH, INSTANCE)
        await client.unload()
    async with RemoteNode(node.endpoint, node.record(), access=await node.access()) as client:
        await client.prove(5)
        session = await client.open_session("tiny")
        assert await client.models()
        assert await session.explain()


async def call(node: Node, access: Access, **record: object) -> None:
    async with RemoteNode(node.endpoint, node.record(**record), access=access, timeout=5) as client:
        await client.unload()


async def no_token(node: Node) -> None:
    access = await node.access()
    await call(node, Access(certificate=access.certificate))


async def wrong_token(node: Node) -> None:
    await call(node, await node.access(OTHER))


async def longer_token(node: Node) -> None:
    await call(node, await node.access(TOKEN + "x"))


async def old_epoch(node: Node) -> None:
    await call(node, await node.access(), epoch=EPOCH - 1)


async def old_epoch_and_wrong_token(node: Node) -> None:
    await call(node, await node.access(OTHER), epoch=EPOCH - 1)


async def old_epoch_in_the_middle(node: Node) -> None:
    async with RemoteNode(node.endpoint, node.record(epoch=EPOCH - 1), access=await node.access()) as client:
        await client.shutdown()


@pytest.mark.parametrize(
    ("attempt", "code", "error"),
    [
        (no_token, "token_missing", TokenMissingError),
        (wrong_token, "token_wrong", TokenWrongError),
        (longer_token, "token_wrong", TokenWrongError),
        (old_epoch, "stale_epoch", StaleEpochError),
        (old_epoch_in_the_middle, "stale_epoch", StaleEpochError),
        # Nobody without the token learns which epoch it is.
        (old_epoch_and_wrong_token, "token_wrong", TokenWrongError),
    ],
)
async def test_each_refusal_has_its_own_code(
    node: Node, attempt: Callable[[Node], Awaitable[None]], code: str, error: type[ModeldError]
) -> None:
    with pytest.raises(error) as caught:
        await attempt(node)
    assert caught.value.code == code
    assert TOKEN not in repr(caught.value)
    assert OTHER not in repr(caught.value)


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(60_000)


@pytest.mark.parametrize("count", [1, 5, 50])
async def test_an_upload_hears_why_however_much_of_it_is_under_way(node: Node, count: int) -> None:
    """A write that fails in that moment is an "Internal error from Core" of gRPC's, which must not be all."""
    async with RemoteNode(node.endpoint, node.record(), access=await node.access(OTHER), timeout=20) as stranger:
        for _ in range(20):
            with pytest.raises(TokenWrongError):
                await stranger.import_snapshot(pieces(count))


@pytest.mark.parametrize("taken", [0, 1, 3, 40])
async def test_an_upload_that_does_not_end_hears_why_it_is_refused(node: Node, service: Any, taken: int) -> None:
    async def refuse(data: AsyncIterator[bytes], *, snapshot_id: str) -> None:
        for _ in range(taken):
            await anext(data)
        raise ManifestMismatchError("of another model", field="model")

    service.import_snapshot = refuse
    async with RemoteNode(node.endpoint, node.record(), access=await node.access(), timeout=20) as client:
        for _ in range(10):
            with pytest.raises(ManifestMismatchError) as caught:
                await client.import_snapshot(pieces(10**9))
            assert caught.value.field == "model"


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::", "example.org", "localhost.example.org", ""])
async def test_nobody_speaks_in_the_clear_beyond_loopback(
    service: object, tmp_path: Path, record_of: Callable[..., OwnerRecord], host: str
) -> None:
    server = GrpcServer(service, instance_id=INSTANCE, epoch=EPOCH, on_shutdown=lambda: None)
    with pytest.raises(TLSRequiredError):
        await server.start(tmp_path / "s", Listener(host, 0, TOKEN))
    with pytest.raises(TLSRequiredError):
        make_listener(tmp_path / "root", host, 0, tls=False)
    # Not a packet leaves: making the client refuses.
    endpoint = f"[{host}]:1" if ":" in host else f"{host}:1"
    with pytest.raises(TLSRequiredError):
        RemoteNode(endpoint, record_of(endpoint), access=Access(token=TOKEN))
    if host:
        with pytest.raises(TLSRequiredError):
            await connect_remote(f"modeld://{endpoint}", token=TOKEN)
    assert not (tmp_path / "root").exists()


async def test_another_certificate_than_the_pinned_one_is_named(serve: Serve) -> None:
    pinned, shown = certificate()[2], certificate()[2]
    async with serve(shown) as node:
        with pytest.raises(NodeUnreachableError) as caught:
            await connect_remote(node.url, token=TOKEN, pin=pinned.pin)
    assert (caught.value.reason, caught.value.expected, caught.value.actual) == ("pin", pinned.pin, shown.pin)
    assert pinned.pin in caught.value.message
    assert shown.pin in caught.value.message


async def test_a_certificate_that_changes_after_the_look_is_refused(serve: Serve) -> None:
    """The second connection is to somebody else than the first: gRPC itself trusts the pinned one only."""
    pinned = certificate()[2]
    async with serve(certificate()[2]) as node:
        access = Access(token=TOKEN, certificate=PinnedCertificate(pinned.chain, "modeld"))
        with pytest.raises(NodeUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            await call(node, access)


@pytest.mark.parametrize("days", [-1.0, -0.01])
async def test_a_pinned_certificate_that_has_expired_is_refused(serve: Serve, days: float) -> None:
    async with serve(certificate(days=days)[2]) as node:
        with pytest.raises(NodeUnreachableError, match="expired") as caught:
            await connect_remote(node.url, token=TOKEN, pin=node.pin)
        assert caught.value.reason == "certificate"


async def test_without_a_pin_a_self_made_certificate_is_nobodys(serve: Serve, identity: Identity) -> None:
    async with serve(identity) as node:
        with pytest.raises(NodeUnreachableError, match="pin it") as caught:
            await connect_remote(node.url, token=TOKEN)
    assert caught.value.reason == "certificate"


@pytest.mark.parametrize("names", [("node.example.org",), ("*.example.org", "other.example.org"), ("modeld", HOST)])
async def test_a_pin_fits_whatever_the_certificate_is_called_and_whoever_issued_it(
    serve: Serve, names: tuple[str, ...]
) -> None:
    authority = certificate("authority.example.org")
    async with (
        serve(certificate(*names, issuer=authority[:2])[2]) as node,
        await connect_remote(node.url, token=TOKEN, pin=node.pin) as client,
    ):
        assert await client.models()


async def test_tls_and_plain_do_not_meet(serve: Serve, identity: Identity) -> None:
    async with serve(None) as node:
        with pytest.raises(NodeUnreachableError):
            await connect_remote(f"modeld+tls://{node.endpoint}", token=TOKEN, pin=identity.pin)
    async with serve(identity) as node:
        plain = node.endpoint.removeprefix("modeld+tls://")
        with pytest.raises(NodeUnreachableError):
            await connect_remote(f"modeld://{plain}", token=TOKEN)


@asynccontextmanager
async def listening(heard: bytearray, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Somebody at a port who only listens; at the end all his connections are closed."""
    running: set[asyncio.Task[None]] = set()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                heard.extend(data)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(listen, HOST, 0, ssl=context)
    async with server, asyncio.timeout(20):
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*running)


async def test_an_impostor_hears_no_token(identity: Identity, tmp_path: Path) -> None:
    heard = bytearray()
    impostor = certificate()[2]
    (tmp_path / "pem").write_bytes(impostor.key + impostor.chain)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")

    async with listening(heard, context) as port:
        for pin in (identity.pin, None):
            with pytest.raises(NodeUnreachableError):
                await connect_remote(f"modeld+tls://{HOST}:{port}", token=TOKEN, pin=pin, timeout=5)
    assert heard == b""


async def test_a_silent_impostor_holds_nobody_up() -> None:
    with socket.create_server((HOST, 0)) as silent:
        # The kernel takes the connections; nobody reads.
        port = silent.getsockname()[1]
        for scheme, pin in (("modeld+tls", "sha256:" + "0" * 64), ("modeld+tls", None), ("modeld", None)):
            url = f"{scheme}://{HOST}:{port}"
            with pytest.raises(NodeUnreachableError):
                await connect_remote(url, token=TOKEN, pin=pin, timeout=0.3)


METHOD_PATHS = [method.path for method in METHODS] + [
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/modeld.v1.Node/NobodyKnows",
    "/nobody.Knows/This",
]


@pytest.mark.parametrize("path", METHOD_PATHS)
@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), "token_missing"),
        ((("authorization", "Basic dTpw"),), "token_missing"),
        ((("authorization", TOKEN),), "token_missing"),
        ((("authorization", f"Bearer {OTHER}"),), "token_wrong"),
        ((("authorization", "Bearer "),), "token_wrong"),
        ((("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {OTHER}")), "token_wrong"),
    ],
)
async def test_every_method_wants_the_token_first(
    serve: Serve, path: str, metadata: tuple[tuple[str, str], ...], code: str
) -> None:
    async with serve(None) as node, grpc.aio.insecure_channel(node.endpoint) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(b"not even a message", metadata=metadata, timeout=5)
    error = caught.value
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    status = Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (code, "modeld")
    # All that a stranger is told.
    said = repr((error.details(), list(error.trailing_metadata()), list(error.initial_metadata())))
    for secret in (TOKEN, INSTANCE, "tiny"):
        assert secret not in said


async def test_a_stranger_lists_nothing(serve: Serve) -> None:
    """What ``grpcurl -plaintext HOST:PORT list`` does, and a health check."""
    async with serve(None) as node, grpc.aio.insecure_channel(node.endpoint) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        for metadata, served in (((), False), (Access(token=TOKEN).metadata, True)):
            info = stub.ServerReflectionInfo(metadata=metadata)
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), metadata=metadata)
            if served:
                await info.write(reflection_pb2.ServerReflectionRequest(list_services=""))
                await info.done_writing()
                assert len([reply async for reply in info]) == 1
                assert await check
            else:
                # Nothing is sent: a write that meets the refusal makes gRPC's client forget what the server said.
                with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                    await info.read()
                with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
                    await check


async def test_the_socket_needs_no_token_beside_tcp(serve: Serve, tmp_path: Path) -> None:
    async with serve(None) as node:
        endpoint = f"unix:{tmp_path / 's'}"
        async with RemoteNode(endpoint, node.record()) as client:
            await client.prove(5)
            await client.unload()


async def test_no_log_holds_the_token(node: Node, caplog: pytest.LogCaptureFixture, service: object) -> None:
    caplog.set_level(logging.DEBUG)
    for attempt in (no_token, wrong_token, old_epoch):
        with pytest.raises(ModeldError):
            await attempt(node)
    async with await connect_remote(node.url, token=TOKEN, pin=node.pin) as client:
        await client.status()
        shown = [repr(client), repr(vars(client)), repr(await node.access())]
    shown += [repr(Listener(HOST, 0, TOKEN, node.identity)), repr(node.identity), caplog.text]
    for text in shown:
        assert TOKEN not in text
        assert "PRIVATE KEY" not in text


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:1", "http://127.0.0.1:1", "modeld://127.0.0.1", "modeld://:1", "modeld+tls://h:0",
        "modeld+tls://h:65536", "modeld+tls://u@h:1", "modeld+tls://h:1/x", "modeld+tls://h:1 ", "modeld+tls://[::1:1",
        "modeld+tls://h%:1", "modeld+tls://-:1", "unix:/x", "modeld+tls://h:1\n",
    ],
)  # fmt: skip
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        await connect_remote(url, token=TOKEN)


async def test_a_pin_or_token_that_is_none_is_refused_and_not_repeated() -> None:
    assert checked_pin("SHA256:" + ":".join(["AB"] * 32)) == "sha256:" + "ab" * 32
    for pin in ("", "sha256:", "sha1:" + "0" * 40, "sha256:" + "g" * 64, "0" * 64):
        with pytest.raises(InvalidRequestError):
            await connect_remote("modeld+tls://127.0.0.1:1", token=TOKEN, pin=pin)
    with pytest.raises(InvalidRequestError, match="TLS"):
        await connect_remote("modeld://127.0.0.1:1", token=TOKEN, pin="sha256:" + "0" * 64)
    for token in ("", "short", "with space in the middle", "bad\x00" * 10, "ü" * 20, "x" * 513):
        with pytest.raises(InvalidRequestError) as caught:
            await connect_remote("modeld://127.0.0.1:1", token=token)
        assert not token or token not in str(caught.value)


def test_the_pin_is_what_openssl_calls_the_fingerprint() -> None:
    made, _, identity = certificate()
    assert identity.pin == "sha256:" + made.fingerprint(hashes.SHA256()).hex()
    assert pin_of(made.public_bytes(serialization.Encoding.DER)) == identity.pin


def test_the_self_made_certificate_fits_its_host(tmp_path: Path) -> None:
    identity = ensure_identity(tmp_path, "192.0.2.7")
    made = x509.load_pem_x509_certificate(identity.chain)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("192.0.2.7") in names.get_values_for_type(x509.IPAddress)
    assert "modeld" in names.get_values_for_type(x509.DNSName)
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)
    assert made.public_key().curve.name == "secp256r1"
    assert 3650 <= (made.not_valid_after_utc - datetime.now(UTC)).days <= 3653
    assert ensure_identity(tmp_path, "another-host") == identity
