"""Hazard: a block is found for other tokens than it was made of, leaves before what follows it, or is not counted."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from modeld.engine.blocks import BLOCK, descendants
from modeld.engine.tiers import Tiers
from support.examples import examples

ROOT = bytes(32)
TAPES = st.lists(st.integers(0, 1), min_size=1, max_size=6).flatmap(
    lambda runs: st.just([token for token in runs for _ in range(100)])
)


def keep(tiers: Tiers, tape: list[int], weight: int = 1) -> bool:
    """Store all of a tape; its state is its own tokens, so that a test can see whose it is."""
    while (found := tiers.blocks.missing(tape)) is not None:
        start, end = found
        state = bytes(tape[:end])
        if not tiers.add(tape, start, end, weight, lambda state=state: state):
            return False
    return True


def take(tiers: Tiers, ids: list[int]) -> int:
    """Follow the blocks as an engine does, and see that each is of these tokens."""
    at = 0
    while path := tiers.blocks.ahead(ids, at):
        block, end = path[0]
        assert block.start <= at < end <= block.end
        assert block.state is not None
        assert list(block.state[:end]) == ids[:end]
        assert end == len(ids) or end == block.end or block.state[end] != ids[end] or len(path) == 1
        tiers.touch(block)
        at = end
    return at


class Blocks(RuleBasedStateMachine):
    """Against plain lists, in a budget that is too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.tiers = Tiers(6000, ROOT)
        self.kept: list[list[int]] = []

    @rule(tape=TAPES, weight=st.integers(0, 2))
    def keep(self, tape: list[int], weight: int) -> None:
        if keep(self.tiers, tape, weight):
            assert self.tiers.blocks.length(tape) == len(tape)
            assert take(self.tiers, tape) == len(tape)
        self.kept.append(tape)

    @rule(ids=TAPES)
    def take(self, ids: list[int]) -> None:
        assert take(self.tiers, ids) == self.tiers.blocks.length(ids)

    @rule(ids=TAPES)
    def spoil(self, ids: list[int]) -> None:
        if path := self.tiers.blocks.ahead(ids, 0):
            self.tiers.drop(path[0][0])

    @invariant()
    def counted(self) -> None:
        root, *found = descendants(self.tiers.blocks.root)
        for node in (root, *found):
            assert all(child.parent is node and child.start == node.end for child in node.children)
            assert all(child.start % BLOCK == 0 for child in node.children)
        assert self.tiers.ram == sum(len(node.state or b"") for node in found) <= 6000
        assert self.tiers._loose == {node for node in found if not node.children}


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=examples(150), stateful_step_count=30, deadline=None)


def test_a_shared_beginning_is_stored_once() -> None:
    tiers = Tiers(10**9, ROOT)
    one = [token % 250 for token in range(600)]
    assert keep(tiers, one)
    assert keep(tiers, [*one[:512], *[251] * 100])
    assert len(tiers.blocks.root.children) == 1
    assert len(tiers._loose) == 2


def test_a_conversation_that_went_on_replaces_its_shorter_end() -> None:
    tiers = Tiers(10**9, ROOT)
    assert keep(tiers, list(b"a" * 300))
    assert keep(tiers, list(b"a" * 400))
    assert [leaf.end for leaf in tiers._loose] == [400]
    assert tiers.blocks.missing(list(b"a" * 350)) is None


def test_light_ones_leave_first_and_never_for_lighter_ones() -> None:
    tiers = Tiers(1000, ROOT)
    assert keep(tiers, [1] * 200, weight=2)
    assert keep(tiers, [2] * 200, weight=0)
    assert keep(tiers, [3] * 256, weight=1)
    assert keep(tiers, [4] * 256, weight=1)
    assert keep(tiers, [5] * 256, weight=1)
    assert tiers.blocks.length([1] * 200) == 200
    assert tiers.blocks.length([2] * 200) == 0
    assert not keep(tiers, [6] * 900, weight=1)
    assert tiers.blocks.length([1] * 200) == 200


@given(TAPES, st.integers(0, 700))
def test_what_is_there_already_is_not_given_again(tape: list[int], start: int) -> None:
    tiers = Tiers(10**9, ROOT)
    keep(tiers, tape)
    path = tiers.blocks.ahead(tape, start)
    assert (not path) == (start >= len(tape))
    assert not path or path[0][0].start <= start < path[0][0].end
