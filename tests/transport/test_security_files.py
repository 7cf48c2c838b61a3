"""Hazards of secrets on disk: others may read them, two processes make them at once, a crash, a damaged file, links."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import (
    BackendNotFoundError,
    InvalidRequestError,
    MissingDependencyError,
    NodeError,
    TokenMissingError,
    TokenWrongError,
)
from modeld.node.backends import (
    FILE_NAME,
    ConfiguredBackend,
    add_backend,
    find_backend,
    list_backends,
    read_secret,
    remove_backend,
)
from modeld.node.private_file import MAX_BYTES, read_private, write_private
from modeld.transport.security import (
    IDENTITY_NAME,
    check_authorization,
    ensure_identity,
    ensure_token,
    is_loopback,
    make_listener,
    read_identity,
    read_token,
    token_path,
)

TOKEN = "a-token-of-the-tests-4711"


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def backend(name: str) -> ConfiguredBackend:
    return ConfiguredBackend(name=name, type="modeld", base_url="modeld://127.0.0.1:1")


def make_token(root: Path) -> Path:
    ensure_token(root)
    return token_path(root)


def make_identity(root: Path) -> Path:
    ensure_identity(root, "127.0.0.1")
    return root / IDENTITY_NAME


def make_backends(root: Path) -> Path:
    add_backend(root, backend("one"))
    return root / FILE_NAME


MAKERS = (make_token, make_identity, make_backends)
READERS: dict[Callable[[Path], Path], Callable[[Path], object]] = {
    make_token: ensure_token,
    make_identity: lambda root: ensure_identity(root, "127.0.0.1"),
    make_backends: list_backends,
}


@pytest.mark.parametrize("make", MAKERS)
def test_a_secret_is_ours_alone_whatever_the_umask(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    for umask in (0, 0o777):
        root = tmp_path / str(umask)
        root.mkdir(mode=0o700)
        old = os.umask(umask)
        try:
            path = make(root)
        finally:
            os.umask(old)
        assert mode(path) == 0o600
        assert os.listdir(root) == [path.name]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_use_is_refused(tmp_path: Path, make: Callable[[Path], Path], bits: int) -> None:
    path = make(tmp_path)
    before = path.read_bytes()
    path.chmod(bits)
    with pytest.raises(NodeError, match="chmod 600") as caught:
        READERS[make](tmp_path)
    assert TOKEN not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("damage", [b"", b"\n", b"\xff\x00" * 50, b"[" * 100_000, b"x" * (MAX_BYTES + 1)])
def test_a_damaged_secret_is_named_and_kept(tmp_path: Path, make: Callable[[Path], Path], damage: bytes) -> None:
    path = make(tmp_path)
    path.write_bytes(damage)
    with pytest.raises(NodeError, match=path.name):
        READERS[make](tmp_path)
    assert path.read_bytes() == damage


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_no_plain_file_is_refused_and_hangs_nobody(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    path.rename(tmp_path / "elsewhere")
    for plant in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path, 0o600), path.mkdir):
        plant()
        with pytest.raises(NodeError, match=path.name):
            READERS[make](tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_of_many_who_make_a_secret_at_once_all_read_the_same(tmp_path: Path) -> None:
    for make in (ensure_token, lambda root: ensure_identity(root, "h").pin):
        for number in range(10):
            root = tmp_path / f"{id(make)}-{number}"
            barrier, found = threading.Barrier(8), []

            def work(root: Path = root, make: Callable[[Path], str] = make) -> None:
                barrier.wait()  # noqa: B023 - joined below
                found.append(make(root))  # noqa: B023

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 8
            assert len(set(found)) == 1
            assert len(os.listdir(root)) == 1


def test_of_many_who_register_at_once_none_is_lost(tmp_path: Path) -> None:
    threads = [threading.Thread(target=add_backend, args=(tmp_path, backend(f"b{n}"))) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.name for found in list_backends(tmp_path)] == sorted(f"b{n}" for n in range(16))
    threads = [threading.Thread(target=remove_backend, args=(tmp_path, f"b{n}")) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list_backends(tmp_path) == []
    assert mode(tmp_path / FILE_NAME) == 0o600


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret"
    assert write_private(path, b"first", replace=True)
    assert not write_private(path, b"second", replace=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(NodeError, match="No space"):
                write_private(path, b"third", replace=True)
        assert read_private(path) == b"first"
        assert os.listdir(tmp_path) == ["secret"]


def test_a_token_has_256_bits_and_is_made_once(tmp_path: Path) -> None:
    tokens = {ensure_token(tmp_path / str(n)) for n in range(50)}
    assert len(tokens) == 50
    assert {len(token) for token in tokens} == {43}
    assert ensure_token(tmp_path / "0") == ensure_token(tmp_path / "0") == read_token(tmp_path / "0")
    with pytest.raises(TokenMissingError):
        read_token(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_name_is_registered_once_and_found(tmp_path: Path) -> None:
    add_backend(tmp_path, backend("gpu"), secret=TOKEN)
    with pytest.raises(InvalidRequestError, match="already"):
        add_backend(tmp_path, backend("gpu"), secret="another-token-of-the-tests")
    assert read_secret(tmp_path, find_backend(tmp_path, "gpu")) == TOKEN
    for wrong in ("", "a b", "../x", "-x", "x" * 65, "x\n", "ü"):
        with pytest.raises(InvalidRequestError):
            add_backend(tmp_path, backend(wrong))
    for call in (find_backend, remove_backend):
        with pytest.raises(BackendNotFoundError, match="gpu"):
            call(tmp_path, "other")
    assert TOKEN not in repr(list_backends(tmp_path))
    remove_backend(tmp_path, "gpu")
    assert list(tmp_path.rglob("gpu")) == []


@given(st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
def test_nothing_but_the_token_is_the_token(value: bytes) -> None:
    try:
        check_authorization([value], TOKEN)
    except (TokenMissingError, TokenWrongError):
        assert value != b"Bearer " + TOKEN.encode()
    else:
        assert value[:7].lower() == b"bearer "
        assert value[7:].strip() == TOKEN.encode()


def test_the_token_passes_in_the_forms_of_rfc_6750() -> None:
    for value in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "):
        check_authorization([value], TOKEN)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.255.255.254", True), ("::1", True), ("localhost", True), ("LocalHost", True),
        ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("", False), ("128.0.0.1", False),
        ("::ffff:192.0.2.1", False), ("localhost.", False), ("localhost.example.org", False), ("2130706433", False),
        ("127.1", False), ("fe80::1", False),
    ],
)  # fmt: skip
def test_loopback_is_what_cannot_leave_the_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_listener_is_what_its_address_needs(tmp_path: Path) -> None:
    assert make_listener(tmp_path, "127.0.0.1", 0).identity is None
    assert not (tmp_path / IDENTITY_NAME).exists()
    far = make_listener(tmp_path, "0.0.0.0", 0).identity
    assert far is not None
    assert make_listener(tmp_path, "::1", 0, tls=True).identity == far
    (tmp_path / "cert").write_bytes(far.chain)
    (tmp_path / "key").write_bytes(far.key)
    (tmp_path / "key").chmod(0o640)
    given_files = make_listener(tmp_path, "127.0.0.1", 0, certificate=tmp_path / "cert", key=tmp_path / "key")
    assert given_files.identity == far
    assert given_files.token == read_token(tmp_path)
    for wrong in (
        {"certificate": tmp_path / "cert"},
        {"key": tmp_path / "key"},
        {"certificate": tmp_path / "cert", "key": tmp_path / "key", "tls": False},
    ):
        with pytest.raises(InvalidRequestError):
            make_listener(tmp_path, "127.0.0.1", 0, **wrong)  # type: ignore[arg-type]


def test_files_that_are_no_certificate_and_its_key_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    one, two = ensure_identity(tmp_path / "1", "h"), ensure_identity(tmp_path / "2", "h")
    loaded = serialization.load_pem_private_key(one.key, None)
    secret = loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    for chain, key in ((one.chain, two.key), (one.chain, b""), (b"", one.key), (b"x", b"y"), (one.chain, secret)):
        (tmp_path / "cert").write_bytes(chain)
        (tmp_path / "key").write_bytes(key)
        (tmp_path / "key").chmod(0o600)
        with pytest.raises(InvalidRequestError, match="no certificate and its key"):
            read_identity(tmp_path / "cert", tmp_path / "key")
    (tmp_path / "key").chmod(0o604)
    with pytest.raises(NodeError, match="everybody"):
        read_identity(tmp_path / "cert", tmp_path / "key")
    with pytest.raises(NodeError, match="No such file"):
        read_identity(tmp_path / "cert", tmp_path / "none")


def test_without_the_extra_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'modeld\[tls\]'"):
        make_listener(tmp_path, "0.0.0.0", 0)
    # Once made it is not needed any more.
    monkeypatch.undo()
    made = ensure_identity(tmp_path / "root", "h")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert ensure_identity(tmp_path / "root", "h") == made
    shutil.rmtree(tmp_path / "root")
