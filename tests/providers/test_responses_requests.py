"""Hazard: a request of the Responses API drops something, says it wrong, or loses what the model has to see again."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from openai.types.responses.response_create_params import (
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from pydantic import TypeAdapter

from modeld import (
    ChatConfig,
    FunctionCall,
    FunctionTool,
    ImagePart,
    Message,
    NotSupportedError,
    ResponseFormat,
    Tool,
    ToolCall,
)
from modeld.providers.chat_completions import ModelFacts
from modeld.providers.facts import observe
from modeld.providers.responses import ResponsesCodec
from modeld.providers.responses_events import Decoder
from modeld.repository.names import ToolNames
from modeld.repository.wire import Call
from modeld.testing.responses import WrittenResponse
from modeld.testing.responses_requests import checked_request, sealed
from modeld.testing.server import Answer, Rejected
from modeld.types import PartsJoiner

EFFORTS = {"off": "none", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
THINKS = ModelFacts(match="gpt-5*", source="https://x", checked="2026-01-01", can_think=True, efforts=EFFORTS)
PLAIN = ModelFacts(match="gpt-4.1*", source="https://x", checked="2026-01-01", can_think=False, efforts={})
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
CLOCK = Tool(FunctionTool("clock"))
CALL = ToolCall("call_1", FunctionCall("fs.list", '{"path":"/tmp"}'))
PIXEL = ImagePart(b"\x89PNG", "image/png")
ASK = (Message("system", "be terse"), Message("user", "list /tmp"))
PARAMS: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsNonStreaming)
STREAMING: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsStreaming)


def built(
    messages: Iterable[Message] = ASK, facts: ModelFacts = THINKS, model: str = "gpt-5.2", **options: Any
) -> dict[str, Any]:
    """The body, which the SDK's types and the fake took."""
    config = ChatConfig(**options)
    call = Call(model=observe(model, facts), messages=tuple(messages), config=config)
    body = ResponsesCodec().build(call, ToolNames(config.tools, 64), facts)
    # Fields that the types do not know would be missing in what they give back.
    assert plain(PARAMS.validate_python(body)) == body
    streaming = ResponsesCodec().streaming(body)
    assert plain(STREAMING.validate_python(streaming)) == streaming
    checked_request(json.dumps(body).encode())
    return body


def plain(value: Any) -> Any:
    """Iterables are checked when they are read."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value if isinstance(value, str | int | float | None) else [plain(inner) for inner in value]


def answered(answer: Answer, **request: Any) -> Message:
    """``answer`` as the message that a client would put into its history."""
    body = {"model": "gpt-5.2", "input": "hi", "reasoning": {"effort": "high", "summary": "auto"}, **request}
    response = WrittenResponse(checked_request(json.dumps(body).encode()), answer, 7).response()
    return message_of(response)


def message_of(response: dict[str, Any]) -> Message:
    joiner = PartsJoiner()
    for part in Decoder(ToolNames((LIST, CLOCK), 64), "gpt-5.2").whole(json.dumps(response).encode()):
        joiner.add(part)
    return joiner.result().message


def test_a_conversation_is_items() -> None:
    history = [
        Message("system", "be terse"),
        Message("user", "list /tmp"),
        Message("assistant", tool_calls=(CALL,)),
        Message("tool", '{"files":["a"]}', tool_call_id="call_1"),
        Message("system", "  "),
        Message("system", "be kind"),
    ]
    body = built(history, tools=(LIST,), max_tokens=256)
    assert body == {
        "model": "gpt-5.2",
        "instructions": "be terse\n\nbe kind",
        "input": [
            {"type": "message", "role": "user", "content": "list /tmp"},
            {"type": "function_call", "call_id": "call_1", "name": "fs_list", "arguments": '{"path":"/tmp"}'},
            {"type": "function_call_output", "call_id": "call_1", "output": '{"files":["a"]}'},
        ],
        "max_output_tokens": 256,
        "tools": [
            {
                "type": "function",
                "name": "fs_list",
                "description": "list",
                "parameters": LIST.function.parameters,
                "strict": False,
            }
        ],
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
    }


def test_an_empty_result_of_a_tool_is_still_a_result() -> None:
    blank = ToolCall("call_1", FunctionCall("clock", " "))
    history = [*ASK, Message("assistant", tool_calls=(blank,)), Message("tool", "", tool_call_id="call_1")]
    call, result = built(history, tools=(CLOCK,))["input"][1:]
    assert result == {"type": "function_call_output", "call_id": "call_1", "output": ""}
    assert call["arguments"] == "{}"


def test_a_tool_without_parameters_takes_none() -> None:
    (tool,) = built(tools=(CLOCK,))["tools"]
    assert tool["parameters"] == {"type": "object", "properties": {}}
    assert "description" not in tool


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("fs.list", {"type": "function", "name": "fs_list"}),
        (None, None),
    ],
)
def test_a_choice_of_tool_is_sent(choice: str | None, sent: Any) -> None:
    body = built(tools=(LIST,), tool_choice=choice, parallel_tool_calls=False)
    assert body.get("tool_choice") == sent
    assert body["parallel_tool_calls"] is False


def test_a_schema_is_the_format_of_the_text() -> None:
    schema = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    body = built(response_format=ResponseFormat(schema=schema, name="person"))
    assert body["text"] == {"format": {"type": "json_schema", "name": "person", "schema": schema, "strict": True}}
    some = built([Message("user", "as JSON")], response_format=ResponseFormat())
    assert some["text"] == {"format": {"type": "json_object"}}


def test_images_go_where_the_vendor_takes_them() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw==", "detail": "auto"}
    history = [
        Message("user", "What?", images=(PIXEL,)),
        Message("user", images=(PIXEL, PIXEL)),
        Message("assistant", tool_calls=(CALL,)),
        Message("tool", "seen", tool_call_id="call_1", images=(PIXEL,)),
    ]
    first, second, _, result = built(history)["input"]
    assert first["content"] == [{"type": "input_text", "text": "What?"}, image]
    assert second["content"] == [image, image]
    assert result["output"] == [{"type": "input_text", "text": "seen"}, image]
    for role in ("system", "assistant"):
        with pytest.raises(NotSupportedError, match=role) as caught:
            built([*ASK, Message(role, "x", images=(PIXEL,))])  # type: ignore[arg-type]
        assert caught.value.details["feature"] == "images"


OPTIONS = {"seed": 1, "stop": ("END",), "frequency_penalty": 0.5, "presence_penalty": 0.5}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_the_api_has_not_is_refused_by_name(option: str) -> None:
    with pytest.raises(NotSupportedError, match=r"gpt-5\.2") as caught:
        built(**{option: OPTIONS[option]})
    assert caught.value.details["feature"] == option
    assert option not in ResponseCreateParamsNonStreaming.__annotations__


def test_sampling_goes_as_it_is() -> None:
    body = built(facts=PLAIN, model="gpt-4.1", temperature=0.2, top_p=0.5)
    assert (body["temperature"], body["top_p"]) == (0.2, 0.5)


def test_what_the_model_rejects_is_refused_before_it_is_sent() -> None:
    stiff = structs.replace(THINKS, refuses=("temperature",), default_effort="none", unless_effort="none")
    assert built(facts=stiff, temperature=0.2)["temperature"] == 0.2
    with pytest.raises(NotSupportedError, match=r"gpt-5\.2") as caught:
        built(facts=stiff, temperature=0.2, think="low")
    assert caught.value.details["feature"] == "temperature"


# Thinking.


@pytest.mark.parametrize(
    ("level", "reasoning"),
    [
        ("auto", None),
        (None, None),
        ("off", {"effort": "none"}),
        ("low", {"effort": "low", "summary": "auto"}),
        ("xhigh", {"effort": "xhigh", "summary": "auto"}),
    ],
)
def test_a_level_is_an_effort_and_asks_for_the_summary(level: str | None, reasoning: Any) -> None:
    assert built(think=level).get("reasoning") == reasoning


def test_a_level_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="auto, off, low, medium, high, xhigh"):
        built(think="minimal")


def test_a_model_that_does_not_think_is_not_asked_for_its_thoughts() -> None:
    message = answered(Answer(text="42.", thinking="hm"))
    body = built([*ASK, message, Message("user", "why?")], facts=PLAIN, model="gpt-4.1")
    assert "include" not in body
    assert "reasoning" not in json.dumps(body)


def test_a_model_of_which_nothing_is_known_gets_its_own_thoughts_back() -> None:
    unknown = ModelFacts(match="*", source="https://x", checked="2026-01-01")
    message = answered(Answer(text="42.", thinking="hm"))
    history = [*ASK, message, Message("user", "why?")]
    body = built(history, facts=unknown)
    assert "include" not in body
    assert [i["type"] for i in body["input"]] == ["message", "reasoning", "message", "message"]
    assert built(history, facts=unknown, think="high")["include"] == ["reasoning.encrypted_content"]


def test_what_was_thought_is_replayed_before_the_calls_and_never_as_text() -> None:
    message = answered(Answer(thinking="secret plan", tool_calls=(CALL,), finish_reason="tool_calls"))
    assert message.thinking == "secret plan"
    stored = structs.replace(message, thinking="a lie")
    body = built([*ASK, stored, Message("tool", "x", tool_call_id="call_1")], tools=(LIST,))
    reasoning, call = body["input"][1:3]
    id = reasoning["id"]
    assert reasoning == {
        "type": "reasoning",
        "id": id,
        "summary": [{"type": "summary_text", "text": "secret plan"}],
        "encrypted_content": sealed(id, "sig-1"),
    }
    assert call["type"] == "function_call"
    assert "a lie" not in json.dumps(body)
    assert message.provider_meta == {"openai": {"reasoning": [reasoning]}}


def item(kind: str, number: int, text: str = "", phase: str | None = None) -> dict[str, Any]:
    id = f"{kind}_{number}"
    if kind == "rs":
        return {"type": "reasoning", "id": id, "summary": [], "encrypted_content": sealed(id, "sig")}
    if kind == "fc":
        return {"type": "function_call", "id": id, "call_id": f"call_{number}", "name": "clock", "arguments": "{}"}
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "id": id, "role": "assistant", "content": content, "phase": phase}


def replayed(output: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """The items of the next request that stand for ``output``; results of calls left out."""
    message = message_of({"id": "r", "model": "m", "status": "completed", "output": output})
    # As it comes back from where a client stored it.
    message = structs.replace(message, provider_meta=json.loads(json.dumps(message.provider_meta)))
    message = structs.replace(message, **changes)
    results = [Message("tool", "x", tool_call_id=call.id) for call in message.tool_calls]
    items = built([*ASK, message, *results, Message("user", "go on")])["input"]
    return [i for i in items if i.get("role") != "user" and i["type"] != "function_call_output"]


def test_an_answer_of_many_items_is_replayed_in_its_order_with_phases() -> None:
    output = [
        item("rs", 0),
        item("msg", 1, "I look. ", "commentary"),
        item("rs", 2),
        item("fc", 3),
        item("rs", 4),
        item("msg", 5, "Ünï 🎈.", "final_answer"),
        item("fc", 6),
    ]
    call = {"type": "function_call", "name": "clock", "arguments": "{}"}
    said = {"type": "message", "role": "assistant"}
    assert replayed(output) == [
        output[0],
        {**said, "content": "I look. ", "phase": "commentary"},
        output[2],
        {**call, "call_id": "call_3"},
        output[4],
        {**said, "content": "Ünï 🎈.", "phase": "final_answer"},
        {**call, "call_id": "call_6"},
    ]


def test_a_phase_is_replayed_in_the_usual_order_too() -> None:
    (said,) = replayed([item("msg", 0, "Noon.", "final_answer")])
    assert said == {"type": "message", "role": "assistant", "content": "Noon.", "phase": "final_answer"}


@given(st.lists(st.sampled_from(["rs", "fc", "msg"]), max_size=8))
def test_whatever_the_order_was_it_is_kept_and_taken(kinds: list[str]) -> None:
    output = [item(kind, n, f"text {n} ") for n, kind in enumerate(kinds)]
    # Reasoning that nothing follows is refused; so is an answer of it alone.
    while kinds and kinds[-1] == "rs":
        kinds = kinds[:-1]
    names = {"rs": "reasoning", "fc": "function_call", "msg": "message"}
    assert [i["type"] for i in replayed(output)] == [names[kind] for kind in kinds]


def test_an_edited_message_is_replayed_the_usual_way() -> None:
    output = [item("msg", 0, "first "), item("rs", 1), item("msg", 2, "second"), item("fc", 3)]
    kinds = [(i["type"], i.get("content")) for i in replayed(output, content="shorter")]
    assert kinds == [("reasoning", None), ("message", "shorter"), ("function_call", None)]
    assert [i["type"] for i in replayed(output, tool_calls=())] == ["reasoning", "message"]
    assert replayed(output, content="", tool_calls=()) == []


def test_reasoning_that_cannot_be_shown_again_is_not_kept() -> None:
    bare = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None}
    message = message_of({"status": "completed", "output": [bare, item("msg", 1, "x"), item("rs", 2)]})
    assert message.provider_meta is None


@pytest.mark.parametrize(
    "meta",
    [
        {"anthropic": {"reasoning": [{"type": "thinking"}]}},
        {"openai": None},
        {"openai": {"reasoning": "text"}},
        {"openai": {"reasoning": [1]}},
        {"openai": {"order": [{"length": 3}]}},
        {"openai": {"order": [{"type": "message", "length": 2}]}},
        {"openai": []},
    ],
)
def test_foreign_meta_is_passed_over(meta: Any) -> None:
    message = Message("assistant", "hello", provider_meta=meta)
    items = built([*ASK, message, Message("user", "x")])["input"]
    assert items[1] == {"type": "message", "role": "assistant", "content": "hello"}
    assert len(items) == 3


def test_messages_without_anything_are_no_items() -> None:
    assert len(built([*ASK, Message("assistant"), Message("user")])["input"]) == 1


# The fake refuses what the vendor refuses.

USER = {"type": "message", "role": "user", "content": "hi"}
CALLED = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed("rs_1", "s")}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
REJECTED = [
    ({"seed": 1}, "seed"),
    ({"stop": ["x"]}, "stop"),
    ({"messages": []}, "messages"),
    ({"input": [CALLED, USER]}, "No tool output found"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "No tool call found"),
    ({"input": [CALLED, {"type": "function_call_output", "call_id": "c"}]}, "output"),
    ({"input": [THOUGHT, USER]}, "required following item"),
    ({"input": [{**THOUGHT, "encrypted_content": None}, CALLED]}, "not found"),
    ({"input": [{**THOUGHT, "id": "rs_2"}, CALLED]}, "could not be verified"),
    ({"input": [{**THOUGHT, "status": "completed"}, CALLED]}, "status"),
    ({"input": [{**USER, "content": [{"type": "text", "text": "x"}]}]}, "text"),
    ({"tools": [{**FUNCTION, "name": "fs.list"}]}, "matching regex"),
    ({"tools": [{**FUNCTION, "parameters": {}}]}, 'type: "object"'),
    ({"tools": [{**FUNCTION, "strict": True}]}, "additionalProperties"),
    ({"tools": [{"type": "function", "function": FUNCTION}]}, "function"),
    ({"tools": [FUNCTION, FUNCTION]}, "unique"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "not found in 'tools'"),
    ({"tool_choice": "required"}, "must be specified with"),
    ({"text": {"format": {"type": "json_object"}}}, "the word 'json'"),
    ({"max_output_tokens": 3}, ">= 16"),
    ({"reasoning": {"effort": "extreme"}}, "extreme"),
    ({"reasoning": {"effort": "high"}, "temperature": 1}, "'temperature' is not supported"),
    ({"model": "gpt-5", "top_p": 1}, "'top_p' is not supported"),
    ({"model": "gpt-4.1", "include": ["reasoning.encrypted_content"]}, "Encrypted content is not supported"),
    ({"model": "gpt-4.1", "reasoning": {"effort": "low"}}, "'reasoning.effort' is not supported"),
]


@pytest.mark.parametrize(("change", "words"), REJECTED)
def test_the_fake_rejects_what_the_vendor_rejects(change: dict[str, Any], words: str) -> None:
    good = {"model": "gpt-5.2", "input": "hi"}
    checked_request(json.dumps(good).encode())
    with pytest.raises(Rejected, match=words):
        checked_request(json.dumps({**good, **change}).encode())


def test_the_fake_rejects_what_is_no_json() -> None:
    with pytest.raises(Rejected, match="could not parse"):
        checked_request(b'{"model":')
