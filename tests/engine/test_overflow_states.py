"""Hazard: turns that leave in any order of requests, cancels, forks and evictions. No wrong cell and no wrong count."""

from __future__ import annotations

import re

from hypothesis import strategies as st
from hypothesis.stateful import rule
from msgspec import structs

from modeld.engine.protocol import Done, Request, Suffix, Turn, decode_result
from modeld.session.values import Overflow
from modeld.types import EndPart, Message

from .test_overflow_answers import GREEDY, counted, talk
from .test_scheduler_states import BOUNDS, LOAD, Sessions


class ShiftingSessions(Sessions):
    """Conversations that slide, truncate, or do neither, beside each other, in few cells and with some RAM."""

    load = structs.replace(LOAD, window=200, cells=230, batch=8, ram=2000)
    overflow: Overflow = "shift"

    @rule(overflow=st.sampled_from(["error", "shift", "truncate"]))
    def from_now_on(self, overflow: Overflow) -> None:
        self.overflow = overflow

    @rule(
        target=Sessions.running,
        session=st.integers(1, 5),
        turns=st.integers(2, 4),
        size=st.integers(10, 25),
        count=st.integers(30, 60),
        credit=st.sampled_from([1, 30, 10**6]),
    )
    def long_answer(self, session: int, turns: int, size: int, count: int, credit: int) -> int:
        messages = talk(turns, f"!count {count}", size)
        self.said[session] = messages
        return self.ask(Turn(self.ids + 1, session, messages, GREEDY, credit=credit))

    @rule(more=st.integers(0, 5))
    def steps_into_a_slide(self, more: int) -> None:
        for _ in range(600):
            if self.engine.steps(1) or any(job.again for job in self.engine.scheduler._active):
                break
        self.engine.steps(more)
        self.read()

    def ask(self, request: Request) -> int:
        if isinstance(request, Turn | Suffix):
            request = structs.replace(request, overflow=self.overflow)
        return super().ask(request)

    def answered(self, reply: Done, request: Turn) -> None:
        said = request.messages[-1].content
        if request.overflow == "error" and not said.startswith("!count "):
            super().answered(reply, request)
            return
        end = decode_result(reply.result, EndPart)
        self.joined[reply.id].add(end)
        result = self.joined[reply.id].result()
        assert end.usage.output == len(result.text)
        receipt = end.cost()
        assert receipt.input == end.usage.input
        assert min(receipt.reused, receipt.restored, receipt.prefilled, receipt.dropped, receipt.left) >= 0
        assert bool(receipt.left) == bool(result.warnings) or end.finish_reason == "cancelled"
        if said.startswith("!count "):
            whole = counted(int(said.removeprefix("!count ")))
            assert result.text == whole if end.finish_reason == "stop" else whole.startswith(result.text)
        elif end.finish_reason == "stop":
            # In the middle of the checksum another conversation may have come under it.
            assert re.fullmatch(re.escape(said) + " #[0-9a-f]{8}", result.text)
        elif end.finish_reason == "length":
            assert len(result.text) == request.options.max_tokens
        if end.usage.output and self.said.get(request.session) == request.messages:
            self.said[request.session] = (*request.messages, Message("assistant", result.text))


TestShiftingSessions = ShiftingSessions.TestCase
TestShiftingSessions.settings = BOUNDS
