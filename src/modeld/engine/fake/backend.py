"""An engine without native code: one rune is one token, and the answer is a function of the KV alone.

It echoes the last user message and adds the CRC-32 of its adapters and everything before the answer, so that a wrong
cell anywhere in the KV shows as a wrong answer. Messages that begin with a command do more:

    !count N        counts to N, one rune a token
    !call NAME {…}  calls a tool with these arguments
    !abort          ends the process as a native assertion would
    !fail           lets the step fail

With thinking on, the answer begins with one thought. A model name ``fake:delay=0.01,window=512`` sets seconds per token
and the trained window; with ``whole=1`` a sequence can only be shared, saved and forgotten as a whole, as that of a
recurrent model, and with ``copies=1`` what is shared is copied.
"""

from __future__ import annotations

import math
import os
import time
import zlib

from modeld.engine.backend import Scored, Slice, StepResult
from modeld.engine.fake.embedder import FakeEmbedder
from modeld.engine.fake.lexicon import END, START, FakeLexicon
from modeld.engine.fake.settings import fake_settings
from modeld.engine.protocol import Device, Load
from modeld.session.adapters import identities
from modeld.types import DecodeOptions

_ENDINGS = (ord(END), *map(ord, '"}]'))


class FakeRuntime:
    """The fake as a runtime."""

    build = "fake-1"
    devices: tuple[Device, ...] = ()

    def load(self, request: Load) -> FakeBackend:
        """Make a fake model resident."""
        return FakeBackend(request)

    def embedder(self, request: Load) -> FakeEmbedder:
        """A fake model that makes vectors."""
        return FakeEmbedder(request)

    def lexicon(self, request: Load) -> FakeLexicon:
        """A fake model that only counts."""
        return FakeLexicon()


class FakeSampler:
    """Reads the next rune of the scripted answer, or where that is not allowed, one that comes to an end soon."""

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend

    def sample(self, row: int, allowed: bytes | None = None) -> int:
        """The next rune for the ``row``-th slice with logits."""
        scripted: int = self._backend.rows[row]
        if allowed is None or _has(allowed, scripted):
            return scripted
        if (ending := next((rune for rune in _ENDINGS if _has(allowed, rune)), None)) is not None:
            return ending
        bits = int.from_bytes(allowed, "little")
        # Blanks last: there is no end of them.
        inked = bits >> ord("!") << ord("!") or bits
        return (inked & -inked).bit_length() - 1

    def scored(self, row: int, top: int, allowed: bytes | None = None) -> Scored:
        """The scripted rune has one half, and each one after it, at the end from the first on, half of what is left."""
        scripted, count = self._backend.rows[row], self._backend.vocabulary
        token = self.sample(row, allowed)
        runes = [(scripted + place) % count for place in range(top)]
        return Scored(
            token,
            -(1 + (token - scripted) % count) * math.log(2),
            tuple((rune, -(1 + place) * math.log(2)) for place, rune in enumerate(runes)),
        )

    def close(self) -> None:
        """Nothing to free."""


def _written_call(call: str) -> str:
    name, _, arguments = call.partition(" ")
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments or "{}"}}}\n</tool_call>'


def _has(allowed: bytes, token: int) -> bool:
    return token < len(allowed) * 8 and bool(allowed[token >> 3] >> (token & 7) & 1)


class FakeBackend(FakeLexicon):
    """Cells by position for each sequence, checked as strictly as a native library would break.

    A cell is a list of one token: sequences that share it hold the same list.
    """

    kv_layout = "runes"
    grows = True

    def __init__(self, request: Load) -> None:
        self._cells: dict[int, dict[int, list[int]]] = {}
        self._limit = request.cells
        self._sequences = request.sequences
        self._batch = request.batch
        settings = fake_settings(request.name)
        self._delay = settings["delay"]
        self.shares = not settings["whole"]
        self.copies = bool(settings["copies"])
        self._abort = False
        self._adapted = zlib.crc32("".join(identities(request.adapters)).encode())
        self.rows: list[int] = []

    def step(self, slices: list[Slice]) -> StepResult:
        """Append the tokens to their sequences; a gap or a foreign position fails the step."""
        if sum(len(part.tokens) for part in slices) > self._batch:
            return StepResult.FAILED
        if self.used() + sum(len(part.tokens) for part in slices) > self._limit:
            return StepResult.NO_SPACE
        rows: list[int] = []
        for part in slices:
            cells = self._cells.setdefault(part.sequence, {})
            whole = sorted(cells) == list(range(part.start))
            if not whole or not 0 <= part.sequence < self._sequences:
                return StepResult.FAILED
            for position, token in enumerate(part.tokens, part.start):
                if self._delay:
                    time.sleep(self._delay)
                if self._abort:
                    return StepResult.ABORTED
                cells[position] = [token]
            if part.logits:
                rows.append(self._next(self.tape(part.sequence)))
        self.rows = rows
        return StepResult.FAILED if 0 in rows else StepResult.OK

    def sampler(self, options: DecodeOptions, seed: int, history: list[int]) -> FakeSampler:
        """The scripted sampler; options change nothing."""
        return FakeSampler(self)

    def remove(self, sequence: int, start: int, end: int = -1) -> bool:
        """Take the sequence off these cells."""
        cells = self._cells.setdefault(sequence, {})
        if not self.shares and start and len(cells) > start:
            return False
        assert not self.copies or end < 0, "a copy is whole: nothing in its middle is forgotten"
        for position in [p for p in cells if p >= start and (end < 0 or p < end)]:
            del cells[position]
        return True

    def share(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Let the target hold the same cells."""
        cells = self._cells.setdefault(target, {})
        self._check_whole(len(self._cells.get(source, {})), start, end)
        for position, cell in self._cells.get(source, {}).items():
            if position >= start and (end < 0 or position < end):
                assert position not in cells, f"sequence {target} holds position {position} twice"
                cells[position] = cell if self.shares and not self.copies else list(cell)
        assert not self.copies or self.used() <= self._limit, f"{self.used()} of {self._limit} cells"

    def tape(self, sequence: int) -> list[int]:
        """The tokens that a sequence holds."""
        return [cell[0] for _, cell in sorted(self._cells.get(sequence, {}).items())]

    def length(self, sequence: int) -> int:
        """Tokens of the tape."""
        return len(self.tape(sequence))

    def save(self, sequence: int, start: int = 0, end: int = -1) -> bytes:
        """Position and text of the cells."""
        self._check_whole(len(self.tape(sequence)), start, end)
        held = self.tape(sequence)[start : None if end < 0 else end]
        return f"{start}:{''.join(map(chr, held))}".encode("utf-8", "surrogatepass")

    def restore(self, sequence: int, state: bytes, start: int = 0, end: int = -1) -> bool:
        """The cells from text; like a native library it needs room for all of them, wanted or not."""
        try:
            first, _, text = state.decode("utf-8", "surrogatepass").partition(":")
            saved = {position: [ord(rune)] for position, rune in enumerate(text, int(first))}
        except ValueError:
            return False
        if self.used() + len(saved) > self._limit:
            return False
        cells = self._cells.setdefault(sequence, {})
        self._check_whole(len(saved), start, end)
        for position, cell in saved.items():
            if position >= start and (end < 0 or position < end):
                assert position not in cells, f"sequence {sequence} holds position {position} twice"
                cells[position] = cell
        return True

    def _check_whole(self, held: int, start: int, end: int) -> None:
        assert self.shares or (start, end) in ((0, -1), (0, held)), f"[{start}, {end}) of {held} cells is not all"

    def request_abort(self) -> None:
        """End the step that runs."""
        self._abort = True

    def clear_abort(self) -> None:
        """Let the next step run."""
        self._abort = False

    def close(self) -> None:
        """Forget everything."""
        self._cells.clear()

    def used(self) -> int:
        """Cells in use."""
        return len({id(cell) for cells in self._cells.values() for cell in cells.values()})

    def _next(self, cells: list[int]) -> int:
        text = "".join(map(chr, cells))
        before, _, answer = text.rpartition(START + "assistant ")
        thinking = answer.startswith("<think>\n")
        script = ("I think so.\n</think>\n\n" if thinking else "") + self._reply(before)
        said = answer.removeprefix("<think>\n") if thinking else answer
        return ord(script[len(said)]) if len(said) < len(script) else ord(END)

    def _reply(self, before: str) -> str:
        asked = before.rpartition(START + "user ")[2].partition(END)[0]
        command, _, rest = asked.partition(" ")
        if command == "!abort":
            os.abort()
        if command == "!fail":
            return "\0"
        if command == "!count" and rest.isdigit():
            return " ".join(map(str, range(1, int(rest) + 1)))
        if command == "!call":
            return "\n".join(map(_written_call, rest.split(" && ")))
        return f"{asked} #{zlib.crc32(before.encode('utf-8', 'surrogatepass'), self._adapted):08x}"
