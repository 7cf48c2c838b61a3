"""Hazard: a backend type is registered twice, under no name, or looked up under a name nobody knows."""

import threading
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from modeld import InvalidRequestError
from modeld.repository import (
    BackendSpec,
    CatalogOptions,
    Daemon,
    NoopTracker,
    RetryPolicy,
    canonical_backend_type,
    clamp_max_output_tokens,
    default_catalog_factory,
)
from modeld.repository import catalog as catalog_module
from modeld.repository.catalog import Registry, built_in_types

pytestmark = pytest.mark.anyio


def made(spec: BackendSpec, options: CatalogOptions) -> Any:
    return spec, options


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("local", "llama"),
        ("LLAMA", "llama"),
        (" OpenVINO ", "openvino"),
        ("Local ", "llama"),
        ("vertex", "vertex-google"),
        ("gemini", "gemini"),
        ("", ""),
        ("something-else", "something-else"),
    ],
)
def test_types_have_one_spelling(name: str, canonical: str) -> None:
    assert canonical_backend_type(name) == canonical


@pytest.mark.parametrize(
    ("requested", "ceiling", "answer"),
    [
        (9000, 0, (9000, False)),
        (1024, 4096, (1024, False)),
        (9000, 4096, (4096, True)),
        (4096, 4096, (4096, False)),
        (0, 4096, (0, False)),
        (-1, 4096, (-1, False)),
        (None, 4096, (None, False)),
    ],
)
def test_output_tokens_are_clamped_to_a_known_ceiling(
    requested: int | None, ceiling: int, answer: tuple[int | None, bool]
) -> None:
    assert clamp_max_output_tokens(requested, ceiling) == answer


def test_bad_registrations_change_nothing() -> None:
    registry = Registry()
    registry.register("mine", made)
    for name, constructor in (("mine", made), (" MINE ", made), ("", made), ("openai", made), ("local", made)):
        with pytest.raises(InvalidRequestError):
            registry.register(name, constructor)
    with pytest.raises(InvalidRequestError):
        registry.register("other", None)  # type: ignore[arg-type]
    assert registry.types() == sorted([*built_in_types(), "mine"])


def test_an_unknown_type_is_named_as_it_was_written() -> None:
    with pytest.raises(InvalidRequestError, match=r"'OpenIA'.*openai"):
        default_catalog_factory().new_catalog_provider(BackendSpec("OpenIA"))
    with pytest.raises(InvalidRequestError):
        default_catalog_factory().new_catalog_provider(BackendSpec(" "))


def test_the_constructor_gets_the_canonical_type_and_defaults() -> None:
    registry = Registry()
    registry.register("mine", made)
    spec, options = registry.new_catalog_provider(BackendSpec(" Mine ", "u", "k"))  # type: ignore[misc]
    assert spec == BackendSpec("mine", "u", "k")
    assert options.http_client is None
    assert isinstance(options.tracker, NoopTracker)
    assert options.retry == RetryPolicy()


def test_an_error_of_the_constructor_comes_out_unchanged() -> None:
    class OddError(Exception):
        pass

    def fails(spec: BackendSpec, options: CatalogOptions) -> Any:
        raise OddError

    registry = Registry()
    registry.register("mine", fails)
    with pytest.raises(OddError):
        registry.new_catalog_provider(BackendSpec("mine"))


@pytest.mark.parametrize("name", built_in_types())
def test_every_built_in_type_makes_a_catalog_without_network(name: str) -> None:
    urls = {
        "vertex-google": "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4",
        "vllm": "http://127.0.0.1:8000",
        "modeld": "modeld://127.0.0.1:9000",
    }
    keys = {"modeld": "t" * 43, "vertex-google": ""}
    spec = BackendSpec(name, urls.get(name, ""), keys.get(name, "key"))
    assert default_catalog_factory().new_catalog_provider(spec).type == name


async def test_an_entry_point_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("Theirs", "repository_plugin:made", catalog_module.ENTRY_POINTS)
    monkeypatch.setattr(catalog_module, "_points", lambda: (point,))
    monkeypatch.setattr(EntryPoint, "load", lambda self: made)
    assert "theirs" in default_catalog_factory().types()
    daemon = Daemon()
    await daemon.register_backend("a", BackendSpec("theirs", "u"))
    assert daemon.list_backends() == ["a"]


def test_threads_may_register_at_once() -> None:
    registry = Registry()
    threads = [threading.Thread(target=registry.register, args=(f"type-{n}", made)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.types()) == len(built_in_types()) + 50
