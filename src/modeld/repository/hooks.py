"""Shutdown hooks of the process: what a backend must do before the program ends."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable

Hook = Callable[[], Awaitable[None] | None]

_hooks: list[Hook] = []
_lock = threading.Lock()


def register_shutdown_hook(hook: Hook | None) -> None:
    """Have :func:`shutdown` call ``hook``, a plain function or one that returns an awaitable. ``None`` is ignored."""
    if hook is not None:
        with _lock:
            _hooks.append(hook)


async def shutdown() -> None:
    """Call every hook, in the order of registration, each even where one before it failed.

    Hooks stay registered: calling again runs them again. One that is registered meanwhile runs the next time.

    :raises ExceptionGroup: hooks failed; it holds what they raised, in order.
    """
    with _lock:
        hooks = list(_hooks)
    failures: list[Exception] = []
    for hook in hooks:
        try:
            result = hook()
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(hooks)} shutdown hooks failed", failures)
