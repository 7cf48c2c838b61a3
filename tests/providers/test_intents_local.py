"""Hazard: what a caller sends to a model of this machine is changed on its way to the node."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from modeld import BackendSpec, ContextOverflowError, FunctionCall, FunctionTool, Message, SessionConfig, Tool, ToolCall
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.providers.llama import LlamaWire
from modeld.providers.openvino import OpenvinoWire
from modeld.repository import CatalogOptions, RetryPolicy
from modeld.repository.client import WireClient
from modeld.session import ModelService

pytestmark = pytest.mark.anyio


class Recorder:
    """A node that remembers what it was asked, and answers nothing."""

    def __init__(self) -> None:
        self.configs: list[SessionConfig] = []
        self.turns: list[dict[str, Any]] = []

    async def open_session(self, ref: object, config: SessionConfig) -> Recorder:
        self.configs.append(config)
        return self

    async def close(self) -> None:
        """A session is closed after its call."""

    def turn(self, messages: tuple[Message, ...], **more: Any) -> None:
        self.turns.append({"messages": messages, **more})
        raise ContextOverflowError("enough", window=8192, resident=4000, additional=5000, stage="turn")

    async def ask(self, wire_type: type[Any], *messages: Message, **options: Any) -> ContextOverflowError:
        async def service() -> ModelService:
            return self  # type: ignore[return-value]

        options_of_backend = CatalogOptions(retry=RetryPolicy(attempts=1), service=service)
        wire = wire_type(BackendSpec(wire_type.type), options_of_backend)
        client = WireClient(wire, wire.model("m"))
        with pytest.raises(ContextOverflowError) as whole:
            await client.chat(messages, **options)
        with pytest.raises(ContextOverflowError) as streamed:
            await client.stream(messages, **options)
        assert whole.value.details == streamed.value.details
        assert self.turns[-1] == self.turns[-2]
        return whole.value


BOTH = pytest.mark.parametrize("wire", [LlamaWire, OpenvinoWire], ids=["llama", "openvino"])


@BOTH
async def test_the_node_chooses_the_window_whatever_the_prompt(wire: type[Any]) -> None:
    recorder = Recorder()
    await recorder.ask(wire, Message("user", "short"))
    await recorder.ask(wire, Message("user", "long " * 50_000), max_tokens=9000)
    assert {(config.context, config.kv_type, config.pin) for config in recorder.configs} == {(0, "f16", False)}


@BOTH
async def test_messages_and_tools_reach_the_template_as_they_are(wire: type[Any]) -> None:
    recorder = Recorder()
    schema = {"properties": {"path": {"anyOf": [{"type": "string"}, True]}}, "$defs": {}}
    tools = (Tool(FunctionTool("fs.list", "", schema)), Tool(FunctionTool("clock")))
    history = (
        Message("system", "first rule"),
        Message("user", "list /tmp"),
        Message("user", "please"),
        Message("assistant", "", tool_calls=(ToolCall("call_1", FunctionCall("fs.list", '{"path": ')),)),
        Message("tool", '{"files":["a"]}', tool_call_id="call_1", name="fs.list"),
        Message("system", "late rule"),
        Message("user", " go on \n"),
    )
    await recorder.ask(wire, *history, tools=tools)
    assert recorder.turns[-1]["messages"] == history
    assert recorder.turns[-1]["tools"] == tools


@BOTH
async def test_an_overflow_of_the_node_comes_out_as_it_is(wire: type[Any]) -> None:
    error = await Recorder().ask(wire, Message("user", "x"))
    assert type(error) is ContextOverflowError
    assert (error.window, error.resident, error.additional, error.stage) == (8192, 4000, 5000, "turn")


async def test_a_snapshot_on_the_disk_is_for_nobody_else(tmp_path: Path) -> None:
    """It holds what was said."""
    before = os.umask(0)
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    try:
        session = await node.open_session("fake")
        await session.turn([Message("user", "a secret")]).join()
        saved = await session.snapshot()
    finally:
        os.umask(before)
        await node.aclose()
    file = tmp_path / "snapshots" / f"{saved.id}.snap"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
