"""Hazard: an object that OpenAI's own client cannot read, or that lacks what its programs look for."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.anyio


async def test_chat(sdk) -> None:
    answer = await sdk.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hello"}])
    print(answer.model_dump_json(indent=1))
    stream = await sdk.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "hello"}], stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        print(chunk.model_dump_json())
    assert 0
