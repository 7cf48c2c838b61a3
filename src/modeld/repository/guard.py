"""What every call of a backend goes through: errors that are typed and hold no key, and a deadline."""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, NoReturn

from msgspec import DecodeError

from modeld.errors import (
    BackendProtocolError,
    BackendUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    ModeldError,
)
from modeld.repository.wire import Wire

MIN_KEY: Final = 8
"""Characters of a key from which on it is looked for in errors."""


@contextmanager
def typed_errors(wire: Wire, model: str) -> Any:
    """What the SDK raises leaves as one of our errors."""
    try:
        yield
    except Exception as error:
        raise_typed(wire, model, error)


def raise_typed(wire: Wire, model: str, error: Exception) -> NoReturn:
    typed = error if isinstance(error, ModeldError) else _ours(wire, model, error)
    name = wire.options.name
    if name and name != wire.type and "backend_id" not in typed.details:
        # Of two backends of one type it has to be known which one it was.
        typed = type(typed)(f"{name}: {typed.message}", **{**typed.details, "backend_id": name})
    key = wire.spec.api_key.strip()
    # Servers and proxies quote the key they refuse. A shorter one would be found in ordinary words.
    if len(key) >= MIN_KEY and key in f"{typed.message}{typed.details}{error}":
        details = {name: v.replace(key, "[key]") if isinstance(v, str) else v for name, v in typed.details.items()}
        raise type(typed)(typed.message.replace(key, "[key]"), **details) from None
    if isinstance(error, ModeldError):
        raise typed from error.__cause__
    raise typed from error


def _ours(wire: Wire, model: str, error: Exception) -> ModeldError:
    # The interpreter's words tell what was too deep: what is sent is encoded, what came is decoded.
    if isinstance(error, RecursionError) and re.search(r"\b(serializ|encod)", str(error)):
        text = f"{wire.type}: the request is nested too deeply"
        return InvalidRequestError(text, backend=wire.type, model=model)
    if isinstance(error, RecursionError):
        text = f"{wire.type}: JSON of the answer, or of a call in the history, is nested too deeply"
        return BackendProtocolError(text, backend=wire.type, model=model)
    if isinstance(error, DecodeError | UnicodeDecodeError):
        text = f"{wire.type}: the answer cannot be understood: {error}"
        return BackendProtocolError(text, backend=wire.type, model=model)
    if isinstance(error, UnicodeEncodeError):
        # Not the error itself: it holds the whole text.
        text = f"{wire.type}: a text of the request cannot be sent ({error.reason}, character {error.start})"
        return InvalidRequestError(text, backend=wire.type, model=model)
    return wire.error(error, model)


def cut_off(wire: Wire, model: str) -> ModeldError:
    text = f"the answer of {wire.type} stopped without an end; what came is incomplete"
    return BackendUnavailableError(text, backend=wire.type, model=model)


def deadline(timeout: float | None) -> Deadline:
    return deadline_at(None if timeout is None else asyncio.get_running_loop().time() + timeout, timeout)


def deadline_at(when: float | None, timeout: float | None) -> Deadline:
    return Deadline(when, timeout)


class Deadline:
    """``asyncio.timeout_at`` whose error is ours. Without a deadline it costs nothing, which streams need."""

    def __init__(self, when: float | None, timeout: float | None) -> None:
        self._timeout = timeout
        self._inner = None if when is None else asyncio.timeout_at(when)

    async def __aenter__(self) -> None:
        if self._inner is not None:
            await self._inner.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._inner is None:
            return
        try:
            await self._inner.__aexit__(exc_type, exc, tb)
        except TimeoutError:
            text = f"the timeout of {self._timeout:g} s passed; the request was closed"
            raise DeadlineExceededError(text, timeout=self._timeout) from None
