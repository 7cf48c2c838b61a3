"""Hazard: a file names a package index or a folder of one machine; a lock lets unchecked or stale versions in."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements-build.lock", "requirements.lock")
LOCKED = ("llama", "openvino", "openai", "google", "ollama", "anthropic", "keyring", "otel", "http", "testing", "dev")
NOT_OURS = {"__pycache__", "dist", "build", "models"}
FORBIDDEN = re.compile(
    r"https?://[^\s/]*(?:py|npm|conda)[^\s/]*/|file://|/simple\b|--(?:extra-)?index-url|--find-links"
    r"|(?<![\w.~$*])/(?:root|opt|mnt|[w]ork|(?:home|Users)/(?!me\b)\w+)\b"
)


def text_files(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS or (path.name.startswith(".") and path.name not in (".ci", ".gitignore")):
            continue
        if path.is_dir():
            yield from text_files(path)
        elif b"\0" not in path.read_bytes()[:8192]:
            yield path


def pins(lock: str) -> dict[str, tuple[str, int]]:
    """Name to version and number of hashes."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"^(?=[^\s#])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]:
        name, version = block.split()[0].split("==")
        found[canonicalize_name(name)] = (version, len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
    return found


def test_no_file_names_an_index_or_a_folder_of_one_machine() -> None:
    # This file and the lock script spell the options they forbid.
    known = {Path(__file__).resolve(), ROOT / "scripts" / "lock.py"}
    files = [path for path in text_files() if path not in known]
    assert len(files) > 20
    hits = {f"{path.relative_to(ROOT)}: {hit}" for path in files for hit in FORBIDDEN.findall(path.read_text())}
    assert not hits


@pytest.mark.parametrize(
    "text", ["https://py.example/x", "a /root/x", '"/opt/main"', "/home/anna/x", "--extra-index-url y", "z/simple/"]
)
def test_the_pattern_sees_what_it_forbids(text: str) -> None:
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_local_version(lock: str) -> None:
    found = pins(lock)
    assert len(found) > 10
    assert [name for name, (version, hashes) in found.items() if not hashes or "+" in version] == []
    assert "://" not in (ROOT / lock).read_text()


def test_lock_fits_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + [line for name in LOCKED for line in extras[name]]
    build = project["build-system"]["requires"]
    for lines, lock in ((wanted, "requirements.lock"), (build, "requirements-build.lock")):
        locked = pins(lock)
        for requirement in map(Requirement, lines):
            version, _ = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{lock}: {requirement} is locked at {version}"


def test_locks_agree() -> None:
    build, main = map(pins, LOCKS)
    assert {name: build[name] for name in build.keys() & main.keys()} == {
        name: main[name] for name in build.keys() & main.keys()
    }
