"""Hazard: a chat template leaves out what the caller said, and nobody tells."""

import pytest

from modeld.chat.template import ChatTemplate
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.job import Job
from modeld.engine.prompts import Prompts
from modeld.engine.protocol import Load, Turn
from modeld.engine.session import EngineSession
from modeld.errors import NotSupportedError
from modeld.types import DecodeOptions, FunctionCall, FunctionTool, ImagePart, Message, Tool, ToolCall

BARE = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
ASK = Message("user", "hi")
CALLED = Message("assistant", tool_calls=(ToolCall("c1", FunctionCall("f")),))
TOOL = Tool(FunctionTool("f", "A function.", {}))


def prepare(messages: tuple[Message, ...], tools: tuple[Tool, ...] = (), think: str = "auto") -> Job:
    load = Load("", "fake", "d", 1000, 1000)
    backend = FakeBackend(load)
    job = Job(Turn(1, 1, messages, DecodeOptions(), tools=tools, think=think), EngineSession(1))  # type: ignore[arg-type]
    Prompts(backend, ChatTemplate(BARE), load.window).prepare(job)
    return job


@pytest.mark.parametrize(
    ("feature", "messages", "tools", "think"),
    [
        ("tools", (ASK,), (TOOL,), "auto"),
        ("tools", (ASK, CALLED, ASK), (), "auto"),
        ("tools", (ASK, CALLED, Message("tool", "1", tool_call_id="c1")), (), "auto"),
        ("system", (Message("system", "be terse"), ASK), (), "auto"),
        ("think", (ASK,), (), "high"),
        ("images", (Message("user", "what", images=(ImagePart(b"x", "image/png"),)),), (), "auto"),
    ],
)
def test_what_the_template_has_no_place_for_is_refused(
    feature: str, messages: tuple[Message, ...], tools: tuple[Tool, ...], think: str
) -> None:
    with pytest.raises(NotSupportedError) as caught:
        prepare(messages, tools, think)
    assert caught.value.details["feature"] == feature


@pytest.mark.parametrize("think", ["auto", "off"])
def test_what_it_has_a_place_for_is_taken(think: str) -> None:
    assert prepare((ASK, Message("assistant", "yes"), ASK), think=think).target
