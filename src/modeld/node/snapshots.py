"""Where snapshots lie: ``snapshots/<sha-256>.snap`` in the data root, written whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from modeld.errors import InvalidRequestError, NodeError, SnapshotNotFoundError

_ID = re.compile(r"[0-9a-f]{64}")


class SnapshotStore:
    """Names and folders; the engine reads and writes the files."""

    def __init__(self, data_root: Path) -> None:
        self._folder = data_root / "snapshots"
        self._swept = False

    def draft(self) -> Path:
        """A path for a new file, in the folder it will stay in.

        :raises NodeError: the folder cannot be made.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._swept:
                # Of an engine that died while it wrote. There is one node to a data root, and this is its first draft.
                for left in self._folder.glob(".*.part"):
                    left.unlink(missing_ok=True)
                self._swept = True
        except OSError as error:
            raise NodeError(f"cannot make {str(self._folder)!r}: {error.strerror}", path=str(self._folder)) from error
        return self._folder / f".{uuid.uuid4().hex}.part"

    def publish(self, draft: Path, snapshot_id: str) -> None:
        """Give a finished draft its name, and the name to the disk."""
        draft.rename(self._path(snapshot_id))
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def find(self, snapshot_id: str) -> Path:
        """The file of a snapshot.

        :raises InvalidRequestError: not an id. :raises SnapshotNotFoundError: there is none.
        """
        path = self._path(snapshot_id)
        if not path.is_file():
            raise SnapshotNotFoundError(f"there is no snapshot {snapshot_id[:16]}", id=snapshot_id)
        return path

    def _path(self, snapshot_id: str) -> Path:
        # The only text from outside that becomes part of a path here.
        if not _ID.fullmatch(snapshot_id):
            raise InvalidRequestError(
                f"a snapshot id is 64 hexadecimal digits, not {snapshot_id[:80]!r}", parameter="snapshot_id"
            )
        return self._folder / f"{snapshot_id}.snap"
