"""Hazard: a level of thinking, a backend's id or what a caller knows better is taken for something else."""

from collections.abc import Callable

import pytest
from msgspec import structs

from modeld import BackendNotFoundError, ChatConfig, ImagePart, InvalidRequestError, Message
from modeld.repository import (
    BackendSpec,
    CapabilityConfig,
    CatalogOptions,
    CatalogProvider,
    Daemon,
    NoopTracker,
    ObservedModel,
    Provider,
    RetryPolicy,
    default_catalog_factory,
)
from modeld.testing import MockProvider
from modeld.thinking import LEVELS, parse_think

pytestmark = pytest.mark.anyio

THINK = {
    "auto": ("", "  ", "default", "AUTO", None),
    "off": ("off", "false", "None", "no", "0", "disable", "Disabled", False),
    "minimal": ("minimal", " Minimal "),
    "low": ("low",),
    "medium": ("MEDIUM",),
    "high": ("high", "true", "On", "yes", "1", True),
    "xhigh": ("xhigh", "XHigh"),
}


@pytest.mark.parametrize(("level", "said"), [(level, said) for level, all_said in THINK.items() for said in all_said])
def test_a_level_of_thinking_has_these_names(level: str, said: str | bool | None) -> None:
    assert parse_think(said) == level
    assert list(THINK) == list(LEVELS)


@pytest.mark.parametrize("said", ["maximum", "2", "hi gh", "-1", "o ff", "thinking"])
def test_what_is_no_level_is_refused_with_those_there_are(said: str) -> None:
    with pytest.raises(InvalidRequestError, match="auto, off, minimal, low, medium, high, xhigh"):
        parse_think(said)
    with pytest.raises(InvalidRequestError, match=said):
        ChatConfig(think=said)


async def test_lowering_max_tokens_leaves_the_callers_config_alone(make_wire: Callable) -> None:
    wire, catalog = make_wire()
    config = ChatConfig(max_tokens=500)
    await (await catalog.provider_for("m").chat_client()).chat([Message("user", "x")], config)
    assert (wire.calls[0].config.max_tokens, config.max_tokens) == (100, 500)


CAN = CapabilityConfig(
    context_length=4096,
    max_output_tokens=77,
    can_chat=True,
    can_embed=False,
    can_stream=True,
    can_prompt=False,
    can_think=True,
    can_vision=True,
)


class Catalog:
    """Lists one model, and says where it runs."""

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        self.spec = spec
        self.options = options

    @property
    def type(self) -> str:
        return self.spec.type

    async def list_models(self) -> list[ObservedModel]:
        return [ObservedModel(name="m", capabilities=CAN)]

    def provider_for(self, model: ObservedModel | str) -> Provider:
        name = model if isinstance(model, str) else model.name
        return MockProvider(id=f"mock-{name}", name=name, can_chat=True, backends=(self.spec.base_url,))

    async def aclose(self) -> None:
        """Nothing to close."""


class Factory:
    def __init__(self) -> None:
        self.made: list[Catalog] = []

    def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
        self.made.append(Catalog(spec, options or CatalogOptions()))
        return self.made[-1]


async def test_a_backend_is_registered_listed_used_and_removed() -> None:
    daemon = Daemon(catalog_factory=Factory())
    assert daemon.list_backends() == []
    await daemon.register_backend("b", BackendSpec("mock", "u"))
    assert daemon.list_backends() == ["b"]
    (model,) = await daemon.list_models("b")
    assert (model.name, model.context_length, model.capabilities) == ("m", 4096, CAN)
    provider = daemon.provider_for("b", model)
    assert (provider.can_chat, provider.can_embed, provider.backend_ids) == (True, False, ("u",))
    daemon.remove_backend("b")
    assert daemon.list_backends() == []
    with pytest.raises(BackendNotFoundError):
        daemon.provider_for("b", model)


async def test_ids_are_exact_and_one_model_of_two_backends_is_two() -> None:
    daemon = Daemon(catalog_factory=Factory())
    for id, url in (("Cloud", "upper"), ("cloud", "lower"), ("a/b c", "odd")):
        await daemon.register_backend(id, BackendSpec("mock", url))
    assert daemon.list_backends() == ["Cloud", "a/b c", "cloud"]
    found = {id: daemon.provider_for(id, "m").backend_ids for id in daemon.list_backends()}
    assert found == {"Cloud": ("upper",), "cloud": ("lower",), "a/b c": ("odd",)}
    assert daemon.provider_for("Cloud", "m").id == daemon.provider_for("cloud", "m").id
    with pytest.raises(BackendNotFoundError):
        daemon.provider_for("CLOUD", "m")


async def test_client_tracker_and_retries_of_a_registration_reach_its_catalog() -> None:
    factory = Factory()
    daemon = Daemon(catalog_factory=factory)
    http_client, tracker, retry = object(), NoopTracker(), RetryPolicy(attempts=7)
    await daemon.register_backend("a", BackendSpec("x"), http_client=http_client, tracker=tracker, retry=retry)
    await daemon.register_backend("b", BackendSpec("x"))
    given, default = (catalog.options for catalog in factory.made)
    assert given.http_client is http_client
    assert given.tracker is tracker
    assert given.retry is retry
    assert default.http_client is None
    assert isinstance(default.tracker, NoopTracker)


async def test_what_the_caller_knows_of_a_model_wins_both_ways(make_wire: Callable) -> None:
    """The listing of this wire declares that its model sees no pictures."""
    wire, catalog = make_wire()
    (listed,) = await catalog.list_models()
    picture = [Message("user", "?", images=(ImagePart(b"x", "image/png"),))]
    sees = structs.replace(listed, capabilities=structs.replace(listed.capabilities, can_vision=True))
    await (await catalog.provider_for(sees).chat_client()).chat(picture)
    assert catalog.provider_for(sees).can_vision
    assert len(wire.calls) == 1
    mute = structs.replace(listed, capabilities=structs.replace(listed.capabilities, can_think=False))
    assert not catalog.provider_for(mute).can_think
    assert catalog.provider_for(listed).can_think


def test_local_is_a_name_of_llama_and_no_type_of_its_own() -> None:
    catalog = default_catalog_factory().new_catalog_provider(BackendSpec(" Local "))
    assert catalog.type == "llama"
    assert "local" not in default_catalog_factory().types()
