"""Hazard: a long prompt nobody wants any more. The engine is free within one batch, and what it says then is true.

On a real model's shape (90m, random weights), where a batch takes long enough to be cancelled in the middle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from make_shape import ensure
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, SessionConfig
from modeld.types import DecodeOptions, EndPart, Message, ProgressPart, TextPart

pytestmark = pytest.mark.anyio

BATCH = 512
GREEDY = DecodeOptions(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [Message("user", "river stone lotus amber copper kite maple silver " * 500)]


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Node]:
    # No files: what is compared with a cold run must be cold.
    node = Node(NodeConfig(data_root=tmp_path_factory.mktemp("root"), disk=0))
    yield node
    await node.aclose()


@pytest.fixture(scope="module")
def shape() -> ModelRef:
    return ModelRef(path=str(Path(ensure("90m", "q8_0"))))


async def test_cancel_in_a_prefill_of_4000_tokens(node: Node, shape: ModelRef) -> None:
    session = await node.open_session(shape)
    done = 0
    stream = session.turn(PROMPT, options=GREEDY)
    async for part in stream:
        if isinstance(part, ProgressPart):
            done = part.done
            assert (part.cached, part.total >= 4000) == (0, True)
            if done >= 2 * BATCH:
                break
    # The next batch runs already: let it get into the middle.
    await asyncio.sleep(0.1)
    asked = time.monotonic()
    end = await stream.cancel()
    waited = time.monotonic() - asked
    assert end.finish_reason == "cancelled"
    assert end.usage.output == 0
    # At most the batch that ran was finished; nothing of a batch that was cut is on the tape.
    assert done <= end.receipt.prefilled <= done + BATCH
    assert end.receipt.prefilled % BATCH == 0
    assert (await session.explain()).resident == end.receipt.resident == end.receipt.prefilled
    per_batch = end.receipt.prefill_seconds / (end.receipt.prefilled / BATCH)
    assert waited < 3 * per_batch + 0.5
    result = await session.turn(PROMPT, options=GREEDY).join()
    # Another engine, and no files, or it would find what this one has.
    await node.unload()
    cold = await (await node.open_session(shape, SessionConfig(name="cold"))).turn(PROMPT, options=GREEDY).join()
    assert result.receipt.reused == end.receipt.resident
    assert result.receipt.reused + result.receipt.prefilled == cold.receipt.prefilled
    assert result.receipt.dropped == 0
    assert result.text == cold.text


async def test_cancel_in_a_decode(node: Node, shape: ModelRef) -> None:
    session = await node.open_session(shape, SessionConfig(name="decode"))
    question = [Message("user", "river stone lotus")]
    endless = DecodeOptions(temperature=0, ignore_eos=True)
    stream = session.turn(question, options=endless)
    count = 0
    async for part in stream:
        count += isinstance(part, TextPart)
        if count == 5:
            break
    end = await stream.cancel()
    assert isinstance(end, EndPart)
    assert end.usage.output is not None
    prompt = end.receipt.input
    assert end.receipt.resident in (prompt + end.usage.output, prompt + end.usage.output - 1)
    whole = await (await node.open_session(shape, SessionConfig(name="whole"))).turn(question, options=GREEDY).join()
    result = await session.turn(question, options=GREEDY).join()
    assert result.text == whole.text
    assert result.receipt.prefilled == 1


async def test_cancelling_one_prompt_leaves_another_stream_alone(node: Node, shape: ModelRef) -> None:
    talker = await node.open_session(shape, SessionConfig(name="talker"))
    question = [Message("user", "river stone lotus")]
    options = DecodeOptions(temperature=0, max_tokens=60, ignore_eos=True)
    alone = (await talker.turn(question, options=options).join()).text
    running = asyncio.ensure_future(talker.turn(question, options=options).join())
    reader = await node.open_session(shape, SessionConfig(name="reader"))
    prompt = [Message("user", "maple " + PROMPT[0].content)]
    stream = reader.turn(prompt, options=GREEDY)
    async for part in stream:
        if isinstance(part, ProgressPart):
            break
    end = await stream.cancel()
    assert end.finish_reason == "cancelled"
    result = await running
    assert result.end.finish_reason == "length"
    assert len(result.text.split()) == len(alone.split())
