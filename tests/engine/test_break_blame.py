"""Hazard: a session is told that it lost KV which it never had."""

from __future__ import annotations

import pytest

from modeld.engine.protocol import Done, Load, Turn, decode_result
from modeld.types import DecodeOptions, EndPart, Message, Receipt

from .test_scheduler_states import Engine

GREEDY = DecodeOptions(temperature=0)


class Asked:
    """Cells for one conversation at a time, and RAM for what leaves them."""

    def __init__(self) -> None:
        self.engine = Engine(Load("", "fake", "d", cells=200, window=200, sequences=2, batch=32, ram=10**6))
        self._ids = 0

    def __call__(self, session: int, text: str) -> Receipt:
        self._ids += 1
        self.engine.ask(Turn(self._ids, session, (Message("user", text),), GREEDY))
        assert self.engine.steps(1000)
        (done,) = [r for r in self.engine.replies if isinstance(r, Done) and r.id == self._ids]
        return decode_result(done.result, EndPart).cost()


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_a_new_session_that_begins_like_one_in_ram(asked: Asked) -> None:
    first = asked(1, "zebra " + "one" * 20)
    for session in range(2, 6):
        asked(session, f"{session} " + "other" * 12)
    assert asked.engine.scheduler._pool.get(1).gone == "evicted"
    receipt = asked(9, "zebra two")
    # The few tokens that RAM has of it are not worth the way back.
    assert receipt.restored == 0
    assert receipt.stop is None
    assert first.stop is None


def test_a_session_whose_kv_does_not_come_back(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "zebra " + "one" * 20
    first = asked(1, text)
    for session in range(2, 6):
        asked(session, f"{session} " + "other" * 12)
    monkeypatch.setattr(asked.engine.backend, "restore", lambda *_: False)
    receipt = asked(1, text)
    assert receipt.restored == 0
    assert receipt.stop is not None
    assert (receipt.stop.reason, receipt.stop.token) == ("evicted", receipt.reused)
    # All but the last token of the prompt, which is computed in any case; the answer to it is not asked for.
    assert receipt.stop.tokens == receipt.prefilled - 1
    assert receipt.dropped == first.resident - receipt.reused
