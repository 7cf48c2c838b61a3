"""Hazard: an MCP server's tools that are refused, called by a name nobody has, or mixed up with another server's."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import NamespaceTool, Response, ResponseFunctionToolCall

from modeld.errors import InvalidRequestError
from modeld.http.responses_tools import Function, Member, Namespace, OfferedTools
from modeld.testing.server import Answer
from modeld.types import FunctionCall, ToolCall
from support.clouds import cloud

from .conftest import Site

pytestmark = pytest.mark.anyio


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False} | more


def namespace(name: str, *tools: dict[str, Any], about: str = "Tools of a server.") -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": about, "tools": list(tools)}


SERVER = namespace("mcp__weather", function("get", description="The weather."), function("find"))
OTHER = namespace("mcp__time", function("get"))
SAID: dict[str, Any] = {"role": "user", "content": '!call mcp__weather__get {"city": "Oslo"}'}


def called(response: Response) -> ResponseFunctionToolCall:
    (found,) = [item for item in response.output if item.type == "function_call"]
    return ResponseFunctionToolCall.model_validate(found.to_dict(mode="json"), strict=True)


async def test_a_call_has_its_name_and_its_namespace(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "fake",
        "input": [SAID],
        "tools": [SERVER, OTHER, function("get")],
    }
    whole = await sdk.responses.create(**asked)
    made = called(whole)
    assert (made.name, made.namespace, json.loads(made.arguments)) == ("get", "mcp__weather", {"city": "Oslo"})
    NamespaceTool.model_validate(whole.tools[0].to_dict(mode="json"), strict=True)
    assert [(tool.type, tool.name) for tool in whole.tools] == [
        ("namespace", "mcp__weather"),
        ("namespace", "mcp__time"),
        ("function", "get"),
    ]
    events = [event async for event in await sdk.responses.create(**asked, stream=True)]
    items = [event.item for event in events if event.type.startswith("response.output_item.")]  # type: ignore[union-attr]
    assert [(item.name, item.namespace) for item in items] == [("get", "mcp__weather")] * 2  # type: ignore[union-attr]
    plain = await sdk.responses.create(**asked | {"input": "!call get {}"})
    assert (called(plain).name, called(plain).namespace) == ("get", None)
    assert "namespace" not in called(plain).to_dict()


async def test_a_call_that_comes_back_is_the_one_that_was_made(sdk: openai.AsyncOpenAI) -> None:
    """The tape of the first turn is found: name and namespace became the text that the model wrote."""
    asked: dict[str, Any] = {"model": "fake", "tools": [SERVER, OTHER], "instructions": "Call tools."}
    first: Response = await sdk.responses.create(**asked, input=[SAID])
    result: dict[str, Any] = {"type": "function_call_output", "call_id": called(first).call_id, "output": "rain"}
    back: list[Any] = [SAID, *first.output]
    assert first.usage is not None
    for more in ({}, {"name": "get", "namespace": "mcp__weather"}):
        second = await sdk.responses.create(**asked, input=[*back, result | more])
        assert second.usage is not None
        assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    # The server left: its calls are still in the conversation.
    alone = await sdk.responses.create(**asked | {"tools": []}, input=[*back, result])
    assert alone.status == "completed"


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_tool_is_chosen_by_its_own_name(site: Site, sdk: openai.AsyncOpenAI, allowed: bool) -> None:
    named = {"type": "function", "name": "find"}
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [named]} if allowed else named
    async with cloud(site.root) as vendor:
        vendor.script(Answer(tool_calls=(ToolCall("c1", FunctionCall("mcp__weather__find", "{}")),)))
        answer = await sdk.responses.create(
            model="cloud:gpt-5", input="x", tools=[OTHER, SERVER], tool_choice=choice  # type: ignore[list-item]
        )  # fmt: skip
        sent = vendor.requests[-1].json
    assert (called(answer).name, called(answer).namespace) == ("find", "mcp__weather")
    functions = [tool.get("function", tool) for tool in sent["tools"]]
    shown = {one["name"]: one.get("description") for one in functions}
    told = "About all tools of mcp__weather: Tools of a server."
    if allowed:
        assert shown == {"mcp__weather__find": told}
    else:
        assert "mcp__weather__find" in json.dumps(sent["tool_choice"])
        assert list(shown) == ["mcp__time__get", "mcp__weather__get", "mcp__weather__find"]
        assert shown["mcp__weather__get"] == f"The weather.\n\n{told}"
        assert not shown["mcp__weather__find"]


DEEP: dict[str, Any] = {}
for _ in range(120):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([namespace("n", {"type": "custom", "name": "c"})], None, "tools[0].tools[0].type"),
        ([namespace("n", {"name": "f"})], None, "tools[0].tools[0].type"),
        ([namespace("n", function("f", defer_loading=True))], None, "tools[0].tools[0].defer_loading"),
        ([namespace("n", function("f")), namespace("n", function("f"))], None, "tools[1].tools[0].name"),
        ([OTHER, namespace("n", function("f", parameters=DEEP))], None, "tools[1].tools[0].parameters"),
        ([{"type": "namespace", "name": "n", "tools": []}], None, "tools[0].description"),
        ([SERVER, OTHER], {"type": "function", "name": "get"}, "tool_choice"),
        ([SERVER], {"type": "function", "name": "nothing"}, "tool_choice"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name(
    web: httpx2.AsyncClient, tools: list[Any], choice: Any, param: str
) -> None:
    body = {"model": "fake", "input": "x", "tools": tools, "tool_choice": choice}
    answer = await web.post("/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


NAMES = st.text(st.sampled_from("ab_-.é\ud800 "), max_size=5) | st.text(
    st.sampled_from("ab_"), min_size=60, max_size=70
)


@given(plain=st.sets(NAMES, max_size=4), members=st.lists(st.tuples(NAMES, NAMES), max_size=12, unique=True))
def test_flat_names_are_legal_unique_and_lead_back(plain: set[str], members: list[tuple[str, str]]) -> None:
    tools: list[Function | Namespace] = [
        *(Function(name=name) for name in plain),
        *(Namespace(name=space, description="", tools=[Member(name=name, type="function")]) for space, name in members),
    ]
    offered = OfferedTools(tools)
    flat = [offered.flat(name, space) for space, name in members]
    assert len({*flat, *plain}) == len(flat) + len(plain)
    for name, (space, own) in zip(flat, members, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
        assert offered.own(name) == {"name": own, "namespace": space}
    for name in plain:
        assert offered.own(name) == {"name": name}


def test_names_that_would_meet_are_kept_apart() -> None:
    def offer(*spaces: tuple[str, str]) -> OfferedTools:
        members = ((space, [Member(name=name, type="function")]) for space, name in spaces)
        return OfferedTools(
            [Function(name="x__y"), *(Namespace(name=n, description="", tools=tools) for n, tools in members)]
        )

    offered = offer(("a", "b__c"), ("a__b", "c"), ("x", "y"), ("mcp__s__", "t"))
    found = [offered.flat(*pair) for pair in (("b__c", "a"), ("c", "a__b"), ("y", "x"), ("t", "mcp__s__"))]
    assert found[0] == "a__b__c"
    assert found[3] == "mcp__s__t"
    assert len(set(found)) == 4
    assert "x__y" not in found
    with pytest.raises(InvalidRequestError, match="twice"):
        offer(("a", "b"), ("a", "b"))
