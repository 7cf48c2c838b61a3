"""Hazard: what goes to Google is not what was asked for, or not what Google takes."""

from typing import Any

import pytest
from google.genai import types

from modeld import (
    ChatConfig,
    FunctionCall,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    Message,
    NotSupportedError,
    ResponseFormat,
    Tool,
    ToolCall,
)
from modeld.providers.facts import observe
from modeld.providers.generate_content import NAME_LIMIT, NO_SIGNATURE, build_request, tool_response
from modeld.providers.google_facts import google_facts
from modeld.repository.names import ToolNames
from modeld.repository.wire import Call

PATHS = {"type": "object", "properties": {"path": {"type": ["string", "null"], "default": None}}, "required": ["path"]}
LIST = Tool(FunctionTool("fs.list", "list", PATHS))
HISTORY = (
    Message("system", "be terse"),
    Message("user", "list /tmp"),
    Message("assistant", "", tool_calls=(ToolCall("call_1", FunctionCall("fs.list", '{"path":"/tmp"}')),)),
    Message("tool", '{"files":["a"]}', tool_call_id="call_1"),
)


def request(*messages: Message, model: str = "gemini-2.5-flash", **options: Any) -> dict[str, Any]:
    config = ChatConfig(**options)
    call = Call(model=observe(model, google_facts(model)), messages=messages or HISTORY, config=config)
    return build_request("gemini", call, ToolNames(config.tools, NAME_LIMIT))


def signed(signature: str) -> dict[str, Any]:
    return {"google": {"thought_signature": signature}}


def test_a_tool_turn_is_written_as_google_documents_it() -> None:
    assert request(tools=(LIST,), max_tokens=256, temperature=0.2) == {
        "systemInstruction": {"parts": [{"text": "be terse"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "list /tmp"}]},
            {
                "role": "model",
                "parts": [{"functionCall": {"id": "call_1", "name": "fs_list", "args": {"path": "/tmp"}}}],
            },
            {
                "role": "user",
                "parts": [{"functionResponse": {"id": "call_1", "name": "fs_list", "response": {"files": ["a"]}}}],
            },
        ],
        "generationConfig": {"temperature": 0.2, "maxOutputTokens": 256},
        "tools": [
            {"functionDeclarations": [{"name": "fs_list", "description": "list", "parametersJsonSchema": PATHS}]}
        ],
    }


def test_the_sdk_knows_every_field() -> None:
    """Its types forbid what they do not know."""
    everything = request(
        *HISTORY,
        Message("user", "and this?", images=(ImagePart(b"\x89PNG", "image/png"),)),
        model="gemini-2.5-pro",
        tools=(LIST,),
        tool_choice="fs.list",
        temperature=0.5,
        max_tokens=9,
        top_p=0.5,
        top_k=3,
        seed=1,
        stop=("x",),
        frequency_penalty=0.5,
        presence_penalty=0.5,
        response_format=ResponseFormat(schema=PATHS),
        think="high",
    )
    for content in (*everything.pop("contents"), everything.pop("systemInstruction")):
        types.Content.model_validate(content)
    for tool in everything.pop("tools"):
        types.Tool.model_validate(tool)
    types.ToolConfig.model_validate(everything.pop("toolConfig"))
    types.GenerationConfig.model_validate(everything.pop("generationConfig"))
    assert everything == {}


def test_system_messages_are_joined_and_empty_ones_left_out() -> None:
    body = request(Message("system", "one"), Message("user", "go"), Message("system", ""), Message("system", "two"))
    assert body["systemInstruction"] == {"parts": [{"text": "one\n\ntwo"}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "go"}]}]
    assert "systemInstruction" not in request(Message("user", "go"))


def test_results_of_parallel_calls_come_in_one_turn() -> None:
    calls = tuple(ToolCall(f"c{i}", FunctionCall("fs.list", "{}")) for i in range(3))
    results = [Message("tool", f"{i}", tool_call_id=f"c{i}") for i in range(3)]
    body = request(Message("user", "go"), Message("assistant", "", tool_calls=calls), *results, Message("user", "on"))
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    *answers, text = body["contents"][2]["parts"]
    assert [part["functionResponse"]["id"] for part in answers] == ["c0", "c1", "c2"]
    assert {part["functionResponse"]["name"] for part in answers} == {"fs_list"}
    assert text == {"text": "on"}


@pytest.mark.parametrize(
    ("content", "response"),
    [
        ("", {"content": ""}),
        ("plain", {"content": "plain"}),
        ('{"a": null}', {"a": None}),
        ("[1, 2]", {"content": [1, 2]}),
        ("3", {"content": 3}),
        ("null", {"content": None}),
        ("NaN", {"content": "NaN"}),
        ('{"$schema": "x"}', {"content": '{"$schema": "x"}'}),
        ('[{"a": {"$ref": "#"}}]', {"content": '[{"a": {"$ref": "#"}}]'}),
        ('{"definitions": {}}', {"content": '{"definitions": {}}'}),
    ],
)
def test_a_result_is_an_object(content: str, response: dict[str, Any]) -> None:
    assert tool_response(content) == response


def test_a_result_of_a_call_that_nobody_made_has_a_name() -> None:
    body = request(Message("user", "go"), Message("tool", "x", tool_call_id="gone"))
    assert body["contents"][0]["parts"][1]["functionResponse"]["name"] == "tool_response"


@pytest.mark.parametrize(
    ("arguments", "args"),
    [
        ("", {}),
        ("{}", {}),
        ('{"a": null}', {"a": None}),
        ("{broken", {"arguments": "{broken"}),
        ("[1]", {"arguments": [1]}),
    ],
)
def test_arguments_are_an_object_and_none_are_lost(arguments: str, args: dict[str, Any]) -> None:
    message = Message("assistant", "", tool_calls=(ToolCall("c", FunctionCall("f", arguments)),))
    body = request(Message("user", "go"), message)
    assert body["contents"][1]["parts"][0]["functionCall"]["args"] == args


def parts_of(*calls: ToolCall, model: str = "gemini-3-flash-preview", **fields: Any) -> list[dict[str, Any]]:
    body = request(Message("user", "go"), Message("assistant", tool_calls=calls, **fields), model=model)
    parts: list[dict[str, Any]] = body["contents"][1]["parts"]
    return parts


def test_a_signature_goes_back_on_its_own_part() -> None:
    first = ToolCall("a", FunctionCall("f"), provider_meta=signed("c2ln"))
    second = ToolCall("b", FunctionCall("f"), provider_meta={"anthropic": {"thought_signature": "no"}})
    text, one, two = parts_of(first, second, content="Hm.", provider_meta=signed("dGV4dA=="))
    assert text == {"text": "Hm.", "thoughtSignature": "dGV4dA=="}
    assert one["thoughtSignature"] == "c2ln"
    assert "thoughtSignature" not in two


def test_a_signature_without_text_goes_back_in_an_empty_part() -> None:
    assert parts_of(provider_meta=signed("c2ln")) == [{"text": "", "thoughtSignature": "c2ln"}]


@pytest.mark.parametrize(("model", "wanted"), [("gemini-4-argon", True), ("gemini-9", True), ("gemini-2.5-pro", False)])
def test_calls_of_another_vendor_get_the_documented_stand_in(model: str, wanted: bool) -> None:
    one, two = parts_of(ToolCall("a", FunctionCall("f")), ToolCall("b", FunctionCall("f")), model=model)
    assert one.get("thoughtSignature") == (NO_SIGNATURE if wanted else None)
    assert "thoughtSignature" not in two


@pytest.mark.parametrize("meta", [{"google": None}, {"google": {"thought_signature": 7}}, {"google": "x"}, {}, None])
def test_meta_that_is_not_ours_is_left_alone(meta: dict[str, Any] | None) -> None:
    assert parts_of(content="x", provider_meta=meta) == [{"text": "x"}]


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ("fs.list", {"mode": "ANY", "allowedFunctionNames": ["fs_list"]}),
    ],
)
def test_a_tool_choice_is_a_mode(choice: str, config: dict[str, Any]) -> None:
    assert request(tools=(LIST,), tool_choice=choice)["toolConfig"] == {"functionCallingConfig": config}


def test_json_without_a_schema_is_any_json() -> None:
    assert request(response_format=ResponseFormat())["generationConfig"] == {"responseMimeType": "application/json"}


def level(name: str) -> dict[str, Any]:
    return {"thinkingLevel": name, "includeThoughts": True}


def budget(tokens: int) -> dict[str, Any]:
    return {"thinkingBudget": tokens, "includeThoughts": True}


@pytest.mark.parametrize(
    ("model", "think", "config"),
    [
        ("gemini-2.5-pro", "auto", None),
        ("gemini-2.5-pro", "medium", budget(8192)),
        ("gemini-2.5-pro", "xhigh", budget(32768)),
        ("gemini-2.5-flash", "off", {"thinkingBudget": 0}),
        ("gemini-2.5-flash-lite", "low", budget(1024)),
        ("gemini-3-flash-preview", "minimal", level("MINIMAL")),
        ("gemini-3.1-pro-preview", "medium", level("MEDIUM")),
        ("gemini-3.8-flash", "high", level("HIGH")),
        ("gemini-9-neon", "xhigh", level("XHIGH")),
        ("text-embedding-005", "off", None),
    ],
)
def test_a_thinking_level_is_the_models_own(model: str, think: str, config: dict[str, Any] | None) -> None:
    body = request(model=model, think=think)
    assert body.get("generationConfig", {}).get("thinkingConfig") == config


@pytest.mark.parametrize(
    ("model", "think", "levels"),
    [
        ("gemini-2.5-pro", "off", "auto, minimal, low, medium, high, xhigh"),
        ("gemini-2.5-flash", "xhigh", "auto, off, minimal, low, medium, high"),
        ("gemini-3-pro-preview", "medium", "auto, low, high"),
        ("gemini-3.8-flash", "minimal", "auto, low, medium, high"),
        ("gemini-3-flash-preview", "off", "auto, minimal, low, medium, high"),
        ("gemini-9-neon", "off", "auto, minimal, low, medium, high, xhigh"),
    ],
)
def test_a_level_the_model_lacks_is_refused_with_those_it_has(model: str, think: str, levels: str) -> None:
    with pytest.raises(NotSupportedError) as caught:
        request(model=model, think=think)
    assert str(caught.value).endswith(f"it has {levels}")
    assert (caught.value.details["feature"], caught.value.details["model"]) == ("think", model)


@pytest.mark.parametrize(("option", "value"), [("top_k", 0), ("parallel_tool_calls", False)])
def test_a_value_that_google_cannot_do_is_refused(option: str, value: Any) -> None:
    with pytest.raises(NotSupportedError) as caught:
        request(**{option: value})
    assert caught.value.details["feature"] == option


def test_what_was_thought_is_never_sent() -> None:
    assert "secret" not in str(parts_of(content="x", thinking="secret"))


def test_every_row_of_the_table_can_be_reached() -> None:
    """A row behind one that matches more is dead."""
    from modeld.providers.google_facts import FACTS

    names = [row.match.replace("*", "x") for row in FACTS]
    assert [google_facts(name).match for name in names] == [row.match for row in FACTS]
    assert all(row.source.startswith("https://") for row in FACTS)


def test_an_option_out_of_range_is_refused_before_all() -> None:
    with pytest.raises(InvalidRequestError):
        request(top_p=2)
