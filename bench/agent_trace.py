"""A trace of agents at work, as data: what they are told, what their tools return. It depends on its seed alone.

Texts are words of the tiny model's vocabulary, one token each, so that sizes are tokens. What the model answers is
filled in while the trace is played.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall

WORDS = ("river", "stone", "lotus", "amber", "copper", "kite", "maple", "silver", "ocean", "brick", "cedar", "cloud")


@dataclass(frozen=True)
class Size:
    """How large a trace is, in tokens or a few more.

    :param system: of the system prompt that all agents share. :param said: of what a user says.
    :param result: of a tool's result. :param answer: of each answer, exactly.
    """

    system: int = 600
    said: int = 40
    result: int = 60
    answer: int = 64


@dataclass(frozen=True)
class Said:
    """A user says something."""

    text: str


@dataclass(frozen=True)
class Ran:
    """The agent's program takes the answer so far as a call of ``read_file``, and this is what came of it."""

    path: str
    result: str


Step = Said | Ran

TOOLS = tuple(
    Tool(FunctionTool(name, about, {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]}))
    for name, about, key in (
        ("read_file", "Read a file.", "path"),
        ("run_tests", "Run the tests in a folder.", "folder"),
    )
)


@dataclass(frozen=True)
class Trace:
    """Agents that share a system prompt and tools.

    :param agents: the steps of each; a turn of the model follows each step.
    """

    system: Message
    agents: tuple[tuple[Step, ...], ...]
    answer: int

    def messages(self, agent: int, answers: Sequence[str]) -> tuple[Message, ...]:
        """The conversation that asks for the next answer, after ``answers``."""
        messages = [self.system]
        for turn, step in enumerate(self.agents[agent][: len(answers) + 1]):
            match step:
                case Said(text):
                    messages += [Message("assistant", answers[turn - 1])] if turn else []
                    messages.append(Message("user", text))
                case Ran(path, result):
                    call = ToolCall(f"call{turn}", FunctionCall("read_file", json.dumps({"path": path})))
                    messages.append(Message("assistant", answers[turn - 1], tool_calls=(call,)))
                    messages.append(Message("tool", result, tool_call_id=call.id))
        return tuple(messages)


def make_trace(agents: int, turns: int, seed: int, size: Size | None = None) -> Trace:
    """Each agent gets a task; then its tools return something twice for each time the user speaks again."""
    size = size or Size()
    random_ = random.Random(f"{agents} {seed}")

    def words(count: int) -> str:
        return " ".join(random_.choices(WORDS, k=count))

    def step(turn: int) -> Step:
        if turn % 3:
            return Ran(f"src/{words(1)}.py", json.dumps({"result": words(size.result)}))
        return Said("Repeat: " + words(size.said))

    system = Message("system", "You are a helpful agent.\n" + words(size.system))
    return Trace(system, tuple(tuple(step(turn) for turn in range(turns)) for _ in range(agents)), size.answer)
