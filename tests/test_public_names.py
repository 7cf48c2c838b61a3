"""The public names: complete, sorted, lazy, and cheap to have."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import modeld

SOURCE = ast.parse(Path(modeld.__file__).read_text())
HEAVY = ("grpc", "google.protobuf", "llama_cpp", "psutil", "numpy", "jinja2", "asyncio", "msgspec", "anyio")


def typed_imports() -> dict[str, tuple[str, str]]:
    """What a type checker believes each name to be."""
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If)]
    names = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            whole = node.module == "modeld"
            target = (f"modeld.{alias.name}", "") if whole else (str(node.module), alias.name)
            names[alias.asname or alias.name] = target
    return names


def run(code: str) -> str:
    path = [str(Path(modeld.__file__).parent.parent)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_three_lists_agree() -> None:
    assert modeld.__all__ == sorted(set(modeld.__all__))
    assert dict(modeld._LAZY) == typed_imports()
    assert set(modeld._LAZY) == set(modeld.__all__)


@pytest.mark.parametrize("name", modeld.__all__)
def test_every_name_is_there(name: str) -> None:
    module, attribute = modeld._LAZY[name]
    loaded = importlib.import_module(module)
    assert getattr(modeld, name) is (getattr(loaded, attribute) if attribute else loaded)
    assert name in dir(modeld)


def test_every_error_is_public() -> None:
    from modeld import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")}
    assert classes <= set(modeld.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        modeld.nonsense  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = run("import modeld; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_finding_a_node_imports_neither_grpc_nor_psutil() -> None:
    loaded = run("import modeld; modeld.set_data_root('/nowhere'); modeld.available(); print(*sys.modules)").split()
    assert "msgspec" in loaded
    assert not {"grpc", "google.protobuf", "llama_cpp", "psutil", "numpy"} & set(loaded)


def test_importing_takes_at_most_60_milliseconds() -> None:
    """The best of five: the machine may be busy, the import may not."""
    code = "import time; t = time.perf_counter(); import modeld; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(5)) <= 0.060


@pytest.mark.parametrize("package", ["modeld.repository", "modeld.testing"])
def test_the_other_lazy_packages_have_what_they_list(package: str) -> None:
    loaded = importlib.import_module(package)
    assert loaded.__all__ == sorted(loaded.__all__)
    listed = {name: module for module, names in loaded._MODULES.items() for name in names}
    assert set(listed) == set(loaded.__all__)
    for name, module in listed.items():
        assert getattr(loaded, name) is getattr(importlib.import_module(f"{package}.{module}"), name)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        loaded.nothing_like_it  # noqa: B018


def test_the_repository_loads_no_sdk() -> None:
    loaded = run("import modeld, modeld.repository; modeld.repository.Daemon(); print(*sys.modules)").split()
    assert not {"openai", "anthropic", "ollama", "google.genai", "httpx", "httpx2", "opentelemetry"} & set(loaded)
    assert not {name for name in loaded if name.startswith("modeld.providers")}
