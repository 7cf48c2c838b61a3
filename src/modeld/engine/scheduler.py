"""The loop that owns the backend: one thread, one batch at a time.

Each step holds one token for every stream that decodes, then pieces of prompts (:mod:`modeld.engine.batch`). Between
steps requests are taken, and jobs are started, cancelled and finished. Within a session they run one after the other,
in their order; of several sessions :mod:`modeld.engine.admission` says which is next.

What a step did not finish is not on any tape: after an aborted or failed step each sequence in it is cut back to what
its session held before. A cancelled prefill therefore keeps the whole steps it has done, and nothing else.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from modeld.engine import administration
from modeld.engine.admission import Admission
from modeld.engine.ahead import Ahead
from modeld.engine.backend import Backend, StepResult
from modeld.engine.batch import Batches, Entry
from modeld.engine.checkpoints import Checkpoints
from modeld.engine.control import Control
from modeld.engine.explain import cannot_rewind, kv_gone, why_stopped
from modeld.engine.grammars import Grammars
from modeld.engine.housekeeping import Housekeeping
from modeld.engine.job import Job, Stream
from modeld.engine.logprobs import TokenScores
from modeld.engine.pool import Pool
from modeld.engine.progress import Heartbeat, Progress
from modeld.engine.prompts import Prompts, close_answer, slide_under, what_left
from modeld.engine.protocol import (
    RESIDENT_TEXT,
    Audit,
    Cancel,
    Credit,
    Decode,
    Detokenize,
    Done,
    Embed,
    Explain,
    Failed,
    Forget,
    Fork,
    Kept,
    Load,
    Open,
    Parts,
    Render,
    Reply,
    Request,
    Rerank,
    Restore,
    Settle,
    Snapshot,
    Tokenize,
    Turn,
    encode_result,
)
from modeld.engine.results import end_part, status
from modeld.engine.room import Room
from modeld.engine.session import EngineSession, shared_length
from modeld.engine.snapshot_jobs import SnapshotJobs
from modeld.engine.states import States
from modeld.engine.texts import Texts
from modeld.engine.tiers import open_tiers
from modeld.engine.transfers import WAKE, Disk, Transfers
from modeld.engine.words import Words
from modeld.errors import (
    CancelledError,
    CapacityError,
    EngineError,
    EngineProtocolError,
    ModeldError,
    SessionFatalError,
)
from modeld.session.manifest import Manifest
from modeld.types import FinishReason, Message, WarningPart

FLUSH_SECONDS = 0.030
"""A stream's frame waits this long for more tokens; the first one does not wait.

Node and client need the processor for each frame. On two cores that also compute the model, 100 frames a second cost
9 % of the 90m shape's decode rate and 33 cost less than 1 %.
"""


class Scheduler:
    """Sessions, jobs, and the steps between them. Everything but :class:`Control` belongs to one thread.

    :param words: as :class:`Grammars` wants it.
    :param send: writes a frame to the node; may block.
    :param inbox: requests as the reading thread finds them.
    """

    def __init__(
        self,
        backend: Backend,
        load: Load,
        manifest: Manifest,
        prompts: Prompts,
        words: Callable[[], Words],
        send: Callable[[Reply], None],
        inbox: queue.SimpleQueue[Request],
        control: Control,
    ) -> None:
        self._texts = Texts(backend, prompts, load.name, send, limit=RESIDENT_TEXT)
        self._backend = backend
        self._load = load
        self._manifest = manifest
        self._prompts = prompts
        self._send = send
        self._inbox = inbox
        self._control = control
        tiers = open_tiers(load, manifest.digest, lambda: inbox.put(WAKE)) if backend.shares else None
        states = Checkpoints(load.ram) if load.ram and not backend.shares else None
        self._pool = Pool(backend, load, send, tiers or states)
        self._active: list[Job] = []
        self._room = Room(self._pool, self._active, shares=backend.shares)
        self._admission = Admission(self._pool, self._active)
        self._grammars = Grammars(backend, words, prompts.template, lambda: inbox.put(WAKE))
        self._batches = Batches(self._room, load.batch)
        self._ahead = Ahead(self._pool, prompts, backend)
        self._states = States(self._pool, manifest, send)
        self._housekeeping = Housekeeping(self._pool, self._ahead, self._states, tiers, send)
        self._progress = Progress(self._pool, self._admission, self._batches.cost, send)
        self._heartbeat = Heartbeat(self._progress.tell_waiting)
        disk = Disk(lambda: inbox.put(WAKE))
        self._transfers = Transfers(SnapshotJobs(self._pool, backend, load, manifest, disk).steps)

    def run(self) -> None:
        """Serve for ever; the process ends when the node's end of the socket closes."""
        self._heartbeat.start()
        while True:
            self.iterate()

    def iterate(self) -> None:
        """Take requests, start jobs, do one step. Waits for a request while there is nothing else to do."""
        self._take_requests()
        self._start_waiting()
        self._transfer()
        self._texts.step()
        self._step()
        if self._active:
            self._housekeeping.beside()

    # Requests

    def _take_requests(self) -> None:
        while True:
            while not self._inbox.empty():
                self._take(self._inbox.get())
            self._housekeeping.collect()
            for session in self._grammars.done():
                self._admission.add(session)
            ready = self._admission.ready or self._transfers.ready or self._texts.ready
            if ready or any(job.runnable for job in self._active):
                return
            for job in self._active:
                self._flush(job)
            if self._room.stalled() is not None and self._admission.waiting:
                # Who waits for room need not wait for a reader that takes nothing.
                self._admission.try_again()
                continue
            wait = self._housekeeping.idle()
            with suppress(queue.Empty):
                with self._heartbeat.resting():
                    request = self._inbox.get(timeout=wait)
                self._take(request)

    def _take(self, request: Request) -> None:
        match request:
            case Load():
                raise EngineProtocolError("this engine has its model already; another one needs another engine")
            case Embed() | Rerank():
                raise EngineProtocolError("this engine generates; vectors need another one")
            case Tokenize() | Detokenize() | Render():
                self._texts.add(request)
            case Open():
                self._states.open(request)
            case Credit(id=id_, tokens=tokens):
                for job in self._active:
                    if job.id == id_ and job.stream is not None:
                        job.stream.credit += tokens
            case Cancel(id=id_):
                self._cancel(id_)
            case Kept(id=id_):
                self._send(Done(id_, 0, encode_result(self._pool.kept())))
            case Settle(id=id_, seconds=seconds):
                self._housekeeping.settle(seconds)
                self._send(Done(id_, 0, encode_result(None)))
            case Audit(id=id_):
                self._housekeeping.tell()
                self._send(Done(id_, 0, encode_result(self._pool.audit())))
            case _:
                self._states.taken = request.id
                job = Job(request, self._pool.get(request.session))
                if isinstance(request, Explain):
                    self._administer(job)
                    return
                job.session.jobs.append(job)
                if len(job.session.jobs) == 1:
                    self._admission.add(job.session)

    def _cancel(self, id_: int) -> None:
        for session in self._pool.sessions.values():
            for job in session.jobs:
                if job.id == id_:
                    self._finish_cancelled(job)
                    return
        # It ended while the cancel was on its way, or only counts.
        self._texts.drop(id_)
        self._control.forget(id_)

    def _administer(self, job: Job) -> None:
        try:
            result = administration.perform(job, self._pool, self._load, self._manifest)
        except ModeldError as error:
            self._fail(job, error)
        else:
            self._reply(job, result)

    def _transfer(self) -> None:
        if (ended := self._transfers.step()) is not None:
            job, outcome = ended
            if isinstance(outcome, ModeldError):
                self._fail(job, outcome)
            else:
                self._reply(job, outcome)

    # Starting

    def _start_waiting(self) -> None:
        for job in self._admission.take():
            if not self._admission.lets(job):
                self._admission.wait(job.session)
                continue
            self._start_next(job.session)
            if job in self._active:
                self._admission.started(job)

    def _start_next(self, session: EngineSession) -> None:
        job = session.jobs[0]
        if job in self._transfers:
            return
        job.begun = not job.computes
        if session.fatal and not isinstance(job.request, Forget):
            self._fail(job, SessionFatalError(f"{session.fatal}; open the session again to start anew"))
        elif isinstance(job.request, Snapshot | Restore):
            self._transfers.add(job)
        elif not job.computes:
            self._administer(job)
        elif not self._grammars.ready(job):
            return  # it is added again when it is
        elif not self._room.may_compute(session, newcomer=True):
            self._admission.wait(session)
        else:
            try:
                self._grammars.check(job)
                if not job.target:
                    self._prompts.prepare(job)
                if self._room.admits(job):
                    self._start(job)
                else:
                    self._admission.wait(session)
            except ModeldError as error:
                self._fail(job, error)

    def _start(self, job: Job) -> None:
        session = job.session
        job.started = monotonic()
        job.begun = True
        if job.keeps_tail and session.hot >= len(job.target):
            job.reused = len(job.target)
        else:
            # From here on the session changes: nothing before this line did.
            tape, gone = session.remembered, session.gone
            shared = shared_length(tape, job.target)
            stop = why_stopped(session, job.prompt, shared)
            if job.prompt is not None and job.prompt.replaces:
                # Not as a branch, nor to RAM.
                self._pool.cut(session, shared)
            job.reused = self._pool.seat(session, job.target[: job.reusable])
            wanted = job.target[: job.reusable]
            job.promised = self._pool.coming(wanted, job.reused)
            job.gone = gone or job.gone
            job.places = self._pool.places_to_keep(wanted, (*job.places, shared), job.promised)
            if job.promised < min(shared, job.reusable):
                if gone is not None:
                    stop = kv_gone(session, gone, job.promised, len(tape) - job.promised)
                else:
                    stop = cannot_rewind(stop, job.promised)
                shared = job.promised
            job.blame(stop, tape)
            job.dropped = len(tape) - shared
            if job.prompt is not None:
                session.adopt(job.prompt, job.reused)
            session.logical = None
        if isinstance(job.request, Turn | Decode):
            options = job.request.options
            seed = self._prompts.seed(options)
            sampler = self._backend.sampler(options, seed, job.target)
            constraint, warnings = self._grammars.constraint(job, self._prompts.parser(job))
            scores = TokenScores(self._backend, options.top_logprobs) if options.logprobs else None
            parser = self._prompts.parser(job, scores.became if scores is not None else None)
            credit = job.request.credit
            job.stream = Stream(options, seed, credit, sampler, parser, constraint, scores, plain=session.raw)
            job.stream.parts += warnings
            if job.prompt is not None:
                job.stream.parts += what_left(job)
        self._room.follow(job)
        self._active.append(job)
        if job.complete:
            self._prefilled(job)

    # Steps

    def _step(self) -> None:
        entries = self._batches.compose(self._active)
        for job in [job for job in self._active if job.complete]:
            self._prefilled(job)
        result = StepResult.NO_SPACE
        while entries and result is StepResult.NO_SPACE:
            self._flush_before(entries)
            result = self._compute(entries)
            if result is StepResult.NO_SPACE:
                entries, stuck = self._room.make(entries)
                if stuck is not None:
                    self._no_room(stuck)
        if result is StepResult.FAILED and len(entries) > 1:
            # One of them is to blame: alone, only that one fails.
            for job, part in entries:
                if self._backend.shares:
                    self._settle([(job, part)], self._compute([(job, part)]))
                else:
                    # None of them has its KV any more.
                    job.suspect = part.start + len(part.tokens)
        else:
            self._settle(entries, result)

    def _flush_before(self, entries: list[Entry]) -> None:
        """Tokens that are ready do not wait for a long step, nor longer than a reader would notice."""
        long = any(job.next_token is None for job, _ in entries)
        now = monotonic()
        for job in self._active:
            if job.stream is not None and (long or now - job.stream.flushed > FLUSH_SECONDS):
                self._flush(job)

    def _compute(self, entries: list[Entry]) -> StepResult:
        alone = entries[0][0] if len(entries) == 1 and not entries[0][0].decoding else None
        if alone is not None and not self._control.begin(alone.id):
            return StepResult.ABORTED
        began = monotonic()
        try:
            with self._heartbeat.resting():
                result = self._backend.step([part for _, part in entries])
        finally:
            if alone is not None:
                self._control.end()
        if result is StepResult.OK:
            seconds = monotonic() - began
            self._batches.computed(entries, seconds)
            self._housekeeping.measured(sum(len(part.tokens) for _, part in entries), seconds)
            row = 0
            for job, part in entries:
                fed = job.next_token is None
                self._pool.extended(job.session, part.tokens)
                if fed:
                    job.took(len(part.tokens))
                if job.session.hot in job.places:
                    self._pool.keep(job.session)
                if part.logits:
                    self._sample(job, row)
                    row += 1
        elif result is not StepResult.NO_SPACE:
            if result is StepResult.FAILED and len(entries) > 1 and not self._backend.shares:
                # States are moved in memory when several sequences are computed: those of others may be broken too.
                self._distrust()
            for job, _ in entries:
                if not self._pool.cut(job.session, job.session.hot):
                    job.lost_kv("cannot_rewind")
        return result

    def _distrust(self) -> None:
        for job in self._active:
            if job.session.sequence is not None:
                job.lost_kv("engine_lost")
        self._pool.lose_all()

    def _no_room(self, job: Job) -> None:
        """The job alone does not fit."""
        if self._transfers:
            # What a snapshot holds can leave when it is done.
            job.park()
        elif job.decoding:
            self._finish(job, "context_full")
        else:
            tokens, cells = len(job.target), self._load.cells
            text = f"the prompt's {tokens} tokens do not fit the engine's {cells} KV cells"
            self._fail(job, CapacityError(text, tokens=tokens, cells=cells))

    def _settle(self, entries: list[Entry], result: StepResult) -> None:
        for job, _ in entries:
            if job not in self._active:
                continue
            if result is StepResult.ABORTED:
                self._finish_cancelled(job)
            elif result is StepResult.FAILED:
                session = job.session
                session.fatal = f"the session cannot go on: the engine failed at token {session.hot + 1} of its tape"
                self._pool.evict(session)
                self._fail(job, SessionFatalError(f"{session.fatal}; open the session again to start anew"))
            elif not job.decoding:
                if not job.remaining:
                    self._prefilled(job)
                elif job.stream is not None:
                    job.stream.parts.append(self._progress.of(job))

    def _sample(self, job: Job, row: int) -> None:
        """Take the next token of a stream, and see whether it was the last."""
        stream, session = job.stream, job.session
        assert stream is not None
        if not job.decoding:
            job.prefilled_at = monotonic()
            stream.parts.append(self._progress.of(job))  # whoever bills or shows the prompt hears its size first
            job.generated_from, job.text_from = len(session.ids), len(session.text)
        job.again = False
        try:
            token = stream.choose(row)
            if self._backend.is_end(token) and not stream.options.ignore_eos:
                self._finish(job, "stop")
                return
            piece = self._backend.piece(token)
            session.ids.append(token)
            session.text += piece
            matched = stream.push(token, piece, self._backend.is_special(token))
        except EngineError as error:
            stream.finish()
            close_answer(job, self._pool, cut=False)
            self._flush(job)
            self._fail(job, error)
            return
        if matched is not None:
            self._finish(job, "stop", matched)
        elif stream.count == stream.options.max_tokens:
            self._finish(job, "length")
        elif len(session.ids) > self._load.window and not self._slides(job, stream):
            self._finish(job, "context_full")
        elif job.stalled and self._admission.waiting:
            # What it holds may go to those who wait for room.
            self._admission.try_again()

    def _slides(self, job: Job, stream: Stream) -> bool:
        """The window is full: let turns leave, and compute what is left again. ``False``: the answer ends here."""
        try:
            session = job.session
            prompt = self._prompts.slide(session, job.generated_from, job.text_from) if session.shifts else None
        except ModeldError as error:
            stream.parts.append(WarningPart("shift_failed", f"no turn left the full window: {error.message}"))
            return False
        if prompt is None:
            return False
        slide_under(job, prompt, self._pool)
        stream.parts += what_left(job)
        return True

    # Ending

    def _prefilled(self, job: Job) -> None:
        """A job that only computes has all its tokens in the KV."""
        job.prefilled_at = monotonic()
        self._reply(job, status(job, self._load, self._manifest))

    def _finish(self, job: Job, reason: FinishReason, matched: str = "") -> None:
        """Close a stream: what was held back goes out, the answer becomes a span of the text, the end part follows."""
        if job.stream is not None:
            job.stream.finish()
            if not matched and job.stream.matcher.matched:
                # It was complete before, but a longer one could still have come.
                reason, matched = "stop", job.stream.matcher.matched
            if job.decoding:
                close_answer(job, self._pool, cut=bool(matched))
                if job.stream.thought and not job.stream.called:
                    self._ahead.answered(job.session, Message("assistant", "".join(job.stream.said)))
            self._flush(job)
            if job.stream.called and reason == "stop":
                reason = "tool_calls"
        self._reply(job, end_part(job, self._load, reason, matched))

    def _finish_cancelled(self, job: Job) -> None:
        if isinstance(job.request, Turn | Decode):
            self._finish(job, "cancelled")
        else:
            hot = job.session.hot
            self._fail(job, CancelledError(f"cancelled; the session keeps {hot} tokens", resident=hot))

    def _flush(self, job: Job) -> None:
        if job.stream is not None and (job.stream.parts or job.stream.tokens_ready):
            parts, tokens = job.stream.take()
            self._send(Parts(job.id, job.frame(), parts, tokens))

    def _reply(self, job: Job, result: object) -> None:
        self._leave(job)
        tapes = [self._pool.tape(job.session)]
        if isinstance(job.request, Fork):
            target = self._pool.get(job.request.target)
            self._states.touched(target)
            tapes.append(self._pool.tape(target))
        self._housekeeping.tell()
        self._send(Done(job.id, job.frame(), encode_result(result), tuple(tapes)))

    def _fail(self, job: Job, error: ModeldError) -> None:
        self._leave(job)
        self._housekeeping.tell()
        tape = self._pool.tape(job.session)
        self._send(Failed(job.id, job.frame(), error.code, error.message, error.details, (tape,)))

    def _leave(self, job: Job) -> None:
        """The job is over: its session's next one may start, and those that wait for room may try again."""
        session = job.session
        job.over = True
        if job in self._active:
            self._active.remove(job)
        self._transfers.drop(job)
        self._grammars.forget(job)
        if job.stream is not None:
            job.stream.sampler.close()
        if job in session.jobs:
            session.jobs.remove(job)
        if not isinstance(job.request, Explain):
            session.last_used = monotonic()
            # Also after a snapshot: who has a job is taken off the list of those that rest.
            self._states.touched(session)
        self._control.forget(job.id)
        self._admission.try_again()
        self._admission.add(session)
