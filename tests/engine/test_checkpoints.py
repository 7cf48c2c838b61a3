"""Hazard: a model that cannot go back, and what it read computed again, or a state taken for that of other tokens."""

from __future__ import annotations

from msgspec import structs

from modeld.engine.backend import Slice, StepResult
from modeld.engine.checkpoints import LINE, MOST, Checkpoints
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.job import Job
from modeld.engine.pool import Pool
from modeld.engine.protocol import Done, Explain, Failed, Held, Load, Prefix, Request, Suffix, Turn, decode_result
from modeld.engine.session import EngineSession
from modeld.session.manifest import pack_tokens
from modeld.types import DecodeOptions, EndPart, Message, Receipt

from .test_scheduler_states import Engine, answer_to, rendered

LOAD = Load("", "fake:whole=1", "d", cells=4000, window=2000, sequences=3, batch=64, ram=10**6)
GREEDY = DecodeOptions(temperature=0)


def kept(store: Checkpoints, tape: list[int], *, weight: int = 1, size: int = 10) -> bool:
    missing = store.missing(tape)
    return missing is not None and store.add(tape, *missing, weight, lambda: bytes(size))


def used(store: Checkpoints, ids: list[int]) -> None:
    store.touch(store.ahead(ids, 0)[0][0])


def test_the_longest_beginning_is_found_and_nothing_else() -> None:
    store = Checkpoints(1000)
    tape = list(range(100))
    assert all(kept(store, tape[:end]) for end in (40, 60))
    assert kept(store, [*tape[:50], 0])
    assert not kept(store, tape[:60])
    assert [store.length(ids) for ids in (tape, tape[:60], tape[:59], tape[:39], [0, *tape])] == [60, 60, 40, 0, 0]
    assert not store.ahead(tape, 1)
    ((found, end),) = store.ahead(tape, 0)
    assert (found.start, found.end, end, found.tokens) == (0, 60, 60, pack_tokens(tape[:60]))
    store.drop(found)
    assert (store.length(tape), store.ram) == (40, 20)


def test_of_one_conversation_the_first_and_the_last_stay() -> None:
    store = Checkpoints(10**6)
    tape = list(range(1000))
    for end in range(100, 1000, 100):
        assert kept(store, tape[:end])
    assert [store.length(tape[: end + 50]) for end in range(100, 1000, 100)] == [100] * 6 + [700, 800, 900]
    assert store.ram == 10 * LINE


def test_where_others_start_too_stays() -> None:
    store = Checkpoints(10**6)
    tape = list(range(1000))
    assert kept(store, tape[:50])
    assert kept(store, tape[:100])
    for _ in range(2):
        used(store, [*tape[:100], 0])
    for end in range(200, 1000, 100):
        assert kept(store, tape[:end])
    assert store.length(tape[:150]) == 100


def test_what_is_heavier_or_used_later_stays() -> None:
    store = Checkpoints(30)
    for first, weight in ((1, 2), (2, 0), (3, 1)):
        assert kept(store, [first], weight=weight)
    assert kept(store, [4])
    assert [store.length([n]) for n in (1, 2, 3, 4)] == [1, 0, 1, 1]
    used(store, [3])
    assert kept(store, [5])
    assert [store.length([n]) for n in (1, 3, 4, 5)] == [1, 1, 0, 1]
    # One that does not fit beside the heavier ones takes nobody's place.
    assert not kept(store, [6], size=25)
    assert [store.length([n]) for n in (1, 3, 5)] == [1, 1, 1]
    assert store.ram == 30


def test_a_state_larger_than_the_budget_is_not_copied_again_and_again() -> None:
    store = Checkpoints(30)
    assert kept(store, [1])
    assert not kept(store, [1, 2], size=31)
    assert store.missing([1, 2]) is store.missing([3, 4, 5]) is None
    assert store.missing([3]) is not None
    assert store.length([1]) == 1


def test_their_number_is_bounded() -> None:
    store = Checkpoints(10**9)
    for n in range(MOST + 5):
        assert kept(store, [n])
    assert (store.length([4]), store.length([5])) == (0, 1)


class Kept(Engine):
    """A scheduler over the fake, without a process."""

    def __init__(self, load: Load = LOAD) -> None:
        super().__init__(load)

    def ends(self, *requests: Request) -> dict[int, EndPart]:
        """Serve them all; the ends of the turns."""
        self.ask(*requests)
        assert self.steps(5000)
        done = {reply.id: reply for reply in self.replies if isinstance(reply, Done)}
        return {r.id: decode_result(done[r.id].result, EndPart) for r in requests if isinstance(r, Turn)}

    def turn(self, id_: int, session: int, *messages: Message) -> Receipt:
        return self.ends(Turn(id_, session, messages, GREEDY))[id_].cost()


def prompt(*messages: Message, generate: bool = True) -> int:
    return len(rendered(messages, generate=generate))


SYSTEM = Message("system", "You are kind. " * 20)
HELLO = Message("user", "hello " * 10)
BYE = Message("user", "bye " * 10)


def test_another_session_starts_after_the_system_prompt() -> None:
    engine = Kept()
    assert engine.turn(1, 1, SYSTEM, HELLO).prefilled == prompt(SYSTEM, HELLO)
    other = engine.turn(2, 2, SYSTEM, BYE)
    begun = prompt(SYSTEM, Message("user", ""), generate=False) - 1  # The end of the empty message is not shared.
    assert (other.reused, other.restored, other.stop) == (0, begun, None)
    assert other.prefilled == prompt(SYSTEM, BYE) - begun


def test_who_asks_beside_the_first_waits_for_the_system_prompt() -> None:
    engine = Kept()
    asks = [(SYSTEM, Message("user", f"{n} " * 30)) for n in range(3)]
    ends = engine.ends(*(Turn(n, n, ask, GREEDY) for n, ask in enumerate(asks, 1)))
    begun = prompt(SYSTEM, Message("user", ""), generate=False) - 1
    prefilled = [ends[n].cost().prefilled for n in (1, 2, 3)]
    assert prefilled == [prompt(*asks[0]), *(prompt(*ask) - begun for ask in asks[1:])]


def test_the_same_question_starts_where_it_ended() -> None:
    engine = Kept()
    engine.turn(1, 1, SYSTEM, HELLO)
    again = engine.turn(2, 1, SYSTEM, HELLO)
    ended = prompt(SYSTEM, HELLO, generate=False)
    assert (again.reused, again.restored, again.prefilled) == (0, ended, prompt(SYSTEM, HELLO) - ended)
    assert again.stop is not None
    assert (again.stop.reason, again.stop.token) == ("history_shortened", ended)
    assert "cannot go back" in again.stop.detail


def test_without_ram_all_is_computed_again_and_said() -> None:
    engine = Kept(structs.replace(LOAD, ram=0))
    first = engine.turn(1, 1, SYSTEM, HELLO)
    again = engine.turn(2, 1, SYSTEM, HELLO)
    assert (again.prefilled, again.dropped) == (prompt(SYSTEM, HELLO), first.resident)
    assert again.stop is not None
    assert (again.stop.reason, again.stop.token) == ("history_shortened", 0)


def test_decoding_from_a_suffix_goes_back_to_the_question() -> None:
    engine = Kept()
    engine.ends(Prefix(1, 1, (SYSTEM,)), Suffix(2, 1, (HELLO,)))
    again = engine.turn(3, 1, SYSTEM, HELLO)
    assert again.prefilled == prompt(SYSTEM, HELLO) - prompt(SYSTEM, HELLO, generate=False)
    assert again.stop is not None
    assert again.stop.reason == "cannot_rewind"


def test_an_evicted_session_comes_back_whole() -> None:
    engine = Kept()
    first = engine.turn(1, 1, SYSTEM, HELLO)
    for n in range(2, 6):
        engine.turn(n, n, Message("user", f"{n} " * 40))
    assert engine.scheduler._pool.sessions[1].sequence is None
    answer = Message("assistant", answer_to((SYSTEM, HELLO)))
    back = engine.turn(9, 1, SYSTEM, HELLO, answer, BYE)
    assert (back.restored, back.stop) == (first.resident, None)
    assert [reply.ram for reply in engine.replies if isinstance(reply, Held)][-1] > 0


def test_what_is_here_stays_where_a_longer_state_finds_no_cells() -> None:
    """Else it would be gone for nothing: seen of a job that had stood still, and computed 156 tokens again."""
    load = structs.replace(LOAD, cells=100, window=100)
    store = Checkpoints(10**6)
    pool = Pool(FakeBackend(load), load, lambda _: None, store)
    prompt = list(range(70))
    asks, busy = pool.get(1), pool.get(2)
    for end in (60, 20):
        compute(pool, asks, prompt[:end])
    compute(pool, busy, [9] * 50)
    busy.jobs.append(Job(Explain(2, 2), busy))
    assert store.length(prompt) == 60
    # 50 and 60 do not fit, and whose 50 they are is at work.
    assert pool.seat(asks, prompt) == 20
    busy.jobs.clear()
    assert pool.seat(asks, prompt) == 0
    assert pool.restore_next(asks, prompt) == 60
    assert pool.audit() == ()


def compute(pool: Pool, session: EngineSession, prompt: list[int]) -> None:
    """The session, and RAM, have all of the prompt and nothing else."""
    pool.release(session)
    session.hot = 0
    assert pool.give_sequence(session)
    assert session.sequence is not None
    assert pool._backend.step([Slice(session.sequence, 0, prompt, False)]) is StepResult.OK
    session.ids = prompt
    pool.extended(session, prompt)
    pool.keep(session)


def test_a_state_that_does_not_read_back_costs_a_prefill() -> None:
    engine = Kept()
    first = engine.ends(Turn(1, 1, (SYSTEM, HELLO), GREEDY))[1].cost()
    store = engine.scheduler._pool._tiers
    assert isinstance(store, Checkpoints)
    for one in store._all:
        one.state = b"\xff not a state"
    again = engine.turn(2, 1, SYSTEM, HELLO)
    assert (again.restored, again.prefilled) == (0, first.prefilled)
    assert again.stop is not None


def test_states_beside_a_step_that_failed_are_not_used() -> None:
    engine = Kept()
    first = engine.turn(1, 1, SYSTEM, HELLO)
    said = (SYSTEM, HELLO, Message("assistant", answer_to((SYSTEM, HELLO))), BYE)
    engine.scheduler._pool._tiers = Checkpoints(10**6)
    engine.ask(Turn(2, 2, (BYE,), GREEDY), Turn(3, 3, (Message("user", "!fail"),), GREEDY))
    assert engine.steps(5000)
    ends = {reply.id: reply for reply in engine.replies if isinstance(reply, Done | Failed)}
    assert isinstance(ends[3], Failed)
    assert (ends[3].code, engine.scheduler._pool.sessions[1].hot) == ("session_fatal", 0)
    # Who was beside it is computed again, alone.
    other = ends[2]
    assert isinstance(other, Done)
    end = decode_result(other.result, EndPart)
    assert (end.finish_reason, end.cost().resident) == ("stop", engine.backend.used())
    back = engine.turn(4, 1, *said)
    assert (back.reused, back.restored, back.dropped) == (0, 0, first.resident)
    assert back.stop is not None
    assert back.stop.reason == "engine_lost"
