"""Which cells of llama.cpp's memory belong to which sequence, and their bytes."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

_SIZE = struct.Struct(">I")
_SCRATCH = 0


class Cells:
    """The memory of a context. Its own sequence 0 is for copies, and the caller's follow: state names its sequence, and
    that of an engine with more sequences must be the same bytes.

    With ``swa_full`` a layer with a window has a cell for each token, but llama.cpp gives the cell of a token that has
    left the window to whoever writes next, unless two sequences hold it; and it saves none of them. That is right for
    text that only goes on. Text that is cut or shared later would be computed without them, and nothing would say so.
    So each sequence has a *guard*, a sequence that holds the same cells and is never computed, and is saved in pieces
    no longer than the window.

    :param window: tokens that windowed layers see, where sequences shall be guarded; 0: there is no need.
    """

    def __init__(self, native: Any, context: Any, sequences: int, window: int) -> None:
        self._n = native
        self._context = context
        self._memory = native.llama_get_memory(context)
        self._sequences = sequences
        self._window = window
        # Tokens of each sequence that its guard holds. It holds all that have left the window.
        self._guarded = [0] * sequences

    def length(self, sequence: int) -> int:
        """Tokens of a sequence: its last position is one less, -1 is none."""
        return int(self._n.llama_memory_seq_pos_max(self._memory, sequence + 1)) + 1

    def computed(self, sequence: int, end: int) -> None:
        """A step has put the sequence's tokens up to ``end`` into its cells."""
        if self._window and end // self._window > self._guarded[sequence] // self._window:
            guard, start = 1 + self._sequences + sequence, self._guarded[sequence]
            # It may hold some that were shared. Adding them again would count their positions twice.
            self._n.llama_memory_seq_rm(self._memory, guard, start, end)
            self._n.llama_memory_seq_cp(self._memory, sequence + 1, guard, start, end)
            self._guarded[sequence] = end

    def remove(self, sequence: int, start: int, end: int = -1) -> bool:
        """Take the sequence off these cells. ``False``: this memory can only forget all of it."""
        removed = bool(self._n.llama_memory_seq_rm(self._memory, sequence + 1, start, end))
        if self._window:
            self._n.llama_memory_seq_rm(self._memory, 1 + self._sequences + sequence, start, end)
            self._guarded[sequence] = min(self._guarded[sequence], start)
        return removed

    def share(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Mark the source's cells as the target's too."""
        self._give(source + 1, target, start, end)

    def _give(self, source: int, target: int, start: int, end: int) -> None:
        self._n.llama_memory_seq_cp(self._memory, source, target + 1, start, end)
        if self._window:
            # The source may leave them, and then only the guard keeps those that have left the window.
            self._n.llama_memory_seq_cp(self._memory, source, 1 + self._sequences + target, start, end)

    def save(self, sequence: int, start: int, end: int) -> bytes:
        """The state of a sequence, always written as that of the scratch sequence: the bytes name their sequence."""
        if not self._window:
            return self._save_piece(sequence, start, end)
        if end < 0:
            end = self.length(sequence)
        pieces, at = [], start
        while at < end:
            # To the next multiple, where the windows of chunked attention end.
            stop = min(end, (at // self._window + 1) * self._window)
            piece = self._save_piece(sequence, at, stop)
            pieces += [_SIZE.pack(len(piece)), piece]
            at = stop
        return b"".join(pieces)

    def _save_piece(self, sequence: int, start: int, end: int) -> bytes:
        self._n.llama_memory_seq_cp(self._memory, sequence + 1, _SCRATCH, start, end)
        try:
            return self._read()
        finally:
            self._n.llama_memory_seq_rm(self._memory, _SCRATCH, 0, -1)

    def _read(self) -> bytes:
        size = self._n.llama_state_seq_get_size(self._context, _SCRATCH)
        buffer = (ctypes.c_uint8 * size)()
        written = self._n.llama_state_seq_get_data(self._context, buffer, size, _SCRATCH)
        return bytes(memoryview(buffer)[:written])

    def restore(self, sequence: int, state: bytes, start: int, end: int) -> bool:
        """Put back what was saved, then read it back: only what reads back equal counts as restored."""
        if not self._window:
            return self._restore_piece(sequence, state, start, end)
        for piece in _pieces(state):
            if piece is None or not self._restore_piece(sequence, piece, start, end):
                self.remove(sequence, start)
                return False
        return True

    def _restore_piece(self, sequence: int, state: bytes, start: int, end: int) -> bool:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        try:
            read = self._n.llama_state_seq_set_data(self._context, buffer, len(state), _SCRATCH)
            if read != len(state) or self._read() != state:
                return False
            self._give(_SCRATCH, sequence, start, end)
            return True
        finally:
            self._n.llama_memory_seq_rm(self._memory, _SCRATCH, 0, -1)


def _pieces(state: bytes) -> list[bytes | None]:
    """The pieces of a saved state; the last is ``None`` where the bytes are not what was written."""
    found: list[bytes | None] = []
    at = 0
    while at < len(state):
        if at + _SIZE.size > len(state):
            return [None]
        (size,) = _SIZE.unpack_from(state, at)
        at += _SIZE.size
        if not 0 < size <= len(state) - at:
            return [None]
        found.append(state[at : at + size])
        at += size
    return found or [None]
