"""Cancellation from the reading thread into the step that runs."""

from __future__ import annotations

import threading

from modeld.engine.backend import Backend


class Control:
    """Which job the running step may be aborted for.

    The reading thread calls :meth:`cancel`, the scheduler's thread the rest. The lock is held for a few instructions
    and never while the backend computes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._abortable: int | None = None
        self._cancelled: set[int] = set()

    def bind(self, backend: Backend) -> None:
        """The backend whose steps may be aborted."""
        self._backend = backend

    def cancel(self, job: int) -> None:
        """Job ``job`` is not wanted any more."""
        with self._lock:
            self._cancelled.add(job)
            if self._abortable == job and self._backend is not None:
                self._backend.request_abort()

    def begin(self, job: int) -> bool:
        """A step that holds only ``job`` begins. ``False``: it was cancelled, do not step."""
        with self._lock:
            if job in self._cancelled:
                return False
            if self._backend is not None:
                self._backend.clear_abort()
            self._abortable = job
            return True

    def end(self) -> None:
        """The step ended. A cancel that comes later must not abort the next one."""
        with self._lock:
            self._abortable = None
            if self._backend is not None:
                self._backend.clear_abort()

    def forget(self, job: int) -> None:
        """The job's last frame is out."""
        with self._lock:
            self._cancelled.discard(job)
