"""The engine process: ``python -m modeld.engine.worker --fd N --parent PID --lock PATH --backend NAME``.

It lives exactly as long as somebody listens. Three things end it: the node's end of the socket closes (a thread that
does nothing else waits for that, also while a step runs), the node dies (the kernel signals; Linux only), or the parent
is not the one that started it any more.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import structs

from modeld.engine.backend import Backend, Runtime
from modeld.engine.control import Control
from modeld.engine.protocol import MAX_FRAME, Cancel, Failed, FrameReader, Hello, Load, Ready, Reply, Request, encode
from modeld.engine.runtimes import load_runtime
from modeld.errors import EngineProtocolError, ModelBusyError, ModeldError
from modeld.session.adapters import identities
from modeld.session.manifest import Manifest

if TYPE_CHECKING:
    from modeld.engine.embedding import SideLoop
    from modeld.engine.scheduler import Scheduler

EXIT_ORPHANED = 71
EXIT_PROTOCOL = 76
LOCK_SECONDS = 10.0
"""How long to wait for the engine before us to end. The kernel frees its lock at its death, even by SIGKILL."""

NO_WINDOW = 2**31 - 1

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Serve one model to the node at the other end of ``--fd``."""
    parser = argparse.ArgumentParser(prog="modeld.engine.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--lock", required=True)
    parser.add_argument("--backend", required=True)
    options = parser.parse_args(arguments)
    _die_with(options.parent)
    # Ctrl-C on the node's terminal reaches the whole process group; the node decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=options.fd)
    connection.setblocking(True)
    inbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
    control = Control()
    threading.Thread(target=_read, args=(connection, inbox, control), daemon=True, name="reader").start()

    def send(frame: Reply) -> None:
        connection.sendall(encode(frame))

    try:
        _take_lock(options.lock)
        runtime = load_runtime(options.backend)
        send(Hello(os.getpid(), options.backend, runtime.build, runtime.devices))
        request = inbox.get()
        if not isinstance(request, Load):
            raise EngineProtocolError(f"the first frame must be load, not {type(request).__name__}")
        load = _load if request.task == "generate" else _load_side
        loop = load(runtime, request, options.backend, send, inbox, control)
    except ModeldError as error:
        send(Failed(0, 0, error.code, error.message, error.details))
        return 1
    loop.run()
    return 0


def _load(
    runtime: Runtime,
    request: Load,
    name: str,
    send: Callable[[Reply], None],
    inbox: queue.SimpleQueue[Request],
    control: Control,
) -> Scheduler:
    # Not before: with the engine's packages missing, the runtime is what says how to get them.
    from modeld.chat.template import ChatTemplate
    from modeld.engine.prompts import Prompts
    from modeld.engine.scheduler import Scheduler
    from modeld.engine.words import read_words

    backend: Backend = runtime.load(request)
    control.bind(backend)
    sources = {"default": backend.template_source, **backend.named_templates}
    template = ChatTemplate(sources, bos=backend.bos, eos=backend.eos)
    manifest = Manifest(
        engine=name,
        engine_build=runtime.build,
        model_digest=request.digest,
        template_digest=template.digest,
        tokenizer_digest=backend.tokenizer_digest,
        add_bos=backend.add_bos,
        kv_type=request.kv_type,
        adapters=identities(request.adapters),
        kv_layout=backend.kv_layout,
    )
    facts = template.facts
    warnings = ("the model brings no chat template; ChatML is used",) if facts.source == "default" else ()
    words = read_words(backend)
    send(Ready(manifest, request.window, request.cells, facts, warnings))
    prompts = Prompts(backend, template, request.window)
    return Scheduler(backend, request, manifest, prompts, words, send, inbox, control)


def _load_side(
    runtime: Runtime,
    request: Load,
    name: str,
    send: Callable[[Reply], None],
    inbox: queue.SimpleQueue[Request],
    control: Control,
) -> SideLoop:
    from modeld.chat.template import ChatTemplate
    from modeld.engine.embedding import SideLoop
    from modeld.engine.prompts import Prompts
    from modeld.engine.texts import Texts

    embedder = runtime.embedder(request) if request.task == "embed" else None
    lexicon = embedder or runtime.lexicon(request)
    sources = {"default": lexicon.template_source, **lexicon.named_templates}
    template = ChatTemplate(sources, bos=lexicon.bos, eos=lexicon.eos)
    manifest = Manifest(
        engine=name,
        engine_build=runtime.build,
        model_digest=request.digest,
        template_digest=template.digest,
        tokenizer_digest=lexicon.tokenizer_digest,
        add_bos=lexicon.add_bos,
    )
    ready = Ready(manifest, request.window, request.cells, template.facts)
    if embedder is not None:
        ready = structs.replace(
            ready,
            dimensions=embedder.dimensions,
            pooling=embedder.pooling,
            pooling_source=embedder.pooling_source,
        )
    send(ready)
    # No window bounds what is counted here; its bytes are.
    texts = Texts(lexicon, Prompts(lexicon, template, NO_WINDOW), request.name, send, limit=MAX_FRAME)
    return SideLoop(embedder, texts, request.name, send, inbox)


def _read(connection: socket.socket, inbox: queue.SimpleQueue[Request], control: Control) -> None:
    """Take frames as they come, and end the process when no more can."""
    reader = FrameReader(Request)
    while True:
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        try:
            frames = reader.feed(data)
        except EngineProtocolError as error:
            print(f"modeld engine: {error}", file=sys.stderr, flush=True)
            os._exit(EXIT_PROTOCOL)
        for frame in frames:
            if isinstance(frame, Cancel):
                # First: the scheduler forgets the id when it has taken the frame.
                control.cancel(frame.id)
            inbox.put(frame)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the signal was asked for.
    if os.getppid() != parent:
        sys.exit(EXIT_ORPHANED)


def _take_lock(path: str) -> None:
    """One engine per data root: a new one waits until the memory of the one before is free.

    The descriptor stays open for the life of the process, and with it the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                raise ModelBusyError(
                    f"the engine before this one (process {holder}) still runs after {LOCK_SECONDS:.0f} s; end it and "
                    "try again",
                    pid=holder,
                ) from None
            time.sleep(0.005)
        else:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return


if __name__ == "__main__":
    sys.exit(main())
