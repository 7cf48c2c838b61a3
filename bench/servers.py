"""The two servers that ``agents.py`` compares, behind one seam: start, ask, stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx2

import modeld
from modeld.errors import NodeError
from modeld.session import ModelRef, PartStream, Session, SessionConfig
from modeld.types import DecodeOptions, EndPart, Message, ProgressPart, TextPart, ThinkingPart, Tool
from processes import BenchError, Processes, alive

START_SECONDS = 60.0


@dataclass
class Answer:
    """What came of a call, and when. Times are seconds, at the client.

    :param prompt: tokens of the prompt as the server counts them. :param prefilled: those of them it computed.
    :param restored: those that had left a node's engine and came back.
    :param text: what goes into the next prompt: without thinking.
    :param thought: whether there was thinking: the tiny model may, though it is told not to.
    :param times: when each piece of text came, after the call was made.
    """

    prompt: int = 0
    prefilled: int = 0
    restored: int = 0
    output: int = 0
    text: str = ""
    thought: bool = False
    times: list[float] = field(default_factory=list)

    def add(self, when: float, text: str, *, thought: bool) -> None:
        """A piece has come."""
        self.times.append(when)
        self.thought |= thought
        self.text += "" if thought else text


@dataclass(frozen=True)
class Setting:
    """What both servers are given. ``cells``: tokens of KV in all. ``batch``: tokens of a step, at most."""

    model: Path
    threads: int
    cells: int
    agents: int
    folder: Path
    batch: int = 512


class Server(Protocol):
    """A server of one model."""

    name: str

    @property
    def pid(self) -> int: ...

    async def start(self) -> None:
        """Start it and wait until the model is loaded."""
        ...

    async def stop(self) -> None:
        """End it in order, and wait for that."""
        ...

    async def ask(self, agent: int, messages: Sequence[Message], tools: Sequence[Tool], tokens: int) -> Answer:
        """Have exactly ``tokens`` tokens answered, greedily."""
        ...


class Modeld:
    """A node, ``modeld serve``, by the client library over its unix socket. Sessions have the agents' names.

    :param options: more of ``modeld serve``.
    """

    name = "modeld"

    def __init__(self, processes: Processes, setting: Setting, *options: str) -> None:
        self._processes = processes
        self._setting = setting
        self._options = options
        self._root = setting.folder / "node"
        self._log = setting.folder / "node.log"
        self._command = Path(sys.executable).with_name("modeld")

    @property
    def pid(self) -> int:
        """Of the node; the engine is its child."""
        return self._process.pid

    @property
    def root(self) -> Path:
        """Its data root."""
        return self._root

    @property
    def client(self) -> modeld.Client:
        """Connected to the node that runs."""
        return self._client

    async def start(self) -> None:
        """See :class:`Server`."""
        setting = self._setting
        options = ["--data-root", str(self._root), "--threads", str(setting.threads), "--idle-ttl", "off"]
        self._process = self._processes.start([self._command, "serve", *options, *self._options], self._log)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self._client = await modeld.connect(self._root, timeout=START_SECONDS)
                break
            except NodeError:
                alive(self._process, self._log)
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)
        self._sessions: dict[int, Session] = {}
        status = await self._client.load(ModelRef(path=str(setting.model)), SessionConfig())
        if status.ledger.cells != setting.cells:
            raise BenchError(f"the node has {status.ledger.cells} KV cells, {setting.cells} were wanted")

    async def stop(self) -> None:
        """``modeld stop``, as a user would."""
        await self._client.aclose()
        stop = [str(self._command), "stop", "--data-root", str(self._root)]
        await asyncio.to_thread(subprocess.run, stop, check=True, stdout=subprocess.DEVNULL)
        await self._processes.ended(self._process)

    async def kill(self) -> None:
        """Node and engine end without a chance to do anything, as in a crash."""
        engine = (await self._client.status()).engine
        for pid in (self._process.pid, *([engine.pid] if engine else [])):
            os.kill(pid, signal.SIGKILL)
        await self._processes.ended(self._process)
        await self._client.aclose()

    async def ask(self, agent: int, messages: Sequence[Message], tools: Sequence[Tool], tokens: int) -> Answer:
        """See :class:`Server`."""
        began = time.perf_counter()
        session = self._sessions.get(agent) or await self._open(agent)
        options = DecodeOptions(max_tokens=tokens, temperature=0, ignore_eos=True)
        return await collect(session.turn(messages, tools=tools, think="off", options=options), began)

    async def _open(self, agent: int) -> Session:
        config = SessionConfig(workspace="bench", name=f"agent-{agent}")
        session = await self._client.open_session(ModelRef(path=str(self._setting.model)), config)
        self._sessions[agent] = session
        return session


async def collect(stream: PartStream, began: float) -> Answer:
    """Read a node's answer to the end. ``began``: when the call was made."""
    answer, end = Answer(), None
    async with stream:
        async for part in stream:
            if isinstance(part, TextPart | ThinkingPart):
                answer.add(time.perf_counter() - began, part.text, thought=isinstance(part, ThinkingPart))
            elif isinstance(part, EndPart):
                end = part
            elif not isinstance(part, ProgressPart):
                raise BenchError(f"modeld: the answer is more than text: {part}")
    if end is None or end.usage.input is None or end.usage.output is None:
        raise BenchError("modeld: the answer has no end")
    receipt = end.cost()
    answer.prompt, answer.output = end.usage.input, end.usage.output
    answer.prefilled, answer.restored = receipt.prefilled, receipt.restored
    return answer


class LlamaServer:
    """llama-server, by its OpenAI route over loopback HTTP.

    :param flags: its own, after those that make it equal to the node.
    :param pinned: each agent has the slot of its number; else the server chooses.
    :param stripped: what this model's answers begin with and the server leaves out. It is put back, so that the server
        finds its own answers again: with another first token it would compute each of them twice.
    """

    name = "llama-server"

    def __init__(
        self,
        processes: Processes,
        setting: Setting,
        binary: Path,
        flags: Sequence[str],
        *,
        pinned: bool,
        stripped: str,
    ) -> None:
        self._processes = processes
        self._setting = setting
        self._binary = binary
        self._flags = flags
        self._pinned = pinned
        self._stripped = stripped
        self.url = ""
        self._log = setting.folder / "llama-server.log"
        self._slots = setting.folder / "slots"
        self._slots.mkdir()

    @property
    def pid(self) -> int:
        """Of the only process."""
        return self._process.pid

    async def start(self) -> None:
        """See :class:`Server`."""
        setting, port = self._setting, _free_port()
        self.url = f"http://127.0.0.1:{port}"
        numbers = {"-t": setting.threads, "-tb": setting.threads, "-c": setting.cells, "-b": setting.batch}
        numbers |= {"-ub": setting.batch, "-np": setting.agents, "--port": port}
        equal = [word for flag, number in numbers.items() for word in (flag, str(number))]
        paths = ["-m", str(setting.model), "--slot-save-path", str(self._slots)]
        own = ["-ctk", "f16", "-ctv", "f16", "--host", "127.0.0.1", "--jinja", "--metrics", *self._flags]
        # What modeld's engine sets for itself: libgomp's spinning starves whoever else needs a processor.
        spin = {"GOMP_SPINCOUNT": "1000"}
        self._process = self._processes.start([self._binary, *paths, *equal, *own], self._log, spin)
        self._http = httpx2.AsyncClient(base_url=self.url, timeout=600, limits=_ONE_CALL)
        end = time.monotonic() + START_SECONDS
        while not await self._healthy():
            alive(self._process, self._log)
            if time.monotonic() > end:
                raise BenchError(f"llama-server is not up within {START_SECONDS:.0f} s")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """See :class:`Server`."""
        await self._http.aclose()
        self._process.terminate()
        await self._processes.ended(self._process)

    async def ask(self, agent: int, messages: Sequence[Message], tools: Sequence[Tool], tokens: int) -> Answer:
        """See :class:`Server`."""
        answer, timings = Answer(), None
        body: dict[str, Any] = {
            "messages": [_wire_message(message) for message in messages],
            "stream": True,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if tools:
            body["tools"] = [_wire_tool(tool) for tool in tools]
        if self._pinned:
            body["id_slot"] = agent
        began = time.perf_counter()
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[6:])
                delta = chunk["choices"][0]["delta"] if chunk.get("choices") else {}
                for key in ("content", "reasoning_content"):
                    if delta.get(key):
                        answer.add(time.perf_counter() - began, delta[key], thought=key != "content")
                if delta.get("tool_calls"):
                    raise BenchError(f"llama-server: the answer is more than text: {delta}")
                timings = chunk.get("timings", timings)
        if timings is None:
            raise BenchError("llama-server: the answer has no end")
        if not answer.thought:
            answer.text = self._stripped + answer.text
        answer.prompt, answer.prefilled = timings["cache_n"] + timings["prompt_n"], timings["prompt_n"]
        answer.output = timings["predicted_n"]
        return answer

    async def save_slots(self) -> None:
        """Write all slots to files, which the server does not do by itself."""
        await self._slots_action("save")

    async def restore_slots(self) -> None:
        """Read them again, each into the slot it was in."""
        await self._slots_action("restore")

    async def _slots_action(self, action: str) -> None:
        for slot in range(self._setting.agents):
            answer = await self._http.post(f"/slots/{slot}?action={action}", json={"filename": f"slot-{slot}"})
            if answer.status_code != 200:
                raise BenchError(f"llama-server cannot {action} slot {slot}: {answer.text}")

    async def _healthy(self) -> bool:
        try:
            return (await self._http.get("/health")).status_code == 200
        except httpx2.TransportError:
            return False


_ONE_CALL = httpx2.Limits(max_keepalive_connections=0)
"""A connection for each call: the server closes those it has answered on, now and then before the next call."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wire_message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _wire_tool(tool: Tool) -> dict[str, Any]:
    function = tool.function
    about = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return {"type": "function", "function": about}
