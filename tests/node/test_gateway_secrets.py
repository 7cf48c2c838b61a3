"""Hazards of keys: a reference that leads nowhere, a file others may read, an error or a list that tells the key."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from modeld.errors import AuthenticationError, InvalidRequestError, MissingDependencyError, ModeldError, NodeError
from modeld.node.backends import (
    FILE_NAME,
    ConfiguredBackend,
    add_backend,
    find_backend,
    list_backends,
    read_secret,
    remove_backend,
)
from modeld.node.secrets import check_reference, check_secret, resolve

SECRET = "sk-secret-of-the-tests-4711"


def backend(name: str = "cloud", **fields: str) -> ConfiguredBackend:
    return ConfiguredBackend(**{"name": name, "type": "openai", **fields})


def test_each_kind_of_reference_leads_to_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", f" {SECRET}\n")
    asked = []
    keyring = SimpleNamespace(get_password=lambda *words: asked.append(words) or SECRET)
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    (tmp_path / "key").write_text(f"{SECRET}\n")
    (tmp_path / "key").chmod(0o600)
    for reference in ("env:A_KEY", "file:key", f"file:{tmp_path / 'key'}", "keyring:https://api/x/me"):
        assert resolve(reference, tmp_path) == SECRET, reference
    assert asked == [("https://api/x", "me")]
    assert resolve("", tmp_path) == ""


@pytest.mark.parametrize(
    "text",
    [SECRET, "env:", "env:A B", "env:1A", "file:", "keyring:x", "keyring:/x", "keyring:x/", "ENV:X", "file:a\nb"],
)
def test_what_is_no_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_reference(text)
    assert len(text) < 6 or text not in str(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "two words", "a\nb", "a\0b", "\udcff", "x" * 300_000])
def test_what_is_no_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_secret(text)
    assert not text.strip() or text not in str(caught.value)


def test_a_service_account_is_a_secret() -> None:
    assert check_secret('{\n "type": "service_account"}\n') == '{\n "type": "service_account"}'


def broken_keyring(*words: str) -> str:
    raise RuntimeError(SECRET)


def test_a_key_that_cannot_be_had_is_typed_and_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("TWO", f"{SECRET} {SECRET}")
    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(get_password=broken_keyring))
    (tmp_path / "open").write_text(SECRET)
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "bytes").write_bytes(SECRET.encode() + b"\xff")
    (tmp_path / "bytes").chmod(0o600)
    for reference, error in (
        ("env:NO_KEY", AuthenticationError),
        ("env:EMPTY", AuthenticationError),
        ("env:TWO", AuthenticationError),
        ("file:none", AuthenticationError),
        ("file:bytes", AuthenticationError),
        ("file:open", NodeError),
        ("file:.", NodeError),
        ("keyring:a/b", AuthenticationError),
    ):
        with pytest.raises(error) as caught:
            resolve(reference, tmp_path)
        assert SECRET not in f"{caught.value!r} {caught.value.details}", reference
        assert caught.value.__cause__ is None
    keyring = SimpleNamespace(get_password=lambda *words: None)
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    with pytest.raises(AuthenticationError, match="keyring:a/b"):
        resolve("keyring:a/b", tmp_path)


def test_without_the_extra_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'modeld\[keyring\]'"):
        resolve("keyring:a/b", tmp_path)


def test_a_stored_key_is_ours_alone_in_no_list_and_gone_with_its_backend(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        written = add_backend(tmp_path, backend(), secret=f"{SECRET}\n")
    finally:
        os.umask(old)
    path = tmp_path / "secrets" / "cloud"
    assert written == find_backend(tmp_path, "cloud") == backend(key="file:secrets/cloud")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_secret(tmp_path, written) == SECRET
    assert [p for p in tmp_path.rglob("*") if p.is_file() and SECRET in p.read_text()] == [path]
    remove_backend(tmp_path, "cloud")
    assert not path.exists()


def test_what_a_reference_names_elsewhere_stays(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    add_backend(tmp_path, backend(key=f"file:{key}"))
    remove_backend(tmp_path, "cloud")
    assert key.read_text() == SECRET


def test_replacing_a_stored_key_forgets_it(tmp_path: Path) -> None:
    add_backend(tmp_path, backend(), secret=SECRET)
    with pytest.raises(InvalidRequestError, match="already"):
        add_backend(tmp_path, backend(key="env:X"))
    add_backend(tmp_path, backend(key="env:X"), replace=True)
    assert list_backends(tmp_path) == [backend(key="env:X")]
    assert not (tmp_path / "secrets" / "cloud").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": SECRET},
        {"type": ""},
        {"type": "a b"},
        {"base_url": "https://user:pass@host/v1"},
        {"name": "../x"},
        {"key": "env:X", "secret": SECRET},
        {"secret": "two words"},
    ],
)
def test_what_cannot_be_registered_changes_nothing(tmp_path: Path, wrong: dict[str, str]) -> None:
    secret = wrong.get("secret", "")
    with pytest.raises(InvalidRequestError) as caught:
        add_backend(tmp_path, backend(**{k: v for k, v in wrong.items() if k != "secret"}), secret=secret)
    assert SECRET not in str(caught.value)
    assert "pass" not in str(caught.value).replace("password", "")
    assert os.listdir(tmp_path) == []


def test_an_alias_is_written_as_the_type(tmp_path: Path) -> None:
    assert add_backend(tmp_path, backend(type=" Local")).type == "llama"


OLD = {
    "schema": 1,
    "backends": [
        {"name": "gpu", "url": "modeld+tls://h:1", "type": "modeld", "pin": "sha256:ab", "token": SECRET},
        {"name": "bare", "url": "modeld://127.0.0.1:1"},
    ],
}
UPGRADED = [
    ConfiguredBackend(name="bare", type="modeld", base_url="modeld://127.0.0.1:1"),
    ConfiguredBackend(name="gpu", type="modeld", base_url="modeld+tls://h:1", pin="sha256:ab", key="file:secrets/gpu"),
]


def old_file(root: Path) -> Path:
    path = root / FILE_NAME
    path.write_bytes(msgspec.json.encode(OLD))
    path.chmod(0o600)
    return path


def test_a_file_of_schema_1_is_read_as_it_is_and_upgraded_by_the_next_write(tmp_path: Path) -> None:
    path = old_file(tmp_path)
    before = path.read_bytes()
    assert list_backends(tmp_path) == UPGRADED
    assert read_secret(tmp_path, find_backend(tmp_path, "gpu")) == SECRET
    assert read_secret(tmp_path, find_backend(tmp_path, "bare")) == ""
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [FILE_NAME]

    add_backend(tmp_path, backend())
    assert msgspec.json.decode(path.read_bytes())["schema"] == 2
    assert SECRET not in path.read_text()
    assert list_backends(tmp_path) == [UPGRADED[0], backend(), UPGRADED[1]]
    assert read_secret(tmp_path, find_backend(tmp_path, "gpu")) == SECRET
    assert stat.S_IMODE((tmp_path / "secrets" / "gpu").stat().st_mode) == 0o600


@pytest.mark.parametrize("replace", [False, True])
def test_the_token_of_what_is_removed_or_replaced_is_not_carried_over(tmp_path: Path, replace: bool) -> None:
    old_file(tmp_path)
    if replace:
        add_backend(tmp_path, backend("gpu", key="env:X"), replace=True)
    else:
        remove_backend(tmp_path, "gpu")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and SECRET in p.read_text()] == []


def test_an_upgrade_that_fails_loses_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_file(tmp_path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NodeError, match="No space"):
            add_backend(tmp_path, backend())
    assert path.read_bytes() == before
    assert read_secret(tmp_path, find_backend(tmp_path, "gpu")) == SECRET


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 3, "backends": []}',
        '{"schema": 2, "backends": [{"name": "../x", "type": "openai"}]}',
        '{"schema": 2, "backends": [{"name": "x", "type": "openai", "key": "KEY"}]}',
        '{"schema": 1, "backends": [{"name": "x", "url": 5, "token": "KEY"}]}',
        '{"backends": []}',
    ],
)
def test_a_file_that_cannot_be_understood_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / FILE_NAME
    text = text.replace("KEY", SECRET)
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(NodeError, match=FILE_NAME) as caught:
        add_backend(tmp_path, backend())
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert path.read_text() == text


def test_of_many_who_add_and_remove_at_once_none_takes_anothers_key(tmp_path: Path) -> None:
    failures: list[ModeldError] = []

    def work(number: int) -> None:
        mine = backend(f"b{number}")
        try:
            for turn in range(5):
                written = add_backend(tmp_path, mine, secret=f"{SECRET}-{number}-{turn}")
                assert read_secret(tmp_path, written) == f"{SECRET}-{number}-{turn}"
                remove_backend(tmp_path, mine.name)
        except ModeldError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list_backends(tmp_path) == []
    assert os.listdir(tmp_path / "secrets") == []
