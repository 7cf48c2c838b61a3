"""Hazard: an agent on Anthropic's dialect whose every turn is computed from the beginning.

As in ``test_agent_loops`` what each call must compute at least is counted from template, tokeniser and answers alone.
"""

from __future__ import annotations

import re
from typing import Any

import anthropic
import pytest

from modeld.http.anthropic_answer import Call
from modeld.http.anthropic_messages import REMEMBERED, Written
from modeld.types import FunctionCall, Message, ToolCall
from support.engines import ENGINES, WEATHER, shared

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

SYSTEM = "You are a helpful agent. Answer in short. You may call tools. " + "River stone lotus amber copper kite. " * 8
CITIES = ("Oslo", "Paris", "Lima", "Cairo", "Tokyo", "Rome", "Quito", "Delhi")
TINY = ENGINES["llama"]
OFFERED: Any = {
    "name": WEATHER.function.name,
    "description": WEATHER.function.description,
    "input_schema": WEATHER.function.parameters,
}


class Agent:
    """Sends its whole history each time, blocks and all."""

    def __init__(self, claude: anthropic.AsyncAnthropic) -> None:
        self._claude = claude
        self.history: list[Any] = []
        self.said: list[Message] = [Message("system", SYSTEM)]
        self._held: list[list[int]] = []
        self.computed: list[int] = []
        self.least: list[int] = []

    async def ask(self, text: str) -> None:
        """One turn; a tool that is called answers, and the model is asked again."""
        self.history.append({"role": "user", "content": text})
        self.said.append(Message("user", text))
        while await self._call():
            pass

    async def _call(self) -> bool:
        async with self._claude.messages.stream(
            model="tiny",
            system=[{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}],
            messages=self.history,
            tools=[OFFERED],
            max_tokens=40,
            thinking={"type": "disabled"},
            extra_body={"temperature": 0},
        ) as stream:
            answer = await stream.get_final_message()
        self._count(answer)
        self.history.append({"role": "assistant", "content": answer.content})
        results: list[Any] = []
        for block in answer.content:
            if block.type == "tool_use":
                content = f'{{"city": "here", "weather": "{len(self.history)} degrees"}}'
                results.append({"type": "tool_result", "tool_use_id": block.id, "content": content})
                self.said.append(Message("tool", content, tool_call_id=block.id, name=block.name))
        if results:
            self.history.append({"role": "user", "content": results})
        return bool(results)

    def _count(self, answer: Any) -> None:
        prompt = TINY.prompt(self.said, (WEATHER,), "off")
        usage = answer.usage
        assert usage.input_tokens + usage.cache_read_input_tokens == len(prompt), "the node saw another prompt"
        self.computed.append(usage.input_tokens)
        # The last token's logits are kept nowhere: one is always computed.
        self.least.append(max(1, len(prompt) - max((shared(prompt, held) for held in self._held), default=0)))
        thought = any(block.type == "thinking" for block in answer.content)
        text = "".join(block.text for block in answer.content if block.type == "text")
        calls = tuple(
            ToolCall(block.id, FunctionCall(block.name, f'{{"city": "{block.input["city"]}"}}'))
            for block in answer.content
            if block.type == "tool_use"
        )
        self.said.append(Message("assistant", text, tool_calls=calls))
        if thought:
            # Tiny thinks after a tool's result, whether it may or not. The template shows none of that later.
            self._held.append(prompt)
            return
        whole = TINY.tokenize(TINY.template().render(self.said, (WEATHER,), think="off", add_generation_prompt=False))
        ended = answer.stop_reason != "max_tokens"
        self._held.append(whole[: len(prompt) + usage.output_tokens - (not ended)])


async def test_twenty_turns_compute_only_what_is_new(open_site: Opened) -> None:
    site: Site = await open_site()
    async with site.claude() as claude:
        agent = Agent(claude)
        for number in range(20):
            if number % 3 == 2:
                await agent.ask(f"What is the weather in {CITIES[number % len(CITIES)]}?")
            else:
                await agent.ask(f"Repeat: river stone {number}" if number % 3 else f"Count to {number + 3}.")
    assert len(agent.computed) > 20, "no tool was called"
    assert agent.computed == agent.least
    assert len(await site.node.sessions()) == 1


async def test_arguments_come_back_as_the_model_wrote_them(open_site: Opened) -> None:
    """Here without the blanks that everybody else writes."""
    site: Site = await open_site()
    asked: dict[str, Any] = {"model": "fake", "max_tokens": 200, "tools": [OFFERED], "system": "blah " * 60}
    said: list[Any] = [{"role": "user", "content": '!call get_weather {"city":"Oslo"}'}]
    async with site.claude() as claude:
        first = await claude.messages.create(**asked, messages=said)
        call = first.content[-1]
        assert call.type == "tool_use"
        assert call.input == {"city": "Oslo"}
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        said += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        second = await claude.messages.create(**asked, messages=said)
    receipt = (second.model_extra or {})["modeld"]["receipt"]
    assert receipt["stop"] is None
    assert receipt["prefilled"] < 60


def test_only_what_a_call_says_is_taken_for_what_was_written() -> None:
    written = Written()
    written.remember([Call("a", "f", "1", ['{"x":', "1}"]), Call("b", "f", "2")])
    assert written.recall("a", {"x": 1}) == '{"x":1}'
    assert written.recall("a", {"x": 2}) is None
    assert written.recall("b", {}) == "{}"
    assert written.recall("c", {}) is None
    big = '{"x":"' + "y" * (REMEMBERED // 2) + '"}'
    for id in "cde":
        written.remember([Call(id, "f", id, [big])])
    assert written.recall("a", {"x": 1}) is None
    assert written.recall("c", {"x": "y" * (REMEMBERED // 2)}) is None
    assert written.recall("e", {"x": "y" * (REMEMBERED // 2)}) == big


async def test_a_header_that_changes_is_shown_blamed_and_no_new_conversation(
    open_site: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """The line stays where it stands: what is behind it is computed again, and the receipt says why."""
    caplog.set_level("INFO")
    site: Site = await open_site()
    said: list[Any] = []
    async with site.claude() as claude:
        for turn in range(4):
            header = f"x-anthropic-billing-header: cc_version=2.1.{turn}; cch=0a1b{turn};\n"
            said.append({"role": "user", "content": f"turn {turn}"})
            answer = await claude.messages.create(
                model="fake",
                max_tokens=50,
                messages=said,
                system=[{"type": "text", "text": header}, {"type": "text", "text": "You are an agent."}],
            )
            said.append(answer.to_param())
            count = await claude.messages.count_tokens(
                model="fake", messages=said[:-1], system=header + "You are an agent."
            )
            usage = answer.usage
            assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == count.input_tokens
            if turn:
                stop = (answer.model_extra or {})["modeld"]["receipt"]["stop"]
                assert stop["reason"] == "volatile_header"
                assert "billing" in stop["detail"]
    assert len(await site.node.sessions()) == 1
    assert "changes at every call" in caplog.text
    assert "cch=" not in caplog.text


async def test_a_user_is_a_workspace_whatever_the_id_looks_like(open_site: Opened) -> None:
    site: Site = await open_site()
    claudes = f"user_{'f' * 64}_account__session_{'0' * 8}-1111-4222-8333-444444444444"
    names = ("ann", "a.b-c_1@example.org", "n" * 64)
    ids = (*names, claudes, '{"device_id":"' + "f" * 250 + '"}', '{"id":1}', "a\nb", "é", "n" * 65, "../x")
    async with site.claude() as claude:
        for id in ids:
            for start in ("one", "two"):
                await claude.messages.create(
                    model="fake", max_tokens=5, messages=[{"role": "user", "content": start}], metadata={"user_id": id}
                )
        await claude.messages.create(
            model="fake",
            max_tokens=5,
            messages=[{"role": "user", "content": "one"}],
            extra_headers={"x-modeld-session": "mine"},
        )
    sessions = await site.node.sessions()
    assert len(sessions) == 2 * len(ids) + 1
    scopes = {session.workspace for session in sessions} - {"default", *names}
    assert len(scopes) == len(ids) - len(names)
    assert all(re.fullmatch("user-[0-9a-f]{32}", scope) for scope in scopes)
