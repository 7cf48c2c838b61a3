"""Hazard: a request that nobody thought of ends the engine, and with it what all other sessions hold.

The scheduler runs in this thread over the fake. Requests cross as frames do, so that they are what an engine can get.
"""

from __future__ import annotations

import queue
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from engine.test_scheduler_states import LOAD, Engine, Mailbox
from modeld.engine.protocol import (
    Audit,
    Cancel,
    Decode,
    Detokenize,
    Done,
    Explain,
    Failed,
    Forget,
    Fork,
    Kept,
    Open,
    Prefix,
    Render,
    Request,
    Suffix,
    Tokenize,
    Turn,
    encode_request,
)
from modeld.errors import ModeldError
from modeld.session.text_values import RawPrompt
from modeld.types import DecodeOptions, ResponseFormat
from support import anything

SESSIONS = st.integers(1, 3)
TOKENS = st.lists(st.sampled_from([0, 65, 66, 0xE001, 0x10FFFF, 0x110000, -1, 2**31]), max_size=4).map(tuple)
CONVERSATION = st.lists(anything.messages, max_size=4).map(tuple)
OFFERED = st.lists(anything.tools, max_size=3).map(tuple)
OVERFLOW = st.sampled_from(["error", "truncate", "shift"])
SCHEMAS = anything.tools.map(lambda tool: tool.function.parameters)


def _made(type_: Any, **settings: Any) -> Any:
    try:
        return type_(**settings)
    except ModeldError:
        reject()


FORMATS = st.one_of(
    st.none(),
    st.builds(ResponseFormat),
    st.builds(ResponseFormat, schema=SCHEMAS),
    st.builds(ResponseFormat, regex=anything.texts | st.sampled_from(["[ab]{2}", "(", "a{1,9999}"])),
    st.builds(ResponseFormat, choice=st.lists(anything.texts, max_size=3).map(tuple)),
    st.builds(ResponseFormat, ebnf=anything.texts | st.sampled_from(['root ::= "a" | root "b"', "root ::= nothing"])),
)
OPTIONS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 20),
        "stop": st.lists(anything.pieces, max_size=2).map(tuple),
        "ignore_eos": st.booleans(),
        "response_format": FORMATS,
        "tool_choice": st.sampled_from(["auto", "required", "a", "b", "z"]),
        "parallel_tool_calls": st.booleans(),
        "logprobs": st.just(True),
        "top_logprobs": st.integers(0, 20),
    }
).map(lambda options: _made(DecodeOptions, **options))
RAW = st.none() | st.builds(RawPrompt, text=anything.texts) | st.builds(RawPrompt, tokens=TOKENS)
REQUESTS = st.one_of(
    st.builds(
        Turn, st.just(0), SESSIONS, CONVERSATION, OPTIONS, OFFERED, anything.thinking, overflow=OVERFLOW, raw=RAW
    ),
    st.builds(Turn, st.just(0), SESSIONS, CONVERSATION, OPTIONS, OFFERED, anything.thinking, overflow=OVERFLOW),
    st.builds(Prefix, st.just(0), SESSIONS, CONVERSATION, OFFERED),
    st.builds(Suffix, st.just(0), SESSIONS, CONVERSATION, anything.thinking, OVERFLOW),
    st.builds(Decode, st.just(0), SESSIONS, OPTIONS),
    st.builds(Open, SESSIONS, TOKENS, state=st.binary(max_size=8), stale=st.booleans()),
    st.builds(Fork, st.just(0), SESSIONS, SESSIONS),
    st.builds(Forget, st.just(0), SESSIONS),
    st.builds(Explain, st.just(0), SESSIONS),
    st.builds(Kept, st.just(0)),
    st.builds(Audit, st.just(0)),
    st.builds(Tokenize, st.just(0), anything.texts, st.booleans()),
    st.builds(Detokenize, st.just(0), TOKENS),
    st.builds(Render, st.just(0), CONVERSATION, OFFERED, anything.thinking, st.booleans()),
    st.builds(Cancel, st.integers(1, 8)),
)


class PatientMailbox(Mailbox):
    """One in which only the thread that makes grammars is waited for."""

    engine: Engine

    def get(self, block: bool = True, timeout: float | None = None) -> Request:
        if self.empty() and timeout != 0 and self.engine.scheduler._grammars._awaited:
            return queue.SimpleQueue.get(self, timeout=30)
        return super().get(block, timeout)


@pytest.mark.parametrize("name", ["fake", "fake:copies=1", "fake:whole=1"])
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(asked=st.lists(st.tuples(REQUESTS, st.integers(0, 8)), min_size=2, max_size=8))
def test_whatever_is_asked_is_answered_once(name: str, asked: list[tuple[Any, int]]) -> None:
    engine = Engine(msgspec.structs.replace(LOAD, name=name, ram=4000), PatientMailbox)
    engine.inbox.engine = engine  # type: ignore[attr-defined]
    expected: list[int] = []
    # Nobody waits for a text any more whose call was cancelled.
    dropped: set[int] = set()
    for id_, (request, steps) in enumerate(asked, 1):
        answered = hasattr(request, "id") and not isinstance(request, Cancel)
        request = msgspec.structs.replace(request, id=id_) if answered else request
        try:
            encode_request(request)
        except ModeldError:
            continue
        expected += [id_] if answered else []
        if (
            isinstance(request, Cancel)
            and request.id < id_
            and isinstance(asked[request.id - 1][0], Tokenize | Detokenize | Render)
        ):
            dropped.add(request.id)
        engine.ask(request)
        engine.steps(steps)
    assert engine.steps(20_000)
    answers = [reply.id for reply in engine.replies if isinstance(reply, Done | Failed)]
    assert sorted(answers) == [id_ for id_ in expected if id_ in answers or id_ not in dropped]
    assert engine.scheduler._pool.audit() == ()
    engine.scheduler._grammars._thread.shutdown()
