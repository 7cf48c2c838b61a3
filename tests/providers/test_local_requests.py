"""Hazards of a request to a node: an option that gets lost, a foreign secret that is sent, a model that is mistaken."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld import BackendSpec, ContextOverflowError, DecodeOptions, Message, ModelRef, ResponseFormat, SessionConfig
from modeld.providers.llama import LlamaWire
from modeld.providers.node_wire import NODE_RULES, WORKSPACE
from modeld.repository import CatalogOptions, RetryPolicy
from modeld.repository.client import WireClient
from modeld.repository.values import ObservedModel
from modeld.session import ModelService
from modeld.session.conversations import REMEMBERED, SESSION_TTL, Tapes

pytestmark = pytest.mark.anyio

ONCE = RetryPolicy(attempts=1)


class Recorder:
    """A node that remembers what it was asked, and answers nothing."""

    def __init__(self) -> None:
        self.opened: list[tuple[ModelRef, SessionConfig]] = []
        self.turns: list[dict[str, object]] = []

    async def open_session(self, ref: ModelRef, config: SessionConfig) -> Recorder:
        self.opened.append((ref, config))
        return self

    async def close(self) -> None:
        """A session is closed after its call."""

    def turn(self, messages: tuple[Message, ...], **more: object) -> None:
        self.turns.append({"messages": messages, **more})
        raise ContextOverflowError("enough")

    def wire(self, folder: str = "") -> LlamaWire:
        async def service() -> ModelService:
            return self  # type: ignore[return-value]

        return LlamaWire(BackendSpec("llama", folder), CatalogOptions(retry=ONCE, service=service))

    async def ask(self, model: ObservedModel, *messages: Message, folder: str = "", **options: object) -> None:
        with pytest.raises(ContextOverflowError):
            await WireClient(self.wire(folder), model).chat(messages, **options)


async def test_a_conversation_is_named_by_its_content_and_forgotten_one_day() -> None:
    recorder = Recorder()
    one, two = (recorder.wire().model(name) for name in ("one", "two"))
    digested = ObservedModel(name="one", capabilities=one.capabilities, digest="0" * 64)

    async def name_of(model: ObservedModel, *messages: Message) -> str:
        await recorder.ask(model, *messages)
        ref, config = recorder.opened[-1]
        assert (ref.name, ref.type, config.workspace, config.ttl) == (model.name, "llama", WORKSPACE, SESSION_TTL)
        return config.name

    system, user = Message("system", "s"), Message("user", "u")
    name = await name_of(one, system, user)
    assert name == await name_of(one, system, user, Message("assistant", "a"), Message("system", "late"), user)
    assert name == await name_of(digested, system, user)
    assert recorder.opened[-1][0].digest == "0" * 64
    others = [
        await name_of(two, system, user),
        await name_of(one, user),
        await name_of(one, Message("system", "t"), user),
        await name_of(one, system, Message("user", "v")),
        await name_of(one, system, Message("assistant", "a"), user),
    ]
    assert len({name, *others}) == 6


async def test_a_model_of_a_folder_is_never_taken_for_one_of_the_nodes(tmp_path: Path) -> None:
    recorder = Recorder()
    (tmp_path / "tiny.gguf").write_bytes(b"G")
    await recorder.ask(recorder.wire().model("tiny"), Message("user", "x"), folder=str(tmp_path))
    assert recorder.opened[-1][0] == ModelRef(type="llama", path=str(tmp_path / "tiny.gguf"))


async def test_only_what_the_model_may_see_is_sent() -> None:
    recorder = Recorder()
    said = Message("assistant", "hm", thinking="long", provider_meta={"anthropic": {"signature": "x"}})
    await recorder.ask(recorder.wire().model("m"), Message("user", "a"), said, Message("user", "b"))
    assert recorder.turns[-1]["messages"] == (Message("user", "a"), Message("assistant", "hm"), Message("user", "b"))


async def test_every_sampling_option_arrives_and_what_is_not_set_is_the_engines_default() -> None:
    recorder, model = Recorder(), Recorder().wire().model("m")
    await recorder.ask(model, Message("user", "x"))
    assert recorder.turns[-1]["options"] == DecodeOptions()
    assert (recorder.turns[-1]["think"], recorder.turns[-1]["tools"]) == ("auto", ())
    values = {
        "temperature": 0.0,
        "max_tokens": 3,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.0,
        "seed": 0,
        "frequency_penalty": 0.25,
        "presence_penalty": -1.0,
        "repeat_penalty": 1.5,
        "stop": ("END",),
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": ResponseFormat(choice=("a", "b")),
        "logprobs": True,
        "top_logprobs": 4,
    }
    assert values.keys() == {name.partition(".")[2] for name in _wires() if name.startswith("options.")}
    await recorder.ask(model, Message("user", "x"), think="on", **values)
    assert recorder.turns[-1]["options"] == DecodeOptions(**values)
    assert recorder.turns[-1]["think"] == "high"


async def test_what_becomes_of_a_full_window_arrives_as_it_was_asked() -> None:
    recorder, model = Recorder(), Recorder().wire().model("m")
    for asked in ({}, {"shift": True}, {"truncate": True}, {"shift": False, "truncate": False}):
        await recorder.ask(model, Message("user", "x"), **asked)
        turn = recorder.turns[-1]
        assert (turn["shift"], turn["truncate"]) == (asked.get("shift"), asked.get("truncate"))


def _wires() -> list[str]:
    return [rule.wire for rule in NODE_RULES.values()]


async def test_beginnings_are_not_remembered_without_end() -> None:
    tapes, ref = Tapes(), ModelRef("m")
    running = tapes.take(ref, [Message("user", "runs")])
    name = running.__enter__()
    for number in range(REMEMBERED + 50):
        with tapes.take(ref, [Message("user", str(number))]):
            pass
    assert len(tapes._known) <= REMEMBERED + 1
    with tapes.take(ref, [Message("user", "runs")]) as second:
        assert second == f"{name}-1"
    running.__exit__(None, None, None)
    with tapes.take(ref, [Message("user", "runs")]) as third:
        assert third == name
