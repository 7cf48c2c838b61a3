"""Hazard: an agent that knows nothing of sessions, and whose every turn is computed from the beginning.

What each call must compute at least is counted here from template, tokeniser and the answers alone.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from modeld.types import FunctionCall, Message, Tool, ToolCall
from support.engines import ENGINES, WEATHER, shared

from .conftest import Site

pytestmark = pytest.mark.anyio

SYSTEM = "You are a helpful agent. Answer in short. You may call tools. " + "River stone lotus amber copper kite. " * 8
CITIES = ("Oslo", "Paris", "Lima", "Cairo", "Tokyo", "Rome", "Quito", "Delhi")
TINY = ENGINES["llama"]


class Ledger:
    """What the node must have in its KV after the calls so far."""

    def __init__(self) -> None:
        self._held: list[list[int]] = []

    def least(self, prompt: list[int]) -> int:
        """Tokens of the prompt that nobody has computed. The last one is: its logits are kept nowhere."""
        return max(1, len(prompt) - max((shared(prompt, held) for held in self._held), default=0))

    def hold(self, ids: list[int]) -> None:
        self._held.append(ids)


class Agent:
    """Sends its whole history each time, as every OpenAI program does."""

    def __init__(self, sdk: openai.AsyncOpenAI, ledger: Ledger, *, system: str, tools: tuple[Tool, ...] = ()) -> None:
        self._sdk, self._ledger, self._tools = sdk, ledger, tools
        self.history: list[dict[str, Any]] = [{"role": "system", "content": system}]
        self.computed: list[int] = []
        self.least: list[int] = []

    async def ask(self, text: str, **options: Any) -> None:
        """One turn; a tool that is called answers, and the model is asked again."""
        self.history.append({"role": "user", "content": text})
        while await self._call(**options):
            pass

    async def _call(self, **options: Any) -> bool:
        offered: list[Any] = [
            {"type": "function", "function": {"name": t.function.name, "description": t.function.description,
                                              "parameters": t.function.parameters}}
            for t in self._tools
        ]  # fmt: skip
        answer = await self._sdk.chat.completions.create(
            model="tiny",
            messages=self.history,  # type: ignore[arg-type]
            tools=offered or openai.omit,
            temperature=0,
            max_tokens=40,
            extra_body={"think": "off"},
            **options,
        )
        self._count(answer)
        message = answer.choices[0].message
        self.history.append(message.model_dump(exclude_unset=True))
        for call in message.tool_calls or ():
            content = json.dumps({"city": "here", "weather": f"{len(self.history)} degrees"})
            self.history.append({"role": "tool", "tool_call_id": call.id, "content": content})
        return bool(message.tool_calls)

    def _count(self, answer: Any) -> None:
        messages = [_message(message) for message in self.history]
        prompt = TINY.prompt(messages, self._tools, "off")
        receipt = answer.model_extra["modeld"]["receipt"]
        assert answer.usage.prompt_tokens == len(prompt), "the node saw another prompt than its template makes"
        assert receipt["prefilled"] == len(prompt) - answer.usage.prompt_tokens_details.cached_tokens
        self.computed.append(receipt["prefilled"])
        self.least.append(self._ledger.least(prompt))
        if (answer.choices[0].message.model_extra or {}).get("reasoning_content"):
            # Tiny thinks after a tool's result, whether it may or not. The template shows none of that later.
            self._ledger.hold(prompt)
            return
        said = _message(answer.choices[0].message.model_dump(exclude_unset=True))
        whole = TINY.tokenize(
            TINY.template().render([*messages, said], self._tools, think="off", add_generation_prompt=False)
        )
        ended = answer.choices[0].finish_reason != "length"
        # The end token, and without one the last that was sampled, has no KV yet.
        self._ledger.hold(whole[: len(prompt) + answer.usage.completion_tokens - (not ended)])


def _message(message: dict[str, Any]) -> Message:
    calls = tuple(
        ToolCall(call["id"], FunctionCall(call["function"]["name"], call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    )
    return Message(message["role"], message.get("content") or "", tool_calls=calls)


def question(number: int) -> str:
    """Something tiny answers, in one case of three by a tool."""
    if number % 3 == 2:
        return f"What is the weather in {CITIES[number % len(CITIES)]}?"
    return f"Repeat: river stone {number}" if number % 3 else f"Count to {number + 3}."


async def test_twenty_turns_compute_only_what_is_new(open_site) -> None:
    site: Site = await open_site()
    async with site.sdk() as sdk:
        agent = Agent(sdk, Ledger(), system=SYSTEM, tools=(WEATHER,))
        for number in range(20):
            await agent.ask(question(number))
    assert len(agent.computed) > 20, "no tool was called"
    assert agent.computed == agent.least
    assert len(await site.node.sessions()) == 1


async def test_two_agents_and_a_side_call_interleaved_compute_only_what_is_new(open_site) -> None:
    """Both begin with the very same words; a title is asked for between their turns."""
    site: Site = await open_site()
    ledger = Ledger()
    async with site.sdk() as sdk:
        one, other = (Agent(sdk, ledger, system=SYSTEM, tools=(WEATHER,)) for _ in range(2))
        titles = Agent(sdk, ledger, system="Write a title.")
        for number in range(20):
            await one.ask(question(number))
            await other.ask(question(number if number == 0 else number + 4))
            if number % 5 == 1:
                await titles.ask(f"Repeat: amber kite {number}")
    for agent in (one, other, titles):
        assert agent.computed == agent.least
