"""Whole states of sequences, in RAM, for models that cannot forget an end or share a beginning.

The state of a recurrent model after a thousand tokens says nothing about the state after nine hundred. So it is kept
at places where a conversation may be taken up again, with the tokens that led there: whoever asks for more than exactly
these tokens starts from it. Nothing here says that a state is right: who takes one back reads it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from modeld.engine.blocks import Block
from modeld.session.manifest import pack_tokens

MOST = 512
"""States of all conversations. Each look goes through all of them; those of real models are too large for so many."""

LINE = 4
"""States of one conversation: its first, and the latest."""


class Checkpoint(Block):
    """The state of a sequence that holds ``tokens`` and nothing else: one block from the first token on."""

    __slots__ = ("hits",)

    def __init__(self, tokens: bytes, state: bytes, weight: int) -> None:
        super().__init__(None, tokens, b"", weight)
        self.state, self.size = state, len(state)
        self.hits = 0


class Checkpoints:
    """States up to ``budget`` bytes, the same tokens once. What will be missed least leaves first: the lightest, then
    the longest unused.

    Of a conversation that goes on there are at most :data:`LINE`. One that others have started from is not counted.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._all: list[Checkpoint] = []
        self._clock = itertools.count(1)
        # Sequences of so many tokens have a state that is larger than the budget.
        self._too_long: int | None = None
        self.ram = 0
        """Bytes of all states."""
        self.disk = self.written = 0
        """They are not kept in files."""

    def ahead(self, ids: Sequence[int], start: int) -> Sequence[tuple[Block, int]]:
        """The longest state that is a beginning of ``ids``. A sequence that holds something can take none."""
        found = self._longest(ids) if not start else None
        return [] if found is None else [(found, found.end)]

    def fetch(self, path: Sequence[Block]) -> bool:
        """They are in main memory: nobody waits."""
        return False

    def waits(self, block: Block) -> bool:
        """See :meth:`fetch`."""
        return False

    def touch(self, checkpoint: Block) -> None:
        """Somebody starts from it."""
        assert isinstance(checkpoint, Checkpoint)
        checkpoint.used = next(self._clock)
        checkpoint.hits += 1

    def length(self, ids: Sequence[int]) -> int:
        """Tokens of what :meth:`ahead` has for ``ids``."""
        found = self._longest(ids)
        return 0 if found is None else found.end

    def missing(self, tape: Sequence[int]) -> tuple[int, int] | None:
        """``(0, len(tape))`` where the state after ``tape`` is not here and could be."""
        if (same := self._same(tape)) is not None:
            same.used = next(self._clock)
            return None
        if self._too_long is not None and len(tape) >= self._too_long:
            return None
        return 0, len(tape)

    def add(self, tape: Sequence[int], start: int, end: int, weight: int, save: Callable[[], bytes]) -> bool:
        """Keep the state after ``tape``, as :meth:`missing` asked for it.

        :param weight: of who may miss it; heavier ones stay longer. :param save: gives the state.
        :returns: ``False``: it does not fit, even after what is lighter or older has left.
        """
        state = save()
        if len(state) > self._budget:
            self._too_long = len(tape)
            return False
        if not self._make_room(len(state), weight):
            return False
        self._thin_line(tape)
        made = Checkpoint(pack_tokens(tape), state, weight)
        made.used = next(self._clock)
        self._all.append(made)
        self._all.sort(key=lambda one: -one.end)
        self.ram += len(state)
        return True

    def drop(self, checkpoint: Block) -> None:
        """A state that did not read back: it goes."""
        self._all = [one for one in self._all if one is not checkpoint]
        self.ram -= checkpoint.size

    def audit(self) -> list[str]:
        """Count the bytes again; a sentence where they differ."""
        found = sum(one.size for one in self._all)
        return [] if found == self.ram else [f"states take {found} bytes, the ledger {self.ram}"]

    def _longest(self, ids: Sequence[int]) -> Checkpoint | None:
        packed = pack_tokens(ids)
        return next((one for one in self._all if packed.startswith(one.tokens)), None)

    def _same(self, tape: Sequence[int]) -> Checkpoint | None:
        found = self._longest(tape)
        return found if found is not None and found.end == len(tape) else None

    def _thin_line(self, tape: Sequence[int]) -> None:
        """``tape`` goes on where these end: of all that lead to it the first and the last ones stay."""
        packed = pack_tokens(tape)
        line = [one for one in self._all if packed.startswith(one.tokens) and one.hits < 2]
        for one in line[LINE - 2 : -1]:
            self.drop(one)

    def _make_room(self, size: int, weight: int) -> bool:
        victims = sorted((one for one in self._all if one.weight <= weight), key=lambda one: (one.weight, one.used))
        if self.ram - sum(one.size for one in victims) + size > self._budget:
            return False
        for one in victims:
            if self.ram + size <= self._budget and len(self._all) < MOST:
                break
            self.drop(one)
        return len(self._all) < MOST
