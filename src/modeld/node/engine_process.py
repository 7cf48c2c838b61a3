"""The node's end of an engine process: start it, ask it, follow its streams, and know at once when it died."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from modeld.engine.protocol import (
    Audit,
    Cancel,
    Credit,
    Decode,
    Done,
    Evicted,
    Failed,
    FrameReader,
    Held,
    Hello,
    Kept,
    Load,
    Open,
    Parts,
    Ready,
    Reply,
    Request,
    SessionRequest,
    Settle,
    State,
    Tape,
    TextRequest,
    Turn,
    VectorRequest,
    decode_result,
    encode,
    encode_request,
)
from modeld.errors import EngineCrashedError, EngineProtocolError, ModeldError
from modeld.types import EndPart, ProgressPart, StreamPart

START_SECONDS = 60.0
"""An engine that does not say hello by then is ended. Importing a native library from a cold disk takes seconds."""

STOP_SECONDS = 5.0

_SPIN = {"GOMP_SPINCOUNT": "1000"}
"""How long llama.cpp's threads spin at a barrier (libgomp; what the user has set counts).

By default they spin on while the thread they wait for has no processor: beside two busy programs on two cores the 90m
shape then decoded 2 tokens/s, and 77 with this. On an idle machine both did 250.
"""

log = logging.getLogger("modeld.engine")

T = TypeVar("T")

Question = SessionRequest | TextRequest | VectorRequest | Kept | Settle | Audit


class EngineListener(Protocol):
    """Who hears what an engine tells without being asked."""

    def tape_changed(self, tape: Tape) -> None: ...

    def held(self, held: Held) -> None: ...

    def session_state(self, state: State) -> None: ...

    def asked(self, request: SessionRequest) -> None: ...

    def evicted(self, sessions: tuple[int, ...]) -> None: ...

    def engine_died(self, engine: EngineProcess, error: EngineCrashedError) -> None: ...


class EngineStream:
    """Parts of one running request. Belongs to the event loop's thread."""

    def __init__(self, engine: EngineProcess, id_: int) -> None:
        self._engine = engine
        self.id = id_
        self._parts: deque[StreamPart] = deque()
        self._tokens = 0
        self._discard = False
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.end: asyncio.Future[EndPart] = self._loop.create_future()
        # Somebody may look at the outcome only through the parts.
        self.end.add_done_callback(lambda end: end.cancelled() or end.exception())

    async def next_batch(self) -> list[StreamPart]:
        """All parts that are ready, at least one; empty after the last, which is the end part.

        :raises ModeldError: the request failed.
        """
        while not self._parts:
            if self.end.done():
                self.end.result()
                return []
            self._wake.clear()
            await self._wake.wait()
        parts = list(self._parts)
        self._parts.clear()
        self._give_credit()
        return parts

    async def cancel(self) -> EndPart:
        """End the request; parts that come from now on are dropped, but for the end part.

        :raises ModeldError: it failed before.
        """
        self._drop()
        return await asyncio.shield(self.end)

    def abandon(self) -> None:
        """Nobody will read it. Safe from any thread, and when the loop is closed already."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        if not self.end.done():
            self._discard = True
            self._parts.clear()
            self._engine.send(Cancel(self.id))

    def take(self, frame: Parts) -> None:
        """Parts came from the engine."""
        self._tokens += frame.tokens
        if self._discard or not frame.parts:
            # Tokens that a parser holds back reach no reader: it must not be the reader who lets them go on.
            self._give_credit()
        if self._discard:
            return
        if frame.parts and isinstance(frame.parts[0], ProgressPart):
            # They come as long as the call waits, whether anybody reads or not: only the latest says something.
            while self._parts and isinstance(self._parts[-1], ProgressPart):
                self._parts.pop()
        self._parts.extend(frame.parts)
        self._wake.set()

    def finish(self, outcome: EndPart | ModeldError) -> None:
        """The last frame came, or none will."""
        if self.end.done():
            return
        if isinstance(outcome, EndPart):
            self._parts.append(outcome)
            self.end.set_result(outcome)
        else:
            self.end.set_exception(outcome)
        self._wake.set()

    def _give_credit(self) -> None:
        if self._tokens and not self.end.done():
            self._engine.send(Credit(self.id, self._tokens))
        self._tokens = 0


class EngineProcess(asyncio.Protocol):
    """One engine and its frames. Made by :func:`start_engine`."""

    def __init__(self, listener: EngineListener, name: str) -> None:
        self._listener = listener
        self._name = name
        self._reader = FrameReader(Reply)
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ids = 0
        self._calls: dict[int, asyncio.Future[Done]] = {}
        self._streams: dict[int, tuple[EngineStream, Callable[[EndPart], EndPart]]] = {}
        self._sequence: dict[int, int] = {}
        self._last_words: deque[str] = deque(maxlen=5)
        self._tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        self.hello: asyncio.Future[Hello] = loop.create_future()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        for future in (self.hello, self.ready):
            future.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.gone = asyncio.Event()
        self.stopping = False
        self._refusal: ModeldError | None = None
        self.pid = 0

    @property
    def alive(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and not self.gone.is_set()

    def send(self, frame: Request) -> None:
        """Write a frame; nothing happens when the engine is gone."""
        self._write(encode(frame))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def next_id(self) -> int:
        """An id for a request."""
        self._ids += 1
        return self._ids

    async def load(self, request: Load) -> Ready:
        """Make a model resident.

        :raises ModeldError: the engine could not; it is of no more use.
        """
        self.send(request)
        return await self.ready

    async def call(self, request: Question, type_: type[T]) -> T:
        """Ask, and wait for the one answer. Cancelling the wait cancels the request.

        :raises ModeldError: what the engine raised, or :class:`EngineCrashedError`.
        """
        self._require_alive()
        return await self._ask(request, type_)

    async def _ask(self, request: Question, type_: type[T]) -> T:
        data = encode_request(request)
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._calls[request.id] = future
        self._write(data)
        if isinstance(request, SessionRequest):
            self._listener.asked(request)
        try:
            done = await future
        except asyncio.CancelledError:
            self.send(Cancel(request.id))
            raise
        finally:
            self._calls.pop(request.id, None)
        return decode_result(done.result, type_)

    def stream(self, request: Turn | Decode, finish: Callable[[EndPart], EndPart]) -> EngineStream:
        """Ask for a stream. ``finish`` sees the end part before anybody else and may add to it."""
        self._require_alive()
        data = encode_request(request)
        stream = EngineStream(self, request.id)
        self._streams[request.id] = (stream, finish)
        self._write(data)
        self._listener.asked(request)
        return stream

    def tell(self, request: Open) -> None:
        """Send what is not answered."""
        self.send(request)

    def refuse(self, error: ModeldError) -> None:
        """End all that runs and refuse all that comes with ``error``. The process is left to :meth:`stop`."""
        self._refusal = error
        for id_ in (*self._calls, *self._streams):
            self.send(Cancel(id_))
        self._fail_all(error)

    async def settle(self, seconds: float) -> None:
        """Before :meth:`stop`: let it put what is worth keeping where that survives, for at most ``seconds``.

        One that is dead, or does not answer, is not an error: then what it told of before is all there is.
        """
        if not self.alive:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._ask(Settle(self.next_id(), seconds), type(None))
        except TimeoutError:
            log.warning("engine %d did not settle within %g s", self.pid, seconds)
        except ModeldError as error:
            log.info("engine %d did not settle: %s", self.pid, error)

    async def stop(self) -> None:
        """End the process and wait until its memory is free."""
        self.stopping = True
        if self._transport is not None:
            self._transport.close()
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socketpair is connected from the start."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Give each frame to whom it is for."""
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except EngineProtocolError as error:
            log.error("engine %d: %s", self.pid, error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed its end: it is dead, or about to be."""
        task = asyncio.ensure_future(self._bury())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self, frame: Any) -> None:
        match frame:
            case Parts(id=id_):
                self._in_order(frame)
                if id_ in self._streams:
                    self._streams[id_][0].take(frame)
            case Done() | Failed():
                self._in_order(frame)
                self._sequence.pop(frame.id, None)
                for tape in frame.tapes:
                    self._listener.tape_changed(tape)
                self._ended(frame)
            case Evicted(sessions=sessions):
                self._listener.evicted(sessions)
            case Held():
                self._listener.held(frame)
            case State():
                self._listener.session_state(frame)
            case Hello():
                if not self.hello.done():
                    self.hello.set_result(frame)
            case Ready():
                for warning in frame.warnings:
                    log.warning("engine %d: %s", self.pid, warning)
                if not self.ready.done():
                    self.ready.set_result(frame)

    def _in_order(self, frame: Parts | Done | Failed) -> None:
        expected = self._sequence.get(frame.id, 0)
        if frame.seq != expected:
            raise EngineProtocolError(f"frame {frame.seq} of request {frame.id} came where {expected} was expected")
        self._sequence[frame.id] = expected + 1

    def _ended(self, frame: Done | Failed) -> None:
        if frame.id == 0 and isinstance(frame, Failed):
            for start in (self.hello, self.ready):
                if not start.done():
                    start.set_exception(frame.error())
        elif frame.id in self._streams:
            stream, finish = self._streams[frame.id]
            outcome = frame.error() if isinstance(frame, Failed) else finish(decode_result(frame.result, EndPart))
            # Only now: a result that cannot be read ends the engine, and with it every stream that is still known.
            del self._streams[frame.id]
            stream.finish(outcome)
        elif frame.id in self._calls:
            future = self._calls.pop(frame.id)
            if future.done():
                return
            if isinstance(frame, Failed):
                future.set_exception(frame.error())
            else:
                future.set_result(frame)

    async def _bury(self) -> None:
        """Tell all who wait. A killed process is reaped within milliseconds; one that only hangs up is killed."""
        process = self._process
        if process is not None:
            try:
                async with asyncio.timeout(STOP_SECONDS if self.stopping else 0.5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self.gone.set()
        error = EngineCrashedError(f"the engine for {self._name} {self._end()}; the next call loads it again")
        if not self.stopping:
            log.warning("%s", error.message)
        self._fail_all(error)
        self._listener.engine_died(self, error)

    def _fail_all(self, error: ModeldError) -> None:
        for start in (self.hello, self.ready):
            if not start.done():
                start.set_exception(error)
        for future in self._calls.values():
            if not future.done():
                future.set_exception(error)
        for stream, _ in self._streams.values():
            stream.finish(error)
        self._calls.clear()
        self._streams.clear()

    def _end(self) -> str:
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            how = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        else:
            how = f"ended with code {code}"
        return f"(process {self.pid}) {how}" + (f": {self._last_words[-1]}" if self._last_words else "")

    def _require_alive(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        if not self.alive:
            raise EngineCrashedError(f"the engine for {self._name} {self._end()}; the next call loads it again")

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        # Not by lines: a line without end would stop the reading, and a full pipe the engine.
        while data := await stderr.read(1 << 16):
            for text in data.decode("utf-8", "replace").splitlines():
                self._last_words.append(text[:1000])
                log.info("engine %d: %s", self.pid, text)

    async def run(self, backend: str, lock: Path, environment: Mapping[str, str]) -> None:
        """Start the process and wait for its hello.

        :raises ModeldError: it could not start.
        """
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "modeld.engine.worker", "--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                *("--lock", str(lock), "--backend", backend),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                # ggml would attach a debugger to itself on an assertion, and keep the dying process alive with it.
                env={**_SPIN, **os.environ, "GGML_NO_BACKTRACE": "1", **environment},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        assert self._process.stderr is not None
        task = asyncio.ensure_future(self._listen(self._process.stderr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        async with asyncio.timeout(START_SECONDS):
            await self.hello


async def start_engine(
    listener: EngineListener,
    backend: str,
    data_root: Path,
    name: str,
    *,
    lock: str = "engine.lock",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> EngineProcess:
    """Start an engine process for the model ``name``.

    :param lock: file of the data root that it holds while it lives: of those with one lock, one runs at a time.
    :param environment: added to the node's own.
    :raises EngineCrashedError: it ended, or said nothing for :data:`START_SECONDS`.
    :raises ModeldError: what it said about why it cannot run.
    """
    engine = EngineProcess(listener, name)
    try:
        await engine.run(backend, data_root / lock, environment)
    except TimeoutError:
        await engine.stop()
        raise EngineCrashedError(
            f"the engine for {name} said nothing for {START_SECONDS:.0f} s; it was ended"
        ) from None
    except BaseException:
        await engine.stop()
        raise
    return engine
