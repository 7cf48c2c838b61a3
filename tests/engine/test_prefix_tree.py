"""Hazard: the tree says that KV is there which is not, counts a cell twice, or forgets one that somebody holds."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modeld.engine.prefix_tree import Double, PrefixTree
from support.examples import examples

TOKENS = st.lists(st.integers(0, 2), max_size=8)


def trie(tapes: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(tape[:n]) for tape in tapes for n in range(1, len(tape) + 1)}


class Tapes(RuleBasedStateMachine):
    """The tree against plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.tapes: dict[int, list[int]] = {}

    @rule(sequence=st.integers(0, 5), tokens=TOKENS)
    def extend(self, sequence: int, tokens: list[int]) -> None:
        before = trie([tape for key, tape in self.tapes.items() if key != sequence])
        start = len(self.tapes.setdefault(sequence, []))
        doubles = self.tree.extend(sequence, tokens)
        tape = self.tapes[sequence] = self.tapes[sequence] + tokens
        held = [n for n in range(start, len(tape)) if tuple(tape[: n + 1]) in before]
        assert [n for double in doubles for n in range(double.start, double.end)] == held
        for double in doubles:
            assert double.donor != sequence
            assert self.tapes[double.donor][: double.end] == tape[: double.end]

    @rule(sequence=st.integers(0, 5), keep=st.integers(0, 12))
    def cut(self, sequence: int, keep: int) -> None:
        self.tree.cut(sequence, keep)
        self.tapes[sequence] = self.tapes.get(sequence, [])[:keep]

    @precondition(lambda self: any(self.tapes.values()))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from([key for key, tape in self.tapes.items() if tape]))
        length = data.draw(st.integers(0, len(self.tapes[source])))
        free = [key for key in range(8) if not self.tapes.get(key)]
        if free:
            self.tree.share(source, free[0], length)
            self.tapes[free[0]] = self.tapes[source][:length]

    @rule(ids=TOKENS)
    def match(self, ids: list[int]) -> None:
        known = trie(list(self.tapes.values()))
        best = max((n for n in range(1, len(ids) + 1) if tuple(ids[:n]) in known), default=0)
        length, donor = self.tree.match(ids)
        assert length == best
        assert (donor is None) == (best == 0)
        if donor is not None:
            assert self.tapes[donor][:length] == ids[:length]

    @invariant()
    def counts(self) -> None:
        tapes = list(self.tapes.values())
        assert self.tree.cells == len(trie(tapes))
        for key, tape in self.tapes.items():
            assert self.tree.length(key) == len(tape)
            others = trie([other for name, other in self.tapes.items() if name != key])
            assert self.tree.alone(key) == len(trie([tape]) - others)


TestTapes = Tapes.TestCase
TestTapes.settings = settings(max_examples=examples(200), stateful_step_count=30, deadline=None)


def test_a_shared_beginning_is_counted_once() -> None:
    tree = PrefixTree()
    assert tree.extend(1, range(600)) == []
    assert tree.extend(2, [*range(500), 9, 9]) == [Double(0, 500, 1)]
    assert tree.cells == 602
    tree.cut(1, 0)
    assert tree.cells == 502
    assert tree.match(range(600)) == (500, 2)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), max_size=6))
def test_tokens_come_one_by_one_or_at_once(tapes: list[list[int]]) -> None:
    whole, single = PrefixTree(), PrefixTree()
    for sequence, tape in enumerate(tapes):
        whole.extend(sequence, tape)
        for token in tape:
            single.extend(sequence, [token])
    assert whole.cells == single.cells
    for tape in tapes:
        assert whole.match(tape)[0] == single.match(tape)[0] == len(tape)
