"""Makes grammars in a thread of its own; the streams do not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from modeld.chat.call_grammar import (
    Calls,
    HeldFormat,
    bare_beginning,
    is_held,
    parted,
    rest_of_call,
    whole_answer,
    written_format,
)
from modeld.chat.grammar import Grammar, check_format, check_tool, from_gbnf
from modeld.chat.json_schema import Schema
from modeld.chat.output.formats import CallFormat, ChannelFormat, find_dialect
from modeld.chat.parser import OutputParser
from modeld.chat.template import ChatTemplate
from modeld.engine.backend import Backend
from modeld.engine.constraint import Constraint, Plan
from modeld.engine.job import Job
from modeld.engine.protocol import Decode, Turn
from modeld.engine.session import EngineSession
from modeld.engine.words import Words, lark_from_gbnf
from modeld.errors import EngineError, InvalidRequestError, MissingDependencyError, ModeldError, NotSupportedError
from modeld.thinking import ThinkLevel
from modeld.types import DecodeOptions, Tool, WarningPart


class Wanted(NamedTuple):
    """What a call says of its answer."""

    options: DecodeOptions
    tools: tuple[Tool, ...]
    think: ThinkLevel


class Made(NamedTuple):
    """A plan, and what the caller should know of it."""

    plan: Plan
    words: Words | None
    warnings: tuple[WarningPart, ...]


class Grammars:
    """Belongs to the scheduler's thread, but for what :class:`_Maker` does in its own.

    :param words: gives the model's, or raises why there are none. Called in the thread of the grammars.
    :param template: says how the model writes calls, and whether its prompt opens the thinking.
    :param wake: called, in another thread, when one is done.
    """

    def __init__(
        self, backend: Backend, words: Callable[[], Words], template: ChatTemplate, wake: Callable[[], None]
    ) -> None:
        self._backend = backend
        self._maker = _Maker(backend, words, template)
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._asked: dict[Job, Future[Made | None]] = {}
        self._awaited: list[Job] = []

    def ready(self, job: Job) -> bool:
        """Whether the job may go on: it needs no grammar, or has one, or there can be none. Else it is being made."""
        wanted = _wanted(job)
        if wanted is None:
            return True
        if job not in self._asked:
            future = self._asked[job] = self._thread.submit(self._maker.made, wanted)
            self._awaited.append(job)
            future.add_done_callback(lambda _: self._wake())
        return self._asked[job].done()

    def check(self, job: Job) -> None:
        """Of a job that is ready.

        :raises InvalidRequestError: what it wants makes no sense, or is too complex.
        :raises NotSupportedError: it is outside of what is supported.
        :raises MissingDependencyError: the matcher's package is not installed.
        """
        if job in self._asked:
            if isinstance(job.request, Decode) and job.request.options.response_format and _goes_on(job.session):
                raise InvalidRequestError(
                    "an answer that was cut cannot go on in a response format: ask for the turn again, with more "
                    "max_tokens",
                    parameter="response_format",
                )
            self._asked[job].result()

    def constraint(self, job: Job, watch: OutputParser) -> tuple[Constraint | None, tuple[WarningPart, ...]]:
        """What holds the job's answer, and what to tell its reader. :param watch: see :class:`Constraint`."""
        made = self._asked[job].result() if job in self._asked else None
        self.forget(job)
        if made is None:
            return None, ()
        if made.words is None:
            return None, made.warnings
        return Constraint(made.plan, made.words, self._backend, watch), made.warnings

    def done(self) -> list[EngineSession]:
        """Sessions whose first job was not ready when it was asked, and is now."""
        done = [job for job in self._awaited if self._asked[job].done()]
        self._awaited = [job for job in self._awaited if job not in done]
        return [job.session for job in done]

    def forget(self, job: Job) -> None:
        """The job is over."""
        if self._asked.pop(job, None) is not None and job in self._awaited:
            self._awaited.remove(job)


class _Maker:
    """Runs in the thread of the grammars."""

    def __init__(self, backend: Backend, words: Callable[[], Words], template: ChatTemplate) -> None:
        self._backend = backend
        self._words = words
        dialect = find_dialect(template.source)
        self._format = written_format(dialect)
        self._thinking = dialect.thinking
        self._opens_itself = not template.facts.opens_thinking

    def made(self, wanted: Wanted) -> Made | None:
        """The plan; ``None``: the answer is held to nothing. Raises as :meth:`Grammars.check`."""
        try:
            return self._make(wanted)
        except ModeldError:
            raise
        except BaseException as error:  # a panic of the matcher is no Exception, and must not end the engine
            raise EngineError(f"no grammar could be made: {type(error).__name__}: {error!s:.200}") from error

    def _make(self, wanted: Wanted) -> Made | None:
        options = wanted.options
        forced = options.tool_choice != "auto"
        held = self._format if self._format is not None and is_held(self._format) else None
        self._check_choice(wanted, held)
        if all(tool.function.strict is False for tool in wanted.tools) and not forced and not options.response_format:
            return None
        # First of all: what is wrong in itself is so without the matcher's package too.
        answer = check_format(options.response_format) if options.response_format is not None and not forced else None
        tools, warnings = self._tools(wanted) if held is not None else ([], self._not_held(wanted))
        if answer is None and not tools:
            return Made(Plan(), None, tuple(warnings)) if warnings else None
        try:
            words = self._words()
            calls = None
            if held is not None and (tools or (isinstance(held, ChannelFormat) and parted(held, words.spell))):
                calls = Calls(held, tools, words.spell, options.parallel_tool_calls)
            plan = self._plan(wanted, calls, words, answer)
        except (MissingDependencyError, NotSupportedError) as error:
            if answer is not None or forced or any(tool.function.strict for tool in wanted.tools):
                raise
            return Made(Plan(), None, (_free(f"the arguments of tools are what the model writes: {error.message}"),))
        return Made(plan, words, tuple(warnings))

    def _plan(self, wanted: Wanted, calls: Calls | None, words: Words, answer: Grammar | None) -> Plan:
        rules = ""
        if answer is not None:
            rules = from_gbnf(lark_from_gbnf(answer.rules)) if answer.gbnf else answer.rules
        channels = self._format if isinstance(self._format, ChannelFormat) and calls is not None else None
        bound = answer is not None or wanted.options.tool_choice != "auto"
        grammar = whole_answer(rules, calls) if bound or calls is None else rest_of_call(calls)
        matcher = words.matcher(grammar)
        return Plan(
            answer=matcher if bound else None,
            call=None if bound else matcher,
            trigger=calls.format.open if calls is not None and isinstance(calls.format, CallFormat) else "",
            bare=bare_beginning(calls) if calls is not None and not bound else None,
            formatted=answer is not None,
            opening=self._opening(wanted.think),
            closings=tuple(close.encode() for close in self._thinking.values()),
            parallel=wanted.options.parallel_tool_calls and not (calls is not None and calls.ends),
            header=channels is not None,
        )

    def _not_held(self, wanted: Wanted) -> list[WarningPart]:
        """Of tools that may be called, in a format that no grammar holds."""
        if not any(tool.function.strict is not False for tool in wanted.tools):
            return []
        return [_free(f"the arguments of tools are what the model writes: {self._why}")]

    @property
    def _why(self) -> str:
        if self._format is None:
            return "how it writes calls is not known from its template"
        return f"it writes calls in the format {self._format.name}, whose arguments are not JSON"

    def _check_choice(self, wanted: Wanted, held: HeldFormat | None) -> None:
        choice = wanted.options.tool_choice
        names = [tool.function.name for tool in wanted.tools]
        if choice not in ("auto", "required", *names):
            text = f"tool_choice is auto, required or the name of one of the tools, not {choice!r:.60}"
            raise InvalidRequestError(text, parameter="tool_choice")
        if choice != "auto" and not names:
            raise InvalidRequestError(f"tool_choice {choice!r} needs tools", parameter="tool_choice")
        strict = next((tool.function.name for tool in wanted.tools if tool.function.strict), None)
        if held is None and (choice != "auto" or strict is not None):
            what = f"tool_choice {choice!r}" if choice != "auto" else f"strict of tool {strict}"
            text = f"{what} cannot be held by this model: {self._why}"
            raise NotSupportedError(text, feature="tool_choice" if choice != "auto" else "strict")

    def _tools(self, wanted: Wanted) -> tuple[list[tuple[str, Schema | None]], list[WarningPart]]:
        """The tools that may be called, with the schemas that hold their arguments."""
        made: list[tuple[str, Schema | None]] = []
        warnings = []
        choice = wanted.options.tool_choice
        for tool in wanted.tools:
            function = tool.function
            if choice in ("auto", "required", function.name):
                schema = None
                if function.strict is not False:
                    try:
                        schema = check_tool(tool)
                    except (NotSupportedError, InvalidRequestError) as error:
                        if function.strict:
                            raise
                        warnings.append(_free(f"{error.message}; its arguments are any object"))
                made.append((function.name, schema))
        return made, warnings

    def _opening(self, think: ThinkLevel) -> tuple[int, ...]:
        """Tokens of the tag that a model may begin to think with where the prompt did not."""
        if not self._thinking or not self._opens_itself or think == "off":
            return ()
        return tuple(self._backend.tokenize(next(iter(self._thinking)).encode(), add_special=False))


def _wanted(job: Job) -> Wanted | None:
    request = job.request
    if not isinstance(request, Turn | Decode):
        return None
    tools, think = (
        (request.tools, request.think) if isinstance(request, Turn) else (job.session.tools, job.session.think)
    )
    options = request.options
    if options.response_format is None and not tools and options.tool_choice == "auto":
        return None
    return Wanted(options, tools, think)


def _goes_on(session: EngineSession) -> bool:
    return session.answer_before(len(session.ids), len(session.text)) is not None


def _free(message: str) -> WarningPart:
    return WarningPart("tools_not_held", message)
