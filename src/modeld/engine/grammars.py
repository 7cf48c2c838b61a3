"""Makes grammars in a thread of its own; the streams do not wait for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from modeld.chat.call_syntax import THINKING, CallSyntax, call_syntax
from modeld.chat.grammar import call_rules, check_format, check_tool, from_gbnf, rest_of_call, whole_answer
from modeld.chat.json_schema import Schema
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
        self._syntax = call_syntax(template.source)
        self._tags = next((tags for tags in THINKING if tags[0] in template.source or tags[1] in template.source), None)
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
        syntax = self._syntax if wanted.tools else None
        self._check_choice(wanted, syntax)
        if all(tool.function.strict is False for tool in wanted.tools) and not forced and not options.response_format:
            return None
        # First of all: what is wrong in itself is so without the matcher's package too.
        answer = check_format(options.response_format) if options.response_format is not None and not forced else None
        tools, warnings = self._tools(wanted) if syntax is not None else ([], [])
        if answer is None and not tools:
            return None
        try:
            words = self._words()
        except MissingDependencyError as error:
            if answer is not None or forced or any(tool.function.strict for tool in wanted.tools):
                raise
            return Made(Plan(), None, (_free(f"the arguments of tools are what the model writes: {error.message}"),))
        rules = ""
        if answer is not None:
            rules = from_gbnf(lark_from_gbnf(answer.rules)) if answer.gbnf else answer.rules
        calls = call_rules(tools, syntax, words.spell) if tools and syntax is not None else ""
        whole = whole_answer(rules, calls, syntax, words.spell, parallel=options.parallel_tool_calls)
        bound = bool(answer) or forced
        plan = Plan(
            answer=words.matcher(whole) if bound else None,
            call=None if bound else words.matcher(rest_of_call(calls)),
            trigger=syntax.opening.encode() if syntax is not None else b"",
            formatted=answer is not None,
            opening=self._opening(wanted.think),
            closing=self._tags[1].encode() if self._tags else b"",
            parallel=options.parallel_tool_calls,
        )
        return Made(plan, words, tuple(warnings))

    def _check_choice(self, wanted: Wanted, syntax: CallSyntax | None) -> None:
        choice = wanted.options.tool_choice
        names = [tool.function.name for tool in wanted.tools]
        if choice not in ("auto", "required", *names):
            text = f"tool_choice is auto, required or the name of one of the tools, not {choice!r:.60}"
            raise InvalidRequestError(text, parameter="tool_choice")
        if choice != "auto" and not names:
            raise InvalidRequestError(f"tool_choice {choice!r} needs tools", parameter="tool_choice")
        strict = next((tool.function.name for tool in wanted.tools if tool.function.strict), None)
        if syntax is None and (choice != "auto" or strict is not None):
            what = f"tool_choice {choice!r}" if choice != "auto" else f"strict of tool {strict}"
            text = f"{what} cannot be held: how this model writes calls is not known from its template"
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
        if self._tags is None or not self._opens_itself or think == "off":
            return ()
        return tuple(self._backend.tokenize(self._tags[0].encode(), add_special=False))


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
