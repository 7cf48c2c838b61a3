"""Hazard: one client's many prompts starve another's only one, small jobs a large one, subagents the main session."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeld.engine.batch import TURN_STEPS, TURN_TOKENS
from modeld.engine.protocol import Done, Load, Open, Parts, Turn, decode_result
from modeld.types import DecodeOptions, EndPart, Message, TextPart
from support.examples import examples

from .test_scheduler_states import Engine

BATCH = 64


def roomy(sequences: int = 100, cells: int = 10**6) -> Engine:
    return Engine(Load(path="", name="fake", digest="d", cells=cells, window=4000, sequences=sequences, batch=BATCH))


def turn(id_: int, client: str, size: int, tokens: int = 2) -> Turn:
    # The first rune is its own: no two share a beginning, so each has to be computed.
    text = chr(0x4E00 + id_) + "x" * size
    return Turn(
        id_, id_, (Message("user", text),), DecodeOptions(temperature=0, max_tokens=tokens), client=client, credit=10**6
    )


def steps_until_text(engine: Engine, id_: int, most: int) -> int:
    """Steps that the engine does before the first text of a request is ready."""
    for step in range(most):
        if any(
            isinstance(reply, Parts) and reply.id == id_ and any(isinstance(part, TextPart) for part in reply.parts)
            for reply in engine.replies
        ):
            return step
        engine.steps(1)
    raise AssertionError(f"no text of request {id_} in {most} steps")


def order_of_ends(engine: Engine) -> list[int]:
    return [reply.id for reply in engine.replies if isinstance(reply, Done)]


@settings(deadline=None, max_examples=examples(100))
@given(
    others=st.lists(st.lists(st.integers(1, 1500), min_size=1, max_size=20), min_size=1, max_size=4),
    size=st.integers(1, 200),
    before=st.integers(0, 30),
)
@example(others=[[410], [178]], size=200, before=0)  # what others leave of their steps is not its turn
def test_newcomer_waits_for_one_turn_of_each_other_client(others: list[list[int]], size: int, before: int) -> None:
    engine = roomy()
    ids = iter(range(1, 1000))
    for number, sizes in enumerate(others):
        engine.ask(*(turn(next(ids), f"client {number}", one, tokens=1) for one in sizes))
    engine.steps(before)
    engine.ask(turn(500, "newcomer", size))
    own = -(-(size + 50) // BATCH)
    # A turn ends with the step that fills it; the step that was being composed is one more.
    a_turn = min(TURN_STEPS, -(-TURN_TOKENS // BATCH))
    assert steps_until_text(engine, 500, 1000) <= len(others) * a_turn + own + 2


def test_newcomer_starts_before_the_fifty_prompts_of_another() -> None:
    engine = roomy(sequences=2)
    engine.ask(*(turn(id_, "busy", 100, tokens=20) for id_ in range(1, 51)))
    engine.steps(3)
    engine.ask(turn(99, "newcomer", 30))
    assert engine.steps(10_000)
    # Two were running already; of those that waited it is the first, or beside the first.
    assert order_of_ends(engine).index(99) <= 3


def test_large_prompt_is_not_passed_for_ever() -> None:
    engine = roomy(sequences=100, cells=1000)
    engine.ask(turn(1, "small", 300, tokens=40))
    engine.steps(2)
    engine.ask(turn(2, "large", 850))
    # As soon as one small one ends, two more come; together they leave no room for the large one.
    for id_ in range(3, 200, 2):
        engine.ask(turn(id_, f"s{id_}", 100, tokens=20), turn(id_ + 1, f"t{id_}", 100, tokens=20))
        engine.steps(12)
    assert engine.steps(100_000)
    assert 10 < order_of_ends(engine).index(2) < 30


def test_main_session_has_its_share_beside_subagents() -> None:
    engine = roomy()
    for id_ in range(1, 21):
        engine.ask(Open(id_, session_class="subagent"), turn(id_, "agent", 1500))
    engine.steps(4)
    engine.ask(turn(50, "agent", 1400))
    # Alone it would take 23 steps. It has two of three steps, however many subagents there are.
    assert steps_until_text(engine, 50, 1000) <= 23 * 3 / 2 + 2 * TURN_STEPS


def test_prompts_that_come_together_do_not_delay_each_other() -> None:
    """Short prompts are computed one after the other: in small pieces at once each would be as late as the last."""
    engine = roomy()
    engine.ask(*(turn(id_, f"client {id_}", 2 * BATCH) for id_ in range(1, 9)))
    firsts = [steps_until_text(engine, id_, 100) for id_ in range(1, 9)]
    assert sum(firsts) <= 8 * 4
    assert order_of_ends(engine) == sorted(order_of_ends(engine))


def test_each_step_of_a_batch_is_full_while_there_are_prompts() -> None:
    engine = roomy()
    sizes: list[int] = []
    step = engine.backend.step
    engine.backend.step = lambda slices: (  # type: ignore[method-assign]
        sizes.append(sum(len(part.tokens) for part in slices)),
        step(slices),
    )[1]
    engine.ask(*(turn(id_, f"client {id_ % 3}", 77 * id_, tokens=1) for id_ in range(1, 9)))
    assert engine.steps(1000)
    assert sizes[:-1] == [BATCH] * (len(sizes) - 1)


def test_receipts_of_all_are_whole() -> None:
    engine = roomy()
    engine.ask(*(turn(id_, f"client {id_ % 3}", 200 * id_) for id_ in range(1, 6)))
    assert engine.steps(1000)
    for reply in engine.replies:
        if isinstance(reply, Done):
            receipt = decode_result(reply.result, EndPart).cost()
            assert receipt.recomputed == 0
            assert receipt.prefilled >= 200 * reply.id
