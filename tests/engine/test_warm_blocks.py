"""Hazard: a block is found for other tokens than it was made of, leaves before what follows it, or is not counted."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from modeld.engine.warm import BLOCK, WarmBlocks

TAPES = st.lists(st.integers(0, 1), min_size=1, max_size=6).flatmap(
    lambda runs: st.just([token for token in runs for _ in range(100)])
)


def keep(blocks: WarmBlocks, tape: list[int], weight: int = 1) -> bool:
    """Store all of a tape; its state is its own tokens, so that a test can see whose it is."""
    while (found := blocks.missing(tape)) is not None:
        start, end = found
        state = bytes(tape[:end])
        if not blocks.add(tape, start, end, weight, lambda state=state: state):
            return False
    return True


def take(blocks: WarmBlocks, ids: list[int]) -> int:
    """Follow the blocks as an engine does, and see that each is of these tokens."""
    at = 0
    while (block := blocks.find(ids, at)) is not None:
        common = min(block.end, len(ids))
        while list(block.state[:common]) != ids[:common]:
            common -= 1
        assert block.start <= at < common
        at = common
    return at


class Blocks(RuleBasedStateMachine):
    """Against plain lists, in a budget that is too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = WarmBlocks(6000)
        self.kept: list[list[int]] = []

    @rule(tape=TAPES, weight=st.integers(0, 2))
    def keep(self, tape: list[int], weight: int) -> None:
        if keep(self.blocks, tape, weight):
            assert self.blocks.length(tape) == len(tape)
            assert take(self.blocks, tape) == len(tape)
        self.kept.append(tape)

    @rule(ids=TAPES)
    def take(self, ids: list[int]) -> None:
        assert take(self.blocks, ids) == self.blocks.length(ids)

    @rule(ids=TAPES)
    def spoil(self, ids: list[int]) -> None:
        if (block := self.blocks.find(ids, 0)) is not None:
            self.blocks.drop(block)

    @invariant()
    def counted(self) -> None:
        found, stack = [], [self.blocks._root]
        while stack:
            node = stack.pop()
            stack += node.children
            found.append(node)
            assert all(child.parent is node and child.start == node.end for child in node.children)
            assert all(child.start % BLOCK == 0 for child in node.children)
        assert self.blocks.bytes == sum(len(node.state) for node in found) <= 6000
        assert self.blocks._leaves == {node for node in found if not node.children} - {self.blocks._root}


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_a_shared_beginning_is_stored_once() -> None:
    blocks = WarmBlocks(10**9)
    one = [token % 250 for token in range(600)]
    assert keep(blocks, one)
    assert keep(blocks, [*one[:512], *[251] * 100])
    assert len(blocks._root.children) == 1
    assert len(blocks._leaves) == 2


def test_a_conversation_that_went_on_replaces_its_shorter_end() -> None:
    blocks = WarmBlocks(10**9)
    assert keep(blocks, list(b"a" * 300))
    assert keep(blocks, list(b"a" * 400))
    assert [leaf.end for leaf in blocks._leaves] == [400]
    assert blocks.missing(list(b"a" * 350)) is None


def test_light_ones_leave_first_and_never_for_lighter_ones() -> None:
    blocks = WarmBlocks(1000)
    assert keep(blocks, [1] * 200, weight=2)
    assert keep(blocks, [2] * 200, weight=0)
    assert keep(blocks, [3] * 256, weight=1)
    assert keep(blocks, [4] * 256, weight=1)
    assert keep(blocks, [5] * 256, weight=1)
    assert blocks.length([1] * 200) == 200
    assert blocks.length([2] * 200) == 0
    assert not keep(blocks, [6] * 900, weight=1)
    assert blocks.length([1] * 200) == 200


@given(TAPES, st.integers(0, 700))
def test_what_is_there_already_is_not_given_again(tape: list[int], start: int) -> None:
    blocks = WarmBlocks(10**9)
    keep(blocks, tape)
    block = blocks.find(tape, start)
    assert (block is None) == (start >= len(tape))
    assert block is None or block.start <= start < block.end
