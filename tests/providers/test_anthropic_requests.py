"""Hazard: a request drops something, says it in a way the vendor refuses, or loses thinking that must come back."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from msgspec import structs
from pydantic import TypeAdapter

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
from modeld.providers.anthropic_facts import facts_of
from modeld.providers.anthropic_messages import build_request
from modeld.providers.facts import observe
from modeld.repository.names import ToolNames
from modeld.repository.values import ObservedModel
from modeld.repository.wire import Call
from modeld.thinking import BUDGETS

OLD = "claude-haiku-4-5-20251001"
MIDDLE = "claude-sonnet-4-6"
NEW = "claude-opus-5"
NEWEST = "claude-opus-5-5"
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
CLOCK = Tool(FunctionTool("clock"))
ASK = (Message("user", "list /tmp"),)
CALLS = (
    ToolCall("call_1", FunctionCall("fs.list", '{"path":"/tmp"}')),
    ToolCall("call_2", FunctionCall("clock", "")),
)
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}
HIDDEN = {"type": "redacted_thinking", "data": "abc"}
PARAMS: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)


def built(messages: Iterable[Message] = ASK, model: str | ObservedModel = NEW, **options: Any) -> dict[str, Any]:
    """The body, which the SDK's types took. Sampling parameters are no part of them any more."""
    config = ChatConfig(**options)
    observed = observe(model, facts_of(model)) if isinstance(model, str) else model
    call = Call(model=observed, messages=tuple(messages), config=config)
    body = build_request(call, ToolNames(config.tools, 128))
    typed = {name: value for name, value in body.items() if name not in ("temperature", "top_p", "top_k")}
    # Fields that the types do not know would be missing in what they give back.
    assert plain(PARAMS.validate_python(typed)) == typed
    return body


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return [plain(inner) for inner in value]


def refusal(feature: str, **options: Any) -> str:
    with pytest.raises(NotSupportedError) as caught:
        built(**options)
    assert caught.value.details["feature"] == feature
    return str(caught.value)


def test_a_conversation_is_written_as_the_vendor_wants_it() -> None:
    messages = [
        Message("system", "be terse"),
        Message("user", "list /tmp"),
        Message("assistant", "", tool_calls=CALLS),
        Message("tool", '{"files":["a"]}', tool_call_id="call_1"),
    ]
    body = built([*messages, Message("tool", "", tool_call_id="call_2")], MIDDLE, max_tokens=256, tools=(LIST,))
    assert body == {
        "model": MIDDLE,
        "max_tokens": 256,
        "system": "be terse",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "list /tmp"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "call_1", "name": "fs_list", "input": {"path": "/tmp"}},
                    {"type": "tool_use", "id": "call_2", "name": "clock", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": '{"files":["a"]}'},
                    {"type": "tool_result", "tool_use_id": "call_2", "content": ""},
                ],
            },
        ],
        "tools": [{"name": "fs_list", "description": "list", "input_schema": LIST.function.parameters}],
    }


def test_system_messages_are_joined_wherever_they_stand() -> None:
    messages = [Message("system", "a"), Message("user", "x"), Message("system", "  "), Message("system", "b")]
    assert built(messages)["system"] == "a\n\nb"


def test_results_come_first_in_one_turn_whatever_stands_between_them() -> None:
    messages = [
        Message("user", "go"),
        Message("assistant", "", tool_calls=CALLS),
        Message("tool", "1", tool_call_id="call_1"),
        Message("user", "hurry"),
        Message("tool", "2", tool_call_id="call_2"),
        Message("user", ""),
    ]
    turn = built(messages)["messages"][-1]
    assert turn["role"] == "user"
    assert [block["type"] for block in turn["content"]] == ["tool_result", "tool_result", "text"]
    assert [block.get("tool_use_id") for block in turn["content"]] == ["call_1", "call_2", None]


def test_turns_of_one_side_are_one_turn_and_empty_ones_none() -> None:
    messages = [
        Message("user", "a"),
        Message("assistant", ""),
        Message("user", "b"),
        Message("assistant", "c"),
        Message("assistant", "d"),
    ]
    turns = [(turn["role"], [block["text"] for block in turn["content"]]) for turn in built(messages)["messages"]]
    assert turns == [("user", ["a", "b"]), ("assistant", ["c", "d"])]


def test_images_stand_in_questions_and_results() -> None:
    picture = ImagePart(b"\x89PNG", "image/png")
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}}
    messages = [
        Message("user", "what?", images=(picture,)),
        Message("assistant", "", tool_calls=CALLS[:1]),
        Message("tool", "", tool_call_id="call_1", images=(picture,)),
    ]
    turns = built(messages)["messages"]
    assert turns[0]["content"] == [{"type": "text", "text": "what?"}, block]
    assert turns[2]["content"][0]["content"] == [block]


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_an_image_elsewhere_is_refused_and_not_dropped(role: Any) -> None:
    with pytest.raises(InvalidRequestError, match=role):
        built([*ASK, Message(role, "x", images=(ImagePart(b"x", "image/png"),))])


def test_an_image_of_a_type_the_vendor_lacks_is_refused() -> None:
    assert "image/tiff" in refusal("images", messages=[Message("user", "x", images=(ImagePart(b"x", "image/tiff"),))])


@pytest.mark.parametrize("arguments", ['{"path":', "[1]", '"x"', "null"])
def test_arguments_that_are_no_object_are_refused_with_the_name_of_the_call(arguments: str) -> None:
    call = ToolCall("call_9", FunctionCall("fs.list", arguments))
    with pytest.raises(InvalidRequestError, match=r"'call_9' of 'fs\.list'"):
        built([*ASK, Message("assistant", "", tool_calls=(call,))])


def test_a_call_and_a_result_need_an_id() -> None:
    with pytest.raises(InvalidRequestError, match="an id"):
        built([*ASK, Message("assistant", "", tool_calls=(ToolCall("", FunctionCall("x")),))])
    with pytest.raises(InvalidRequestError, match="id of its call"):
        built([*ASK, Message("tool", "x")])


def test_ids_of_other_vendors_fit_and_stay_together() -> None:
    call = ToolCall("functions.clock:0", FunctionCall("clock"))
    messages = [*ASK, Message("assistant", "", tool_calls=(call,)), Message("tool", "x", tool_call_id=call.id)]
    turns = built(messages)["messages"]
    used, result = turns[1]["content"][0]["id"], turns[2]["content"][0]["tool_use_id"]
    assert used == result
    assert used.replace("_", "").isalnum()


def test_a_tool_has_a_schema_always_and_a_short_clean_name() -> None:
    tools = (Tool(FunctionTool("a" * 200)), Tool(FunctionTool("x.y", parameters={"properties": {}})))
    sent = built(tools=tools)["tools"]
    assert sent[0] == {"name": "a" * 128, "input_schema": {"type": "object"}}
    assert sent[1] == {"name": "x_y", "input_schema": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("choice", "parallel", "wanted"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ("fs.list", None, {"type": "tool", "name": "fs_list"}),
    ],
)
def test_the_choice_of_tools(choice: str | None, parallel: bool | None, wanted: Any) -> None:
    body = built(tools=(LIST, CLOCK), tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == wanted


def test_without_tools_there_is_no_choice_to_send() -> None:
    assert "tool_choice" not in built(tool_choice="none", parallel_tool_calls=False)


def test_a_forced_call_is_refused_where_the_vendor_refuses_it() -> None:
    assert NEWEST in refusal("tool_choice", model=NEWEST, tools=(LIST,), tool_choice="required")
    assert "thinks" in refusal("tool_choice", model=NEW, tools=(LIST,), tool_choice="fs.list", think="low")


def test_a_schema_is_closed_and_otherwise_kept() -> None:
    inner = {"type": "object", "properties": {"enum": {"type": "object"}, "default": {"type": ["object", "null"]}}}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}, "one": {"anyOf": [{"type": "object"}]}},
        "$defs": {"open": {"type": "object", "additionalProperties": {"type": "string"}}},
    }
    sent = built(response_format=ResponseFormat(schema=schema))["output_config"]["format"]["schema"]
    assert sent["additionalProperties"] is False
    items = sent["properties"]["list"]["items"]
    assert [items["properties"][name]["additionalProperties"] for name in ("enum", "default")] == [False, False]
    assert sent["properties"]["one"]["anyOf"] == [{"type": "object", "additionalProperties": False}]
    assert sent["$defs"] == schema["$defs"]
    assert "additionalProperties" not in schema


def test_json_without_a_schema_is_refused() -> None:
    assert "schema" in refusal("response_format", response_format=ResponseFormat())


@pytest.mark.parametrize(
    ("model", "level", "thinking", "effort"),
    [
        (NEW, "auto", None, None),
        (NEW, "off", {"type": "disabled"}, None),
        (NEW, "low", {"type": "adaptive", "display": "summarized"}, "low"),
        (NEW, "xhigh", {"type": "adaptive", "display": "summarized"}, "xhigh"),
        (NEWEST, "medium", {"type": "adaptive", "display": "summarized"}, "medium"),
        ("claude-sonnet-5-5", "off", {"type": "between_tools"}, None),
        (MIDDLE, "high", {"type": "adaptive", "display": "summarized"}, "high"),
        (OLD, "off", {"type": "disabled"}, None),
        (OLD, "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        ("some-model-of-a-gateway", "high", {"type": "adaptive", "display": "summarized"}, "high"),
    ],
)
def test_a_level_is_written_for_the_model(model: str, level: str, thinking: Any, effort: str | None) -> None:
    body = built(model=model, think=level)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(
    ("model", "level", "levels"),
    [
        (NEWEST, "off", "auto, low, medium, high, xhigh"),
        (MIDDLE, "xhigh", "auto, off, low, medium, high"),
        (NEW, "minimal", "auto, off, low, medium, high, xhigh"),
    ],
)
def test_a_level_the_model_lacks_is_refused_with_those_it_has(model: str, level: str, levels: str) -> None:
    said = refusal("think", model=model, think=level)
    assert model in said
    assert said.endswith(levels)


def test_the_listing_wins_over_the_table() -> None:
    meta = {"thinking": "enabled", "thinking_off": "never", "effort": ""}
    model = structs.replace(observe(NEW, facts_of(NEW)), meta=meta)
    assert built(model=model, think="low")["thinking"]["type"] == "enabled"
    assert "auto, minimal" in refusal("think", model=model, think="off")


def test_a_model_that_never_thinks_is_not_told_to_stop() -> None:
    model = observe(OLD, facts_of(OLD))
    model = structs.replace(model, capabilities=structs.replace(model.capabilities, can_think=False))
    assert "thinking" not in built(model=model, think="off")


@pytest.mark.parametrize("level", BUDGETS)
@pytest.mark.parametrize(("asked", "ceiling"), [(None, 64_000), (500, 64_000), (64_000, 64_000), (None, 0), (500, 0)])
def test_a_budget_leaves_the_answer_its_room(level: str, asked: int | None, ceiling: int) -> None:
    model = observe(OLD, facts_of(OLD))
    capabilities = structs.replace(model.capabilities, max_output_tokens=ceiling)
    body = built(model=structs.replace(model, capabilities=capabilities), think=level, max_tokens=asked)
    budget = body["thinking"]["budget_tokens"]
    assert budget >= 1024
    assert body["max_tokens"] == min(budget + (asked or ceiling or 4096), ceiling or 10**9)
    assert body["max_tokens"] > budget


def test_a_budget_that_leaves_no_room_is_refused() -> None:
    model = observe(OLD, facts_of(OLD))
    capabilities = structs.replace(model.capabilities, max_output_tokens=8192)
    assert "8192" in refusal("think", model=structs.replace(model, capabilities=capabilities), think="high")


def test_max_tokens_is_always_there() -> None:
    assert built(max_tokens=5)["max_tokens"] == 5
    assert built(model=OLD)["max_tokens"] == 64_000
    assert built(model="some-model-of-a-gateway")["max_tokens"] == 4096


def test_sampling_is_for_models_that_take_it() -> None:
    assert built(model=MIDDLE, temperature=0.5, top_k=3)["temperature"] == 0.5
    assert built(model="some-model-of-a-gateway", top_p=0.5)["top_p"] == 0.5
    assert "top_k" not in built(model=NEW, top_k=0)
    for name, value in (("temperature", 1.0), ("top_p", 0.9), ("top_k", 3)):
        assert NEW in refusal(name, model=NEW, **{name: value})
    refusal("temperature", model=MIDDLE, temperature=1.5)
    refusal("top_p", model=MIDDLE, temperature=0.5, top_p=0.5)


def test_sampling_beside_thinking_is_refused() -> None:
    for name, value in (("temperature", 0.5), ("top_k", 3), ("top_p", 0.5)):
        assert "thinks" in refusal(name, model=MIDDLE, think="low", **{name: value})
    assert built(model=MIDDLE, think="low", top_p=0.95)["top_p"] == 0.95
    assert built(model=MIDDLE, think="low", temperature=1.0)["temperature"] == 1.0
    assert built(model=MIDDLE, think="off", temperature=0.5)["temperature"] == 0.5


def thoughtful(content: str, blocks: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    meta = {"anthropic": {"model": NEW, "content": blocks}, "openai": {"reasoning": "not for here"}}
    message = Message("assistant", content, thinking="never sent", provider_meta=meta, **fields)
    body = built([*ASK, message])
    assert "never sent" not in json.dumps(body)
    assert "not for here" not in json.dumps(body)
    turn: dict[str, Any] = body["messages"][1]
    return turn


def test_thinking_goes_back_in_the_order_in_which_it_came() -> None:
    order = [THOUGHT, {"type": "text", "length": 5}, HIDDEN, {"type": "tool_use"}, {"type": "text", "length": 2}]
    turn = thoughtful("Hellook", order, tool_calls=CALLS[:1])
    assert turn["content"] == [
        THOUGHT,
        {"type": "text", "text": "Hello"},
        HIDDEN,
        {"type": "tool_use", "id": "call_1", "name": "fs_list", "input": {"path": "/tmp"}},
        {"type": "text", "text": "ok"},
    ]


def test_thinking_goes_before_a_text_that_was_changed() -> None:
    order = [THOUGHT, {"type": "text", "length": 5}, HIDDEN, {"type": "tool_use"}]
    kinds = [block["type"] for block in thoughtful("Hi", order, tool_calls=CALLS)["content"]]
    assert kinds == ["thinking", "redacted_thinking", "text", "tool_use", "tool_use"]


def test_thinking_of_another_model_stays_away() -> None:
    meta = {"anthropic": {"model": MIDDLE, "content": [THOUGHT, {"type": "text", "length": 2}]}}
    turn = built([*ASK, Message("assistant", "Hi", provider_meta=meta)])["messages"][1]
    assert turn["content"] == [{"type": "text", "text": "Hi"}]


def test_what_came_back_from_storage_as_json_is_the_same() -> None:
    meta = {"anthropic": {"model": NEW, "content": [THOUGHT, {"type": "text", "length": 2}]}}
    stored = json.loads(json.dumps(meta))
    fresh, old = (built([*ASK, Message("assistant", "Hi", provider_meta=m)]) for m in (meta, stored))
    assert fresh == old


def test_stops_are_a_list() -> None:
    assert built(stop=("a", "b"))["stop_sequences"] == ["a", "b"]


MARK = {"cache_control": {"type": "ephemeral"}}


def layout(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"anthropic": {"content": list(content), **more}}


def test_the_whole_prompt_is_kept_when_asked() -> None:
    assert "cache_control" not in built()
    assert built(prompt_cache="5m")["cache_control"] == {"type": "ephemeral", "ttl": "5m"}
    assert "'5m' or '1h', not for '24h'" in refusal("prompt_cache", prompt_cache="24h")
    with pytest.raises(InvalidRequestError, match="prompt_cache must be one of"):
        ChatConfig(prompt_cache="for ever")  # type: ignore[arg-type]


def test_marks_travel_with_tools_and_blocks() -> None:
    tool = Tool(FunctionTool("clock", provider_meta={"anthropic": MARK, "other": 1}))
    meta = layout({"type": "text", "length": 2}, {"type": "text", "length": 1} | MARK)
    messages = [
        Message("user", "abc", provider_meta=meta),
        Message("assistant", "", tool_calls=CALLS[1:]),
        Message("tool", "noon", tool_call_id="call_2", provider_meta={"anthropic": MARK}),
    ]
    body = built(messages, tools=(tool,))
    assert body["tools"][0]["cache_control"] == MARK["cache_control"]
    first, _, last = (turn["content"] for turn in body["messages"])
    assert first == [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"} | MARK]
    assert last == [{"type": "tool_result", "tool_use_id": "call_2", "content": "noon"} | MARK]


def test_a_message_that_was_changed_is_laid_out_as_usual() -> None:
    for entries in ([{"type": "text", "length": 4} | MARK], [{"type": "text", "length": 3} | MARK, {"type": "image"}]):
        body = built([Message("user", "abc", provider_meta=layout(*entries))])
        assert body["messages"][0]["content"] == [{"type": "text", "text": "abc"}]


@pytest.mark.parametrize(
    "meta",
    [{"anthropic": []}, {"anthropic": {"content": 5}}, layout({"type": "text", "length": -1}), layout({"length": 1})],
    ids=str,
)
def test_a_layout_that_is_none_is_refused(meta: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="has to go back as it came"):
        built([Message("user", "abc", provider_meta=meta)])
