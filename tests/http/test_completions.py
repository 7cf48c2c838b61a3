"""Hazard: text that a template, a parser or another choice got into."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from openai.types import Completion
from openai.types.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from modeld.http.completions_request import CompletionsRequest
from modeld.types import DecodeOptions
from support.clouds import cloud

from .conftest import Site

pytestmark = pytest.mark.anyio

PROMPT = "<|im_start|>user\nWhere is Anna?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
ASKED: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 30}


def strict(answer: Completion) -> None:
    """The SDK has the type of the whole answer for chunks as well, where the vendor's reason is null until the end."""
    dumped = answer.model_dump(exclude_unset=True)
    for choice in dumped["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    Completion.model_validate(dumped, strict=True)


async def test_text_goes_on_as_a_session_says(site: Site, sdk: openai.AsyncOpenAI) -> None:
    session = await site.node.open_session("tiny")
    expected = await session.complete(PROMPT, options=DecodeOptions(temperature=0, max_tokens=30)).join()
    raw = await sdk.completions.with_raw_response.create(**ASKED)
    answer = raw.parse()
    strict(answer)
    assert answer.object == "text_completion"
    assert [(choice.index, choice.text, choice.finish_reason, choice.logprobs) for choice in answer.choices] == [
        (0, expected.text, expected.finish_reason, None)
    ]
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.usage.input, expected.usage.output)
    # All but the last token of the prompt was somebody's already.
    assert json.loads(raw.headers["x-modeld-receipt"])["reused"] == usage.prompt_tokens - 1
    ids = list((await site.node.tokenize("tiny", PROMPT)).tokens)
    assert (await sdk.completions.create(**ASKED | {"prompt": ids})).choices[0].text == expected.text


async def test_each_prompt_is_a_choice(site: Site, sdk: openai.AsyncOpenAI) -> None:
    prompts = [PROMPT, "A river", PROMPT.replace("Anna", "Ben"), *(f"number {n} is" for n in range(20))]
    alone = [await sdk.completions.create(**ASKED | {"prompt": prompt}) for prompt in prompts[:3]]
    answer = await sdk.completions.create(**ASKED | {"prompt": prompts, "echo": True})
    strict(answer)
    assert [choice.index for choice in answer.choices] == list(range(len(prompts)))
    for choice, one, prompt in zip(answer.choices, alone, prompts, strict=False):
        assert choice.text == prompt + one.choices[0].text
    assert len((answer.model_extra or {})["modeld"]["choices"]) == len(prompts)
    ids = [list((await site.node.tokenize("tiny", prompt)).tokens) for prompt in prompts[:3]]
    tokens = await sdk.completions.create(**ASKED | {"prompt": ids, "echo": True})
    assert [choice.text for choice in tokens.choices] == [choice.text for choice in answer.choices[:3]]


async def test_a_stream_joins_to_the_whole_answer(sdk: openai.AsyncOpenAI) -> None:
    asked = ASKED | {"prompt": [PROMPT, "A river"], "echo": True}
    whole = await sdk.completions.create(**asked)
    stream = await sdk.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    texts, finished, last = ["", ""], [], None
    async for chunk in stream:
        strict(chunk)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finished += [choice.finish_reason] if choice.finish_reason else []
        last = chunk
    assert texts == [choice.text for choice in whole.choices]
    assert finished == [choice.finish_reason for choice in whole.choices]
    assert last is not None
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_of_the_text(sdk: openai.AsyncOpenAI, stream: bool) -> None:
    asked = ASKED | {"logprobs": 2}
    if stream:
        chunks = [chunk async for chunk in await sdk.completions.create(**asked, stream=True)]
        text = "".join(chunk.choices[0].text for chunk in chunks)
        told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
        fields = {name: [x for part in told for x in getattr(part, name)] for name in type(told[0]).model_fields}
    else:
        answer = await sdk.completions.create(**asked)
        strict(answer)
        assert answer.choices[0].logprobs is not None
        text, fields = answer.choices[0].text, answer.choices[0].logprobs.model_dump()
    assert "".join(fields["tokens"]) == text
    assert len({len(values) for values in fields.values()}) == 1
    for token, logprob, top, offset in zip(
        fields["tokens"], fields["token_logprobs"], fields["top_logprobs"], fields["text_offset"], strict=True
    ):
        assert text[offset:].startswith(token)
        assert top[token] == max(top.values()) == logprob
        assert len(top) == 2


async def test_sixteen_tokens_where_nobody_says(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model="tiny", prompt=PROMPT, seed=3, stop=["\n\n\n\n"], top_p=0.9, user="u")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 16


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [10**8]}, "prompt"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"suffix": "x"}, "suffix"),
    ({"n": 2}, "n"),
    ({"best_of": 3}, "best_of"),
    ({"logit_bias": {"1": 1}}, "logit_bias"),
    ({"logprobs": 21}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stream_options": {}}, "stream_options"),
    ({"messages": []}, "messages"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "param"), REFUSED)
async def test_what_is_not_supported_is_named(web: httpx2.AsyncClient, change: dict[str, Any], param: str) -> None:
    answer = await web.post("/v1/completions", json=ASKED | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_what_is_too_long_is_an_error(sdk: openai.AsyncOpenAI) -> None:
    for prompt in ("word " * 5000, ["short", "word " * 5000]):
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.completions.create(**ASKED | {"prompt": prompt})
        assert refused.value.code == "context_length_exceeded"


async def test_backends_have_no_such_thing(site: Site, sdk: openai.AsyncOpenAI) -> None:
    async with cloud(site.root):
        with pytest.raises(openai.BadRequestError) as refused:
            await sdk.completions.create(**ASKED | {"model": "cloud:gpt-4o"})
    assert (refused.value.code, refused.value.param) == ("unsupported_feature", "model")


def test_every_field_of_the_vendor_is_known() -> None:
    vendors = (CompletionCreateParamsBase, CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming)
    known = {name for params in vendors for name in params.__annotations__}
    assert known <= set(CompletionsRequest.__struct_fields__)
