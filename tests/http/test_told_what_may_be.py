"""Hazard: a refusal that says what is wrong and not what would be right."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import pytest

from modeld.http.anthropic_request import MessagesRequest
from modeld.http.bodies import convert, decode
from modeld.http.errors import Refusal
from modeld.http.openai_request import ChatRequest
from modeld.http.responses_request import ResponsesRequest
from modeld.node.store import bundled_path

from .conftest import Site

pytestmark = pytest.mark.anyio

TALK = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("into", "body", "message"),
    [
        (ChatRequest, TALK | {"n": 2}, "n: 2 is not supported here, only 1"),
        (ChatRequest, TALK | {"max_token": 5}, "max_token is not supported here; leave it out, or write max_tokens"),
        (ChatRequest, TALK | {"nothing_like_it": 5}, "nothing_like_it is not supported here; leave it out"),
        # What is refused by name is no help.
        (ChatRequest, TALK | {"logit_biass": 5}, "logit_biass is not supported here; leave it out"),
        (ChatRequest, TALK | {"tool_choice": "any"}, "tool_choice: 'any' is none of 'auto', 'none', 'required'"),
        (ChatRequest, {"messages": [{"role": "user", "contents": "x"}]},
         "messages[0].contents is not supported here; leave it out, or write content"),
        (ChatRequest, {"messages": [{"role": "me", "content": "x"}]},
         "messages[0].role: 'me' is none of 'system', 'developer', 'user', 'assistant', 'tool'"),
        (ResponsesRequest, {"input": "x", "max_tokens": 5},
         "max_tokens is not supported here; leave it out, or write max_output_tokens"),
        (ResponsesRequest, {"input": "x", "background": True}, "background: True is not supported here, only false"),
        (MessagesRequest, TALK | {"max_tokens": 5, "thinking": {"type": "on"}},
         "thinking.type: 'on' is none of 'adaptive', 'enabled', 'disabled', 'between_tools'"),
    ],
)  # fmt: skip
async def test_a_refusal_names_what_may_stand_there(into: Any, body: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal) as refused:
        await decode(msgspec.json.encode({"model": "tiny"} | body), into)
    assert refused.value.message == message


def test_a_part_is_named_from_where_it_stands() -> None:
    class Part(msgspec.Struct, forbid_unknown_fields=True):
        colour: str = ""

    with pytest.raises(Refusal) as refused:
        convert([{"color": "red"}], list[Part], "tools[3].shades")
    assert refused.value.param == "tools[3].shades[0].color"
    assert refused.value.message.endswith("write colour")


async def test_an_endless_name_is_compared_with_nothing() -> None:
    with pytest.raises(Refusal) as refused:
        await decode(msgspec.json.encode({"model": "tiny", "max_tokens" * 100_000: 1} | TALK), ChatRequest)
    assert refused.value.message.endswith("leave it out")


async def test_a_model_file_that_is_cut_short_is_told_once_and_with_the_next_step(
    site: Site, web: httpx2.AsyncClient
) -> None:
    whole = bundled_path().read_bytes()
    (site.root / "models").mkdir(exist_ok=True)
    (site.root / "models" / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    refused = await web.post("/v1/chat/completions", json={"model": "cut"} | TALK)
    assert refused.status_code == 422
    message = refused.json()["error"]["message"]
    assert message.count("cannot be used") == 1
    assert f"has {len(whole) // 2} bytes" in message
    assert message.endswith("copy or download it again.")


FORM: dict[str, Any] = {"name": "a", "schema": {"if": {}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (
            "chat/completions",
            TALK | {"response_format": {"type": "json_schema", "json_schema": FORM}},
            "response_format",
        ),
        ("responses", {"input": "x", "text": {"format": {"type": "json_schema"} | FORM}}, "text.format"),
        ("responses", {"input": "x", "temperature": -3}, "temperature"),
        ("responses", {"input": "x", "user": "a\nb"}, None),
    ],
)
async def test_the_field_is_one_of_the_body_or_none(
    web: httpx2.AsyncClient, route: str, body: dict[str, Any], param: str | None, stream: bool
) -> None:
    """An option of ours goes by the route's own name; a name that no body has is not told."""
    answer = await web.post(f"/v1/{route}", json={"model": "fake", "stream": stream} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
