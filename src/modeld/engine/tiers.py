"""What left the engine: in main memory, in files, or both; who stays there, and who leaves when there is too little."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Sequence
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from time import monotonic

from modeld.engine.block_files import DamagedError, Found, Header
from modeld.engine.blocks import Block, Blocks, descendants
from modeld.engine.disk import Disk
from modeld.engine.leaving import leave_in_order, may_leave, may_lose_file, value_of
from modeld.engine.protocol import Load
from modeld.session.manifest import pack_tokens

WRITE_SECONDS = 2.0
"""How long a block has been in main memory before it is written: the end of a conversation that goes on is replaced."""

AHEAD_BYTES = 64 * 2**20
"""Of reads, and of writes, that are under way; of one block at least."""

PATIENCE_SECONDS = 2.0
"""Nobody waits any longer for a disk that does nothing."""

PREFILL_TOKENS = 32

HEAVIEST = 2


def open_tiers(load: Load, manifest: str, wake: Callable[[], None]) -> Tiers | None:
    """What the budgets of ``load`` allow. KV goes to files by way of main memory: without that there are none.

    :param manifest: its digest. :param wake: called from another thread when :meth:`Tiers.collect` has something to do.
    """
    if not load.ram:
        return None
    disk = Disk(Path(load.kv_folder), manifest, load.disk, wake) if load.disk and load.kv_folder else None
    return Tiers(load.ram, bytes.fromhex(manifest), disk)


class Tiers:
    """Blocks within a budget of main memory and one of files. Owned by the scheduler's thread.

    From main memory leaves first what has a file too, then whole blocks that nothing follows. A file leaves only after
    those of the blocks that follow it: alone they could not be used.

    :param ram: bytes of payloads. :param root: digest of the manifest.
    """

    def __init__(self, ram: int, root: bytes, disk: Disk | None = None) -> None:
        self._budget = ram
        self._disk = disk
        self.blocks = Blocks(root)
        self._clock = count(1)
        # Payloads that have a file; blocks that have none and that nothing follows; the last files of conversations.
        self._doubles: set[Block] = set()
        self._loose: set[Block] = set()
        self._last: set[Block] = set()
        # Payloads without a file that is there or being written, in the order in which they came.
        self._unwritten: dict[Block, None] = {}
        self._reading = 0
        self._token_seconds = 0.0
        self.ram = 0
        """Bytes of payloads, those that are being read included."""
        self.written = 0
        """Blocks written so far."""
        if disk is not None:
            self._attach(*disk.index())

    @property
    def disk(self) -> int:
        """Bytes of files."""
        return self._disk.bytes if self._disk is not None else 0

    def measured(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long. One of few tells nothing of prefill."""
        if tokens < PREFILL_TOKENS:
            return
        cost = seconds / tokens
        self._token_seconds = (self._token_seconds + cost) / 2 if self._token_seconds else cost

    def length(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` are here."""
        return self.blocks.length(ids)

    def missing(self, tape: Sequence[int]) -> tuple[int, int] | None:
        """See :meth:`Blocks.missing`."""
        return self.blocks.missing(tape)

    def ahead(self, ids: Sequence[int], start: int) -> Sequence[tuple[Block, int]]:
        """See :meth:`Blocks.ahead`."""
        return self.blocks.ahead(ids, start)

    # In

    def add(self, tape: Sequence[int], start: int, end: int, weight: int, save: Callable[[], bytes]) -> bool:
        """Keep the block ``[start, end)`` of ``tape``, as :meth:`Blocks.missing` named it.

        :param weight: of who may miss it; heavier ones stay longer. :param save: gives its KV.
        :returns: ``False``: it does not fit, even after what is lighter or older has left.
        """
        parent = self.blocks.before(tape, start)
        now = self._touch(parent, weight)
        state = save()
        if not self._make_room(len(state), weight, now):
            return False
        block = self.blocks.insert(parent, pack_tokens(tape[start:end]), weight)
        block.state, block.size, block.since = state, len(state), monotonic()
        self.ram += block.size
        self._touch(block, weight)
        self._replace_shorter(block)
        self._sort(block)
        return True

    def touch(self, block: Block) -> None:
        """It was used."""
        self._touch(block, 0)

    def _touch(self, block: Block, weight: int) -> int:
        now = next(self._clock)
        node: Block | None = block
        while node is not None:
            node.used, node.weight = now, max(node.weight, weight)
            node = node.parent
        return now

    def _replace_shorter(self, block: Block) -> None:
        """Drop the ends of the same conversation from before it went on; a file only when there is another."""
        assert block.parent is not None
        for other in list(block.parent.children):
            shorter = len(other.tokens) < len(block.tokens) and block.tokens.startswith(other.tokens)
            if shorter and not other.writing and (block.file or not other.file):
                self._remove(other)

    def _sort(self, block: Block) -> None:
        """Something changed: see again who of it and the block before may leave."""
        for one in (block, block.parent):
            if one is None or one.parent is None:
                continue
            held = one.state is not None and not one.writing and not one.gone
            _put(self._doubles, one, held and one.file > 0)
            _put(self._loose, one, may_leave(one, ()))
            _put(self._last, one, may_lose_file(one, ()))
            if not held or one.file:
                self._unwritten.pop(one, None)
            elif one not in self._unwritten:
                self._unwritten[one] = None

    # Out

    def _make_room(self, size: int, weight: int, before: int) -> bool:
        """Let payloads go that were not used since ``before``, until ``size`` bytes fit.

        ``False``: nothing was done.
        """
        missing = self.ram + size - self._budget
        if missing <= 0:
            return True
        leaving: list[Block] = []
        for block in sorted((block for block in self._doubles if block.used < before), key=value_of):
            if missing <= 0:
                break
            leaving.append(block)
            missing -= block.size

        def may(block: Block, chosen: Container[Block]) -> bool:
            return block.weight <= weight and block.used < before and may_leave(block, chosen)

        loose = leave_in_order(self._loose, may, missing, lambda block: block.size)
        if loose is None:
            return False
        for block in leaving:
            block.state = None
            self.ram -= block.size
            self._sort(block)
        for block in loose:
            self._remove(block)
        return True

    def drop(self, block: Block) -> None:
        """A block that did not read back: it goes, with all that follows it and their files."""
        for one in reversed(descendants(block)):
            self._remove(one)

    def _disown(self, block: Block) -> None:
        """Its file cannot be read now. It is as if it were not there, and so is all that follows it."""
        for one in reversed(descendants(block)):
            if one.file and self._disk is not None:
                self._disk.disown(one.key, one.file)
                one.file = 0
            self._remove(one)

    def _remove(self, block: Block) -> None:
        self.blocks.remove(block)
        if block.state is not None and not block.writing:
            self.ram -= block.size
            block.state = None
        if block.file and self._disk is not None:
            self._disk.remove(block.key, block.file)
            block.file = 0
        self._sort(block)

    def audit(self) -> list[str]:
        """Count the bytes again; a sentence where they differ. While files are written or read only what is certain."""
        blocks = descendants(self.blocks.root)
        ram = sum(block.size for block in blocks if block.state is not None)
        files = sum(block.file for block in blocks)
        faults = []
        if self.ram < ram or (not self.busy and self.ram != ram):
            faults.append(f"main memory holds {ram} bytes of KV, the ledger {self.ram}")
        if self._disk is not None and not self.busy:
            if self.disk != files + self._disk.others:
                faults.append(f"files of KV take {files + self._disk.others} bytes, the ledger {self.disk}")
            faults += self._disk.audit()
        return faults

    # Files

    def collect(self) -> None:
        """Take note of what the files' thread has done."""
        if self._disk is not None:
            self._disk.thread.collect()

    def wait(self, seconds: float) -> None:
        """Wait for the files' thread to do something."""
        if self._disk is not None:
            self._disk.thread.wait(seconds)

    @property
    def busy(self) -> bool:
        """The files' thread has something to do."""
        return self._disk is not None and self._disk.thread.pending > 0

    def write(self, rest: float) -> float | None:
        """Have written what came to main memory ``rest`` seconds ago or earlier, the heaviest first.

        :returns: seconds until there will be more to write; ``None``: not before something else happens.
        """
        disk = self._disk
        if disk is None or not self._unwritten:
            return None
        if disk.pause:
            return disk.pause
        now = monotonic()
        due = [block for block in self._unwritten if block.since <= now - rest]
        for block in sorted(due, key=lambda block: -block.weight):
            if disk.reserved and disk.reserved + block.size > AHEAD_BYTES:
                return None
            self._write(disk, block)
        later = [block.since for block in self._unwritten if block.since > now - rest]
        return min(later) + rest - now if later else None

    def _write(self, disk: Disk, block: Block) -> None:
        parent = block.parent
        assert parent is not None
        assert block.state is not None
        if not (parent.on_disk or parent.writing) or not self._worth_reading(disk, block):
            return
        header = Header(parent.key, block.tokens, block.weight, block.size, bytes(32))
        if not self._make_file_room(disk, header.file_size(), value_of(block)):
            return
        block.writing = True
        self._sort(block)
        disk.write(block.key, header, block.state, partial(self._wrote, disk, block))

    def _wrote(self, disk: Disk, block: Block, size: int) -> None:
        block.writing = False
        assert block.parent is not None
        if block.gone:
            block.state = None
            self.ram -= block.size
        if size and (block.gone or not block.parent.on_disk):
            disk.remove(block.key, size)
        elif size:
            block.file = size
            self.written += 1
            self._replace_shorter(block)
        self._sort(block)

    def _make_file_room(self, disk: Disk, size: int, value: tuple[int, int]) -> bool:
        """Delete files: of other models first, then of what is worth less. ``False``: nothing was done."""

        def may(block: Block, chosen: Container[Block]) -> bool:
            return value_of(block) < value and may_lose_file(block, chosen)

        leaving = leave_in_order(self._last, may, size - disk.free - disk.others, lambda block: block.file)
        if leaving is None:
            return False
        while disk.free < size and disk.drop_other():
            pass
        for block in leaving:
            self._delete_file(disk, block)
        return True

    def _delete_file(self, disk: Disk, block: Block) -> None:
        if block.state is None:
            self._remove(block)
        else:
            disk.remove(block.key, block.file)
            block.file = 0
            self._sort(block)

    def _worth_reading(self, disk: Disk, block: Block) -> bool:
        """Reading it takes less time than computing it, as far as that is known."""
        computing = self._token_seconds * (block.end - block.start)
        return not computing or disk.seconds_per_byte() * block.size < computing

    # Back from files

    def fetch(self, path: Sequence[Block]) -> bool:
        """Have those blocks of a path read that are only in files.

        :returns: whether to wait for the first.
        """
        if self._disk is None:
            return False
        now = self._touch(path[-1], 0)
        for block in path:
            if block.state is None and not self._ask(self._disk, block, now):
                break
        return self.waits(path[0])

    def _ask(self, disk: Disk, block: Block, now: int) -> bool:
        if block.reading:
            return True
        if disk.thread.silent() > PATIENCE_SECONDS or not self._worth_reading(disk, block):
            return False
        if self._crowded(block) or not self._make_room(block.size, block.weight, now):
            return False
        block.reading = True
        self.ram += block.size
        self._reading += block.size
        self._sort(block)
        disk.read(block.key, block.size, partial(self._read, block))
        return True

    def _read(self, block: Block, outcome: bytes | Exception) -> None:
        block.reading = False
        self.ram -= block.size
        self._reading -= block.size
        if block.gone:
            return
        if isinstance(outcome, bytes):
            block.state = outcome
            self.ram += block.size
            self._sort(block)
        elif isinstance(outcome, DamagedError | FileNotFoundError):
            print(f"modeld engine: a file of KV is not used: {outcome}; what follows it is computed", file=sys.stderr)
            self.drop(block)
        else:
            self._disown(block)

    def waits(self, block: Block) -> bool:
        """The block is being read, or will be when others have been, and it is worth while to wait for that."""
        disk = self._disk
        if disk is None or disk.thread.silent() > PATIENCE_SECONDS:
            return False
        return block.reading or (block.state is None and self._crowded(block) and self._worth_reading(disk, block))

    def _crowded(self, block: Block) -> bool:
        """So much is being read that this block has to wait."""
        return self._reading > 0 and self._reading + block.size > AHEAD_BYTES

    def patience(self) -> float | None:
        """Seconds until nobody waits any longer for what is being read; ``None``: nothing is."""
        if not self._reading or self._disk is None:
            return None
        left = PATIENCE_SECONDS - self._disk.thread.silent()
        return left + 0.001 if left > 0 else None

    # After a restart

    def _attach(self, found: list[Found], before: float) -> None:
        """Make blocks of files that follow each other from the manifest on. The others only take room."""
        assert self._disk is not None
        following: dict[bytes, list[Found]] = {}
        for one in found:
            following.setdefault(one.header.parent, []).append(one)
        made: dict[bytes, Block] = {}
        parents = [self.blocks.root]
        for parent in parents:
            for key, header, size, _ in following.pop(parent.key, ()) if parent.whole else ():
                block = made[key] = self.blocks.insert(parent, header.tokens, min(max(header.weight, 0), HEAVIEST))
                block.size, block.file = header.size, size
                parents.append(block)
        for key, _, size, modified in found:
            if (known := made.get(key)) is None:
                (self._disk.disown if modified >= before else self._disk.remove)(key, size)
            elif modified >= before:
                known.used = next(self._clock)
        for block in reversed(parents[1:]):
            # What a block follows was used with it.
            above = block.parent
            assert above is not None
            above.used, above.weight = max(above.used, block.used), max(above.weight, block.weight)
            self._sort(block)
            if not block.used:
                self._remove(block)
        for parent in parents:
            for shorter, block in pairwise(list(parent.children)):
                if block.tokens.startswith(shorter.tokens):
                    self._remove(shorter)
        self._make_file_room(self._disk, 0, (HEAVIEST + 1, 0))


def _put(group: set[Block], block: Block, belongs: bool) -> None:
    if belongs:
        group.add(block)
    else:
        group.discard(block)
