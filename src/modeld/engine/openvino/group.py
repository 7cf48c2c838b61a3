"""Infer requests that hold the KV of one sequence or of several, and who of those that decode shares one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from modeld.engine.openvino.memory import give_back

if TYPE_CHECKING:
    from modeld.engine.openvino.sequences import SequenceKV

Array = numpy.ndarray[Any, Any]
Layers = list[Array]
"""Keys and values of each layer: ``[1, heads, tokens, head length]``."""

ROWS = frozenset({"attention_mask", "position_ids", "beam_idx"})
"""What a graph must take for sequences of different lengths to be rows of one request."""


class StateError(Exception):
    """States do not hold what was written into them, or are not as long as they must be."""


class _Seat(NamedTuple):
    """:param row: in the states. :param pad: cells before the first that is the member's."""

    member: SequenceKV
    row: int
    pad: int


class Group:
    """A request, which it owns, and the sequences in its states: a row for each, all of them ending at the last cell.

    What stands before a shorter one is zeros, and the mask leaves it out: the logits are those that it has alone,
    within the rounding of other batches. Each step computes all members. Who leaves takes its values along, and its row
    goes with the next step. A sequence alone is a group of one.

    :param request: a new one. :param members: held in arrays only.
    :raises StateError: the states do not read back as they were written.
    """

    def __init__(self, request: Any, members: Sequence[SequenceKV]) -> None:
        self.request = request
        self.length = max(member.tokens for member in members)
        self._seats = [_Seat(member, row, self.length - member.tokens) for row, member in enumerate(members)]
        self._stored = len(members)
        if self.length:
            self._write([member.layers() for member in members])
        for member in members:
            member.seated(self)

    @property
    def members(self) -> list[SequenceKV]:
        """In the order of their rows."""
        return [seat.member for seat in self._seats]

    @property
    def padding(self) -> int:
        """Cells that the states have and nobody's tokens are in: those of rows that left, too, until the next step."""
        return self._stored * self.length - sum(self.length - seat.pad for seat in self._seats)

    def _write(self, rows: list[Layers]) -> None:
        for layer, state in enumerate(self.request.query_state()):
            held = state.state
            _, heads, _, length = rows[0][layer].shape
            wanted = numpy.zeros((len(rows), heads, self.length, length), held.data.dtype)
            for seat, layers in zip(self._seats, rows, strict=True):
                wanted[seat.row, :, seat.pad :] = layers[layer][0]
            state.state = type(held)(wanted)
            if not numpy.array_equal(state.state.data, wanted):
                raise StateError(f"state {layer} does not hold what was written into it")

    def feeds(self, tokens: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What the graph takes for so many tokens of each member, as many for each."""
        count = len(tokens[0])
        mask = numpy.ones((len(tokens), self.length + count), numpy.int64)
        for row, seat in enumerate(self._seats):
            mask[row, : seat.pad] = 0
        first = numpy.array([[self.length - seat.pad] for seat in self._seats], numpy.int64)
        return {
            "input_ids": numpy.array(tokens, numpy.int64),
            "attention_mask": mask,
            "position_ids": first + numpy.arange(count, dtype=numpy.int64),
            "beam_idx": numpy.array([seat.row for seat in self._seats], numpy.int32),
        }

    def infer(self, feeds: dict[str, Any]) -> Array:
        """Compute a step.

        :returns: logits of each member's last token; the next step writes to the same place.
        :raises RuntimeError: from OpenVINO; what was there before the step is still there.
        """
        self.request.infer(feeds, share_inputs=True, share_outputs=True)
        count = feeds["input_ids"].shape[1]
        self.length += count
        self._stored = len(self._seats)
        self._seats = [seat._replace(row=row) for row, seat in enumerate(self._seats)]
        for seat in self._seats:
            seat.member.grew(count)
        logits: Array = self.request.get_output_tensor(0).data[:, -1]
        return logits

    def measured(self, member: SequenceKV) -> int:
        """Tokens of a member, counted in the states."""
        held: int = self.request.query_state()[0].state.shape[2]
        return held - self._seat(member).pad

    def _seat(self, member: SequenceKV) -> _Seat:
        return next(seat for seat in self._seats if seat.member is member)

    def read(self, members: Sequence[SequenceKV], *, broken: bool = False) -> list[Layers]:
        """Copies of what these hold. Reading some takes as long as reading all.

        :param broken: the last step failed, and may have appended to some of the states.
        :raises StateError: a state is not as long as it must be.
        """
        taken: list[Layers] = [[] for _ in members]
        for state in self.request.query_state() if members else ():
            values = state.state.data
            rows, _, length, _ = values.shape
            # A step that failed has let rows go in the states that it came to.
            moved = broken and length > self.length and rows == len(self._seats)
            if not moved and (rows, length) != (self._stored, self.length):
                raise StateError(
                    f"a state has {rows} rows of {length} tokens and should have {self._stored} of {self.length}"
                )
            for member, layers in zip(members, taken, strict=True):
                seat = self._seat(member)
                row = self._seats.index(seat) if moved else seat.row
                layers.append(values[row : row + 1, :, seat.pad : self.length].astype(member.kind))
        return taken

    def release(self, leaving: Iterable[SequenceKV], *, broken: bool = False) -> None:
        """Let these hold what they hold in arrays. :raises StateError: as :meth:`read`; nobody has left then."""
        gone = list(leaving)
        unread = [member for member in gone if member.tokens and not member.copied]
        for member, layers in zip(unread, self.read(unread, broken=broken), strict=True):
            member.keep(layers)
        for member in gone:
            member.leave()
        give_back()

    def forget(self, member: SequenceKV) -> None:
        """Its row goes with the next step."""
        self._seats = [seat for seat in self._seats if seat.member is not member]


def masks_padding(make: Callable[[], Any], sequence: Callable[[], SequenceKV], far: int) -> bool:
    """Whether a row of a group has the logits that its sequence has alone, whatever the other rows are.

    So it is seen, not believed, that a graph masks what is padding, and that no row's position counts for another, as
    it does where frequencies are chosen by the longest of a batch.

    :param far: the highest position that can come. :raises RuntimeError: from OpenVINO.
    """
    one, same, other = sequence(), sequence(), sequence()
    group = one.alone()
    group.infer(group.feeds([[0, 1, 2, 3]]))
    one.detach()
    same.append(one.part(0, one.tokens))
    group = same.alone()
    alone = group.infer(group.feeds([[3]]))[0].copy()
    # Nothing need be computed of the other: zeros before the one show, too, where they are not left out.
    other.append([numpy.repeat(values[:, :, :1], LONG, axis=2) for values in one.layers()])
    group = Group(make(), [one, other])
    feeds = group.feeds([[3], [5]])
    feeds["position_ids"][1] = far
    return bool(numpy.abs(group.infer(feeds)[0] - alone).max() <= NEAR * numpy.ptp(alone))


LONG = 512
"""Tokens of the other row: with 9 a mask that was left out moved a logit of tiny by less than :data:`NEAR`."""

NEAR = 1e-3
"""Of the range of the logits: what rounding KV to f16 moves at most, where batches differ."""

PAD = 2048
"""Tokens by which the members of a group may differ in length. On the 90m shape attention over so many cells that are
padding costs a row 1 ms, and being computed with others saves it 3."""

PRICE = 1.6e-8
"""Seconds that a number of a group's states costs on its way: it is read from where it was, written, read back, and
read again when its row leaves. Measured on the 90m shape on idle cores: 0.5 s for four rows of 2,000 tokens, of which
all but 15 ms is reading."""

PATIENCE = 2.0
"""A group is formed when decoding apart has taken so many times what the group will cost. Computed together four
streams take half the time or less (two take two thirds): as much as it costs would have been saved by then, so that one
that breaks up at once costs no more than what was lost without it."""

GAP = 0.75
ROUNDS = 6
"""Streams wait while a group is formed: it may cost so many seconds at most, or so many steps of its members apart."""


class Gathering:
    """Who of those that decode becomes a group, and when. A group changes as seldom as it can, for moving is dear.

    :param numbers: of a token in all states.
    """

    def __init__(self, numbers: int, price: float = PRICE) -> None:
        self._price = numbers * price
        self._apart = self._round = 0.0

    def arrange(self, decoding: Sequence[SequenceKV], spare: int, make: Callable[[], Any]) -> None:
        """Form a group where it pays.

        :param spare: cells that more padding may take. :raises StateError: states do not hold what they should.
        """
        wanted = _alike(decoding, spare)
        if len(wanted) < 2 or (wanted[0].group is not None and all(one.group is wanted[0].group for one in wanted)):
            self._apart = 0.0
            return
        cost = self._price * len(wanted) * max(one.tokens for one in wanted)
        if cost <= max(GAP, ROUNDS * self._round) and self._apart >= PATIENCE * cost:
            self._apart = self._round = 0.0
            for group in groups_of(wanted):
                group.release(group.members)
            Group(make(), wanted)
            give_back()

    def took(self, together: float, apart: float) -> None:
        """So many seconds of a step went to groups that decode, and to those that decode alone."""
        self._round = together + apart
        self._apart += apart


def let_leave(computed: Collection[SequenceKV], decoding: Sequence[SequenceKV]) -> None:
    """Let those leave who rest while other members of their group decode, and those who compute something else.

    :raises StateError: as :meth:`Group.read`.
    """
    for group in groups_of(computed):
        stay = [member for member in group.members if member in decoding] or [
            member for member in group.members if member not in computed
        ]
        if len(group.members) > 1:
            group.release([member for member in group.members if member not in stay])


def groups_of(sequences: Iterable[SequenceKV]) -> list[Group]:
    """Each group once."""
    return list(dict.fromkeys(one.group for one in sequences if one.group is not None))


def _alike(decoding: Sequence[SequenceKV], spare: int) -> list[SequenceKV]:
    """As many as can be rows of one request without too much padding."""
    ordered = sorted((one for one in decoding if one.tokens), key=lambda one: one.tokens)
    best: list[SequenceKV] = []
    for shortest in range(len(ordered)):
        if len(ordered) - shortest <= len(best):
            break
        run = [one for one in ordered[shortest:] if one.tokens - ordered[shortest].tokens <= PAD]
        while len(run) * run[-1].tokens - sum(one.tokens for one in run) > spare and len(run) > 1:
            run.pop()
        best = max(best, run, key=len)
    return best
