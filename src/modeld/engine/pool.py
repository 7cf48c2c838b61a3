"""The sessions of an engine, the sequence ids and cells they share, and who gives way when there are too few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from modeld.engine.backend import Backend
from modeld.engine.blocks import Block
from modeld.engine.checkpoints import Checkpoints
from modeld.engine.prefix_tree import PrefixTree
from modeld.engine.protocol import Evicted, Held, KeptTokens, Load, Open, Tape
from modeld.engine.session import EngineSession, shared_length
from modeld.engine.tiers import Tiers

MIN_BRANCH = 32
"""Tokens that are worth a sequence id of their own, or a way to RAM and back: computing fewer takes one step."""

COPY_SECONDS = 0.005
"""How long blocks are copied to RAM between two steps of running streams."""

BRANCH_WEIGHT = 1
_WEIGHTS = {"main": 1, "subagent": 0, "side": 0}


class Pool:
    """Sessions by key. Each that holds KV has a sequence id; ids are few, so idle sessions give theirs up.

    A beginning that several sessions have in common is held once. What a session leaves behind when its conversation
    goes another way is kept as a *branch*, while there are ids: whoever comes back to it finds it.

    What leaves the engine goes to RAM, as far as its budget allows, and comes back when it is asked for.

    :param told: is given an :class:`Evicted` whenever a session loses its KV to another.
    :param tiers: keep what leaves the engine.
    """

    def __init__(
        self, backend: Backend, load: Load, told: Callable[[Evicted], None], tiers: Tiers | Checkpoints | None = None
    ) -> None:
        self._backend = backend
        self._cells = load.cells
        self._ids = load.sequences
        self._free = list(range(load.sequences))[::-1]
        self._told = told
        self._tree = PrefixTree()
        self._branches: dict[int, float] = {}
        self._tiers = tiers
        # Tape lengths of sequences of which RAM has, or does not want, any more.
        self._saved: dict[int, int] = {}
        # Sequences for which RAM had no room, and how many blocks were in files then.
        self._refused: set[int] = set()
        self._written = 0
        self.sessions: dict[int, EngineSession] = {}
        self.guests: set[EngineSession] = set()
        """No sessions: they hold KV while a snapshot is written or read."""

    def open(self, request: Open) -> None:
        """Make a session known. Of one that is known already only class and pin change."""
        if (known := self.sessions.get(request.session)) is not None:
            known.session_class, known.pin = request.session_class, request.pin
            return
        session = EngineSession(request.session, session_class=request.session_class, pin=request.pin)
        session.ids = list(request.tape)
        session.synced = len(request.tape)
        if request.tape:
            session.lost, session.lost_tokens = request.lost, len(request.tape)
            session.lost_detail = request.lost_detail
        self.sessions[request.session] = session

    def get(self, key: int) -> EngineSession:
        """The session, made anew where it is not known."""
        return self.sessions.setdefault(key, EngineSession(key))

    def forget(self, session: EngineSession) -> None:
        """Drop a session and its KV. Requests that wait behind find it new."""
        self.release(session)
        session.take_from(EngineSession(session.key))
        if len(session.jobs) <= 1:
            self.sessions.pop(session.key, None)

    # Sequence ids

    def can_give(self, session: EngineSession) -> bool:
        """Whether :meth:`seat` or :meth:`give_sequence` will find an id: no busy session has to give way."""
        return bool(session.sequence is not None or self._free or self._branches or self._idle(session))

    def give_sequence(self, session: EngineSession) -> bool:
        """Let the session have a sequence id. ``False``: all ids are with sessions that are busy."""
        if session.sequence is None:
            if not self._free and not self.evict_idle(session):
                return False
            session.sequence = self._free.pop()
        return True

    def evict_idle(self, wanted_by: EngineSession | None = None, *, keep: int | None = None) -> bool:
        """Take the KV that will be missed least: a branch, else an idle session's. ``False``: there is none.

        :param keep: a sequence not to take.
        """
        branches = [sequence for sequence in self._branches if sequence != keep]
        idle = [session for session in self._idle(wanted_by) if session.sequence != keep]
        if branches:
            self._drop_branch(min(branches, key=self._branches.__getitem__))
        elif idle:
            self.evict(min(idle, key=_worth))
        else:
            return False
        return True

    def evict_waiting(self, wanted_by: EngineSession | None = None) -> bool:
        """Take the KV of a session whose next request has not begun. ``False``: there is none."""
        waiting = [
            s for s in self.sessions.values() if s.sequence is not None and s.jobs and not s.busy and s is not wanted_by
        ]
        if waiting:
            self.evict(min(waiting, key=_worth))
        return bool(waiting)

    def _idle(self, wanted_by: EngineSession | None) -> list[EngineSession]:
        return [s for s in self.sessions.values() if s.sequence is not None and not s.jobs and s is not wanted_by]

    def evict(self, session: EngineSession) -> None:
        """Take the session's KV; its next receipt says so."""
        self._save_all(session.sequence, _weight(session))
        self.release(session)
        session.lose("evicted")
        self._told(Evicted((session.key,)))

    def lose_all(self) -> None:
        """What the sequences hold is not known any more: nothing of it is used or saved."""
        for session in [one for one in (*self.sessions.values(), *self.guests) if one.sequence is not None]:
            self.release(session)
            session.lose("engine_lost")
            if session not in self.guests:
                self._told(Evicted((session.key,)))

    def release(self, session: EngineSession) -> None:
        """Clear the session's sequence and take the id back."""
        if session.sequence is not None:
            self._clear(session.sequence)
            session.sequence = None

    def dismiss(self, guest: EngineSession) -> None:
        """One of :attr:`guests` leaves, with what it holds."""
        self.release(guest)
        self.guests.discard(guest)

    def _drop_branch(self, sequence: int) -> None:
        del self._branches[sequence]
        self._save_all(sequence, BRANCH_WEIGHT)
        self._clear(sequence)

    def _clear(self, sequence: int) -> None:
        self._changed(sequence)
        self._tree.cut(sequence, 0)
        self._backend.remove(sequence, 0)
        self._free.append(sequence)

    def _changed(self, sequence: int) -> None:
        """What is known of what RAM has of the sequence is known no more."""
        self._saved.pop(sequence, None)
        self._refused.discard(sequence)

    # Tapes

    def seat(self, session: EngineSession, ids: Sequence[int]) -> int:
        """Let the session hold as many leading tokens of ``ids`` as anybody does, itself included, and nothing else.

        It gets a sequence id: :meth:`can_give` must have said so. No KV is copied.

        :returns: how many.
        """
        own = shared_length(session.tape, list(ids))
        if not self._backend.shares and (longer := self.stored(ids)) > own and self._can_come_back(session, longer):
            own = 0  # A whole state comes back in its place.
        found, donor = self._tree.match(ids) if self._backend.shares else (own, None)
        if donor is None or donor == session.sequence or found <= own or not self._room_to_move(session, donor, found):
            if not self.give_sequence(session):
                raise AssertionError("no sequence id, though there was one")
            if own < session.hot and not self._leave_branch(session, own):
                self._save_all(session.sequence, BRANCH_WEIGHT)
                self.cut(session, own)
            return session.hot
        if session.sequence is not None and not self._leave_branch(session, 0):
            self._save_all(session.sequence, BRANCH_WEIGHT)
            self.release(session)
        self._move(session, donor, found)
        return session.hot

    def _can_come_back(self, session: EngineSession, length: int) -> bool:
        """Whether a state of so many tokens finds cells in place of what the session holds. Idle ones can leave."""
        leaves = session.hot + sum(other.hot for other in self._idle(session))
        return self.used() - leaves + length <= self._cells

    def _room_to_move(self, session: EngineSession, donor: int, length: int) -> bool:
        """Whether :meth:`_move` finds room, once the session has given up what it holds. Idle ones give way.

        One that gave it up for nothing, and is seated before each step, would compute the same tokens for ever.
        """
        own = self._tree.length(session.sequence) if session.sequence is not None else 0
        return self._room_to_copy(length - own, keep=donor, wanted_by=session) or self._rests(donor)

    def _move(self, session: EngineSession, donor: int, length: int) -> None:
        """Give the session, which holds nothing, the donor's first cells, and an id where it has none."""
        if not self._room_to_copy(length, keep=donor, wanted_by=session):
            self.release(session)
            self._take_over(session, donor, length)
            return
        if session.sequence is None:
            if not self._free and not self.evict_idle(session, keep=donor):
                self._take_over(session, donor, length)
                return
            session.sequence = self._free.pop()
        self._backend.share(donor, session.sequence, 0, length)
        self._tree.share(donor, session.sequence, length)
        session.hot = length

    def _room_to_copy(self, length: int, *, keep: int | None = None, wanted_by: EngineSession | None = None) -> bool:
        """Whether there are cells for a copy of so many tokens, where sharing is copying. Idle ones give way."""
        while self._backend.copies and self.used() + length > self._cells:
            if not self.evict_idle(wanted_by, keep=keep):
                return False
        return True

    def _rests(self, sequence: int) -> bool:
        """It is a branch, or its owner has nothing to do."""
        return sequence in self._branches or any(session.sequence == sequence for session in self._idle(None))

    def _take_over(self, session: EngineSession, donor: int, length: int) -> None:
        """No id, or no room for a copy, is left but the donor's own: the session gets it, and what it needs of it."""
        self._save_all(donor, BRANCH_WEIGHT)
        for owner in self.sessions.values():
            if owner.sequence == donor:
                owner.lose("evicted")
                self._told(Evicted((owner.key,)))
        self._branches.pop(donor, None)
        session.sequence, session.hot = donor, self._tree.length(donor)
        self.cut(session, length)

    def _leave_branch(self, session: EngineSession, keep: int) -> bool:
        """Keep the session's tape as a branch, and give it a new id that holds the first ``keep`` tokens."""
        old = session.sequence
        if old is None or not self._free or not self._backend.shares or self._tree.alone(old) < MIN_BRANCH:
            return False
        if self._all_kept(old):
            # Its cells are for what comes now: llama.cpp's attention passes over all up to the last one in use.
            return False
        if self._backend.copies and self.used() + keep > self._cells:
            return False
        self._branches[old] = monotonic()
        session.sequence, session.hot = None, 0
        if keep:
            self._move(session, old, keep)
        else:
            session.sequence = self._free.pop()
        return True

    def branch(self, session: EngineSession, keep: int, more: int) -> int | None:
        """Begin a branch that holds the first ``keep`` tokens of the session's tape, where nobody has to give way.

        :returns: its sequence; ``None``: no id or no cells are free for ``more`` tokens.
        """
        copied = keep if self._backend.copies else 0
        if session.sequence is None or not keep or not self._free or self.used() + copied + more > self._cells:
            return None
        sequence = self._free.pop()
        self._backend.share(session.sequence, sequence, 0, keep)
        self._tree.share(session.sequence, sequence, keep)
        self._branches[sequence] = monotonic()
        return sequence

    def branch_tape(self, sequence: int) -> list[int]:
        """What a branch holds; nothing, where it has left."""
        return self._tree.tape(sequence) if sequence in self._branches else []

    def drop_branch(self, sequence: int) -> None:
        """A step of a branch failed: what it holds is not known, and none of it is kept."""
        del self._branches[sequence]
        self._clear(sequence)

    def known(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` need not be computed."""
        return max(self._tree.match(ids)[0], self.stored(ids))

    def extended(self, session: EngineSession, tokens: list[int]) -> None:
        """A step has computed ``tokens`` behind the session's tape."""
        session.hot += len(tokens)
        if session.sequence is not None:
            self.grew(session.sequence, tokens)

    def grew(self, sequence: int, tokens: list[int]) -> None:
        """A step has computed ``tokens`` behind what the sequence holds."""
        doubles = self._tree.extend(sequence, tokens)
        for double in doubles if self._backend.shares and not self._backend.copies else ():
            # Two computed the same: one set of cells is enough.
            self._backend.remove(sequence, double.start, double.end)
            self._backend.share(double.donor, sequence, double.start, double.end)

    def copy(self, source: EngineSession, target: EngineSession) -> None:
        """Let ``target``, which holds nothing, hold all of ``source``'s tape. Without an id it finds it later."""
        if source.sequence is None or not self.give_sequence(target) or target.sequence is None:
            return
        # Finding an id may have evicted somebody, but not the source: it has the job that asked for this.
        if not self._room_to_copy(self._tree.length(source.sequence), keep=source.sequence, wanted_by=target):
            return
        self._backend.share(source.sequence, target.sequence)
        self._tree.share(source.sequence, target.sequence, self._tree.length(source.sequence))
        target.hot = source.hot

    def cut(self, session: EngineSession, keep: int) -> bool:
        """Cut the KV to ``keep`` tokens. ``False``: this model cannot, and all of it is gone."""
        if session.sequence is not None and keep < self._tree.length(session.sequence):
            # What follows may be as long and is something else.
            self._changed(session.sequence)
        if session.sequence is None or self._backend.remove(session.sequence, keep):
            if session.sequence is not None:
                self._tree.cut(session.sequence, keep)
            session.hot = min(session.hot, keep)
            return True
        self._backend.remove(session.sequence, 0)
        self._tree.cut(session.sequence, 0)
        if session.hot:
            session.lost, session.lost_tokens, session.hot = "cannot_rewind", session.hot, 0
        return False

    # RAM

    def save_next(self) -> bool:
        """Copy a block of somebody who has nothing to do to RAM, so that it can leave at once when it has to.

        :returns: ``False``: all that is worth it is there.
        """
        if self._tiers is None:
            return False
        if self._written != self._tiers.written:
            # What is in files can make room in RAM.
            self._written = self._tiers.written
            for sequence in self._refused:
                self._saved.pop(sequence, None)
            self._refused.clear()
        return any(self._save_one(*one) for one in self._resting(0.0))

    def thin_out(self, rest: float) -> None:
        """Beside running streams: copy some blocks to RAM, and let one who has all of it there leave the engine.

        Every cell in use slows every stream, and coming back from RAM costs a copy.

        :param rest: seconds that a session was not used; a branch need not have rested.
        """
        if self._tiers is None or not self._backend.grows:
            return
        end = monotonic() + COPY_SECONDS
        for sequence, weight in self._resting(rest):
            while self._save_one(sequence, weight):
                if monotonic() > end:
                    return
            # To find out takes a look at all of its tape: not each time at those for which there is no room.
            # Copies that nobody computes with slow no stream.
            if not self._backend.copies and sequence not in self._refused and self._all_kept(sequence):
                if sequence in self._branches:
                    self._drop_branch(sequence)
                else:
                    self.evict(next(s for s in self.sessions.values() if s.sequence == sequence))
                return

    def _all_kept(self, sequence: int) -> bool:
        tape = self._tree.tape(sequence)
        return self._tiers is not None and self._tiers.length(tape) == len(tape)

    def _resting(self, rest: float) -> list[tuple[int, int]]:
        """Sequences that nobody uses, with their weight, the longest unused first."""
        before = monotonic() - rest
        found = [(when, sequence, BRANCH_WEIGHT) for sequence, when in self._branches.items()]
        found += [
            (s.last_used, s.sequence, _weight(s))
            for s in self._idle(None)
            if s.last_used <= before and s.sequence is not None
        ]
        return [(sequence, weight) for _, sequence, weight in sorted(found)]

    def _save_all(self, sequence: int | None, weight: int) -> None:
        while sequence is not None and self._save_one(sequence, weight):
            pass

    def _save_one(self, sequence: int, weight: int) -> bool:
        length = self._tree.length(sequence)
        if self._tiers is None or length < MIN_BRANCH or self._saved.get(sequence) == length:
            return False
        tape = self._tree.tape(sequence)
        missing = self._tiers.missing(tape)
        if missing is not None:
            start, end = missing
            if self._tiers.add(tape, start, end, weight, lambda: self._backend.save(sequence, start, end)):
                return True
            self._refused.add(sequence)
        self._saved[sequence] = length
        return False

    def places_to_keep(self, ids: Sequence[int], places: Sequence[int], done: int) -> list[int]:
        """Where the state after a beginning of ``ids`` is worth keeping, for a model that cannot come back there.

        :param places: where that may be; where ``ids`` leave what another sequence holds is one more.
        :param done: tokens that are there, or will be brought back.
        """
        found: list[int] = []
        if self._tiers is None or self._backend.shares:
            return found
        last = self._tiers.length(ids)
        for place in sorted({*places, self._tree.match(ids)[0]}):
            if done < place <= len(ids) and place - last >= MIN_BRANCH:
                found.append(place)
                last = place
        return found

    def keep(self, session: EngineSession) -> None:
        """Copy what the session holds to RAM, so that it or others can start from here."""
        self._save_all(session.sequence, _weight(session))

    def stored(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` are kept outside the engine, be it too few to bring them back."""
        return self._tiers.length(ids) if self._tiers is not None else 0

    def coming(self, ids: Sequence[int], at: int) -> int:
        """Up to where ``ids`` will be here, when all that :meth:`restore_next` has from ``at`` on is brought back."""
        path = self._ahead(ids, at)
        return path[-1][1] if path else at

    def fetch(self, session: EngineSession, ids: Sequence[int]) -> Callable[[], bool] | None:
        """Have read what :meth:`restore_next` needs next, where it is in a file.

        :returns: says whether it is worth while to wait still; ``None``: there is nothing to wait for.
        """
        path = self._ahead(ids, session.hot)
        if self._tiers is None or not path or not self._tiers.fetch([block for block, _ in path]):
            return None
        return partial(self._tiers.waits, path[0][0])

    def _ahead(self, ids: Sequence[int], at: int) -> Sequence[tuple[Block, int]]:
        """Blocks that go on from ``at``; none where they hold too little. Whole ones are never too little."""
        path = self._tiers.ahead(ids, at) if self._tiers is not None else []
        if not path or (path[0][0].start == at and path[-1][0].end == path[-1][1]):
            # The end of a conversation comes back too, however short, after what came before it.
            return path
        return path if path[-1][1] - at >= min(MIN_BRANCH, len(ids) - at) else []

    def restore_next(self, session: EngineSession, ids: Sequence[int]) -> int:
        """Bring a block of ``ids`` behind the session's tape back from RAM.

        A block that does not read back as it was is thrown away.

        :returns: tokens gained; 0: there is no more, or no room.
        """
        at, sequence = session.hot, session.sequence
        path = self._ahead(ids, at)
        if self._tiers is None or sequence is None or not path:
            return 0
        block, stop = path[0]
        if (state := block.state) is None:
            return 0
        self._tiers.touch(block)
        while self.used() + block.end - block.start > self._cells:
            if not self.evict_idle(session):
                return 0
        if not self._backend.restore(sequence, state, at, stop):
            self._tiers.drop(block)
            return 0
        self.extended(session, list(ids[at:stop]))
        return stop - at

    def fits(self, busy: Sequence[EngineSession], ids: Sequence[int], more: int) -> bool:
        """Whether ``ids`` and ``more`` cells fit beside what busy sessions hold. Everybody else's can leave."""
        if not self._backend.grows:
            return True
        if not self._backend.shares or self._backend.copies:
            return sum(session.hot for session in busy) + len(ids) + more <= self._cells
        sequences = {s.sequence for s in busy if s.sequence is not None}
        # What only others hold of it counts in full: it stays for this one.
        own = len(ids) - self._tree.shared_with(sequences, ids)
        return self._tree.held_by(sequences) + own + more <= self._cells

    def tape(self, session: EngineSession) -> Tape:
        """What changed on the session's tape since this was last asked. An evicted tape is not a changed one."""
        held = len(session.remembered)
        keep = min(session.synced, held) if held else session.synced
        added = tuple(session.ids[keep:held])
        session.synced = max(keep, held)
        return Tape(session.key, keep, added, session.hot, bool(session.fatal))

    def kept(self) -> dict[int, KeptTokens]:
        """Leading tokens of each session's tape that are here, with whomever, or can come back."""
        held = {session.sequence for session in self.sessions.values() if session.sequence is not None}
        return {key: self._kept(session, held) for key, session in self.sessions.items()}

    def _kept(self, session: EngineSession, held: set[int]) -> KeptTokens:
        tape = session.remembered
        here = max(session.hot, self._tree.match(tape)[0] if self._backend.shares else 0)
        kept = max(here, self.stored(tape))
        away = self._tiers.ahead(tape, here) if self._tiers is not None and kept > here else ()
        disk = sum(end - max(block.start, here) for block, end in away if block.state is None)
        others = held.difference((session.sequence,))
        shared = self._tree.shared_with(others, tape) if self._backend.shares else 0
        return KeptTokens(kept, shared, kept - here - disk, disk)

    def held(self) -> Held:
        """What the engine holds, of all sessions."""
        return Held(self.used(), *((self._tiers.ram, self._tiers.disk) if self._tiers is not None else ()))

    def used(self) -> int:
        """Cells in use; those that sessions share are counted once.

        An upper bound where a model can only share whole sequences: its forks are counted in full.
        """
        if not self._backend.grows:
            return 0
        if not self._backend.shares:
            return sum(session.hot for session in (*self.sessions.values(), *self.guests))
        if self._backend.copies:
            return sum(map(self._tree.length, range(self._ids)))
        return self._tree.cells

    def audit(self) -> tuple[str, ...]:
        """Count again what is held; a sentence for each thing that is wrong."""
        owners = [one for one in (*self.sessions.values(), *self.guests) if one.sequence is not None]
        told = {owner.sequence: owner.hot for owner in owners}
        ids = sorted(
            [*self._free, *self._branches, *(owner.sequence for owner in owners if owner.sequence is not None)]
        )
        faults = [] if ids == list(range(self._ids)) else [f"of {self._ids} sequence ids these are known: {ids}"]
        for sequence in range(self._ids):
            held = self._backend.length(sequence)
            said = self._tree.length(sequence) if self._backend.shares else told.get(sequence, 0)
            if not held == said == told.get(sequence, said):
                faults.append(f"sequence {sequence} holds {held} tokens, its tape {said}")
        if self._tiers is not None:
            faults += self._tiers.audit()
        return tuple(faults)


def _worth(session: EngineSession) -> tuple[bool, bool, float]:
    """Whose KV is missed least has the least."""
    return session.pin, session.session_class == "main", session.last_used


def _weight(session: EngineSession) -> int:
    return 2 if session.pin else _WEIGHTS[session.session_class]
