"""From a request to the tokens it needs: rendering, tokenising, and what of the tape can stay."""

from __future__ import annotations

import secrets
from contextlib import suppress
from itertools import takewhile

from msgspec import structs

from modeld.chat.output.parts import Spans
from modeld.chat.parser import OutputParser, Syntax
from modeld.chat.template import ChatTemplate
from modeld.engine.backend import Lexicon, check_tokens
from modeld.engine.explain import stopped
from modeld.engine.job import Job
from modeld.engine.overflow import SHARE, Shown, announce, shorten, show
from modeld.engine.pool import Pool
from modeld.engine.protocol import Decode, Prefix, Suffix, Turn
from modeld.engine.session import EngineSession, Prompt, Span, shared_length
from modeld.errors import ContextOverflowError, InvalidRequestError, NotSupportedError, TemplateError
from modeld.session.text_values import RawPrompt
from modeld.session.values import Overflow
from modeld.thinking import ThinkLevel
from modeld.types import DecodeOptions, Message, Tool, WarningPart

_LARGER = "load the model with a larger context where it allows one (modeld load MODEL --context N)"
COUNTED_BYTES = 2**20
"""Text up to here is tokenised in any case, so that a refusal has exact numbers. It takes a quarter of a second a MiB,
and all streams wait."""


class Prompts:
    """Renders with the model's own template and its own tokeniser."""

    def __init__(self, backend: Lexicon, template: ChatTemplate, window: int) -> None:
        self._backend = backend
        self._template = template
        self._window = window
        self._syntax = Syntax(template.source, self._is_special)

    def _is_special(self, text: str) -> bool:
        ids = self._backend.tokenize(text.encode(), add_special=False)
        return len(ids) == 1 and self._backend.is_special(ids[0])

    def prepare(self, job: Job) -> None:
        """Find the job's target tokens. The session is not changed.

        :raises ContextOverflowError: the target does not fit the window.
        :raises TemplateError: the template failed.
        :raises InvalidRequestError: the request makes no sense in the session's state.
        """
        session = job.session
        match job.request:
            case Prefix(messages=messages, tools=tools):
                prompt = self._render(session, Shown(messages), tools, "auto", generate=False)
                shared = shared_length(session.tape, prompt.ids)
                # What follows the prefix on the tape may be just what the suffix needs: it stays until that is known.
                job.keeps_tail = shared == len(prompt.ids)
                self._plan(job, prompt, "prefix", logits=False)
            case Suffix() if session.unsure:
                raise InvalidRequestError(
                    "the engine ended before it could tell what the session's last call was, so nothing can follow it; "
                    "call ensure_prefix or turn with the conversation",
                    parameter="session",
                )
            case Suffix(messages=messages, think=think, overflow=overflow):
                everything = (*session.stable, *session.volatile, *messages)
                prompt = self._fit(session, everything, session.stable_tools, think, overflow)
                self._plan(job, prompt, "suffix", logits=False, overflow=overflow)
            case Turn(raw=RawPrompt() as raw):
                self._plan(job, self._raw(session, raw), "prompt", logits=True)
            case Turn(messages=messages, tools=tools, think=think, overflow=overflow):
                prompt = self._fit(session, messages, tools, think, overflow)
                self._plan(job, prompt, "turn", logits=True, overflow=overflow)
            case Decode():
                self._continue(job)
            case other:
                raise AssertionError(other)

    def render(
        self, messages: tuple[Message, ...], tools: tuple[Tool, ...], think: ThinkLevel, *, generate: bool
    ) -> Prompt:
        """A conversation as a new session's first prompt.

        :raises ModeldError: as :meth:`prepare`.
        """
        return self._render(EngineSession(0), Shown(messages), tools, think, generate=generate)

    def _fit(
        self,
        session: EngineSession,
        messages: tuple[Message, ...],
        tools: tuple[Tool, ...],
        think: ThinkLevel,
        overflow: Overflow,
    ) -> Prompt:
        """The prompt of the conversation, or of what may be shown of it; that may be too long still."""
        if overflow == "error":
            return self._render(session, Shown(messages), tools, think)
        shown = show(messages, session.stable, session.left, self._window)

        def render(some: Shown) -> Prompt:
            return self._render(session, some, tools, think, shifts=overflow == "shift")

        prompt = render(shown)
        if len(prompt.ids) <= self._window:
            return prompt
        shorter = shorten(shown, len(prompt.ids), render, goal=int(self._window * SHARE), window=self._window)
        goes_on = shown.left == session.left and shown.messages[: len(session.messages)] == session.messages
        return structs.replace(shorter, replaces=goes_on) if shorter is not None else prompt

    def slide(self, session: EngineSession, tokens: int, characters: int) -> Prompt | None:
        """A shorter conversation under the answer that the session's text ends in, whose own tokens stay.

        :param tokens: where the newest piece of that answer begins. :param characters: likewise, in bytes.
        :returns: ``None``: nothing can leave, or too little.
        """
        before = session.answer_before(tokens, characters)
        if before is not None:
            tokens, characters = before.token_start, before.byte_start
        answer, said = session.ids[tokens:], bytes(session.text[characters:])
        shown = show(session.messages, session.stable, None, self._window)
        if session.left is not None:
            shown = Shown(session.messages, session.left.stays, session.left)

        def render(some: Shown) -> Prompt:
            return self._render(session, some, session.tools, session.think, shifts=True)

        goal = int(self._window * SHARE) - len(answer)
        prompt = shorten(shown, tokens, render, goal=goal, window=self._window)
        if prompt is None or len(prompt.ids) + len(answer) > self._window:
            return None
        if before is not None:
            before = before.moved(len(prompt.ids) - tokens, len(prompt.text) - characters)
        ids, text = prompt.ids + answer, prompt.text + said
        return structs.replace(prompt, ids=ids, text=text, answer=before, replaces=True)

    def _render(
        self,
        session: EngineSession,
        shown: Shown,
        tools: tuple[Tool, ...],
        think: ThinkLevel,
        *,
        generate: bool = True,
        shifts: bool = False,
    ) -> Prompt:
        messages = shown.messages
        if not messages:
            raise InvalidRequestError("there are no messages to render", parameter="messages")
        if any(message.images for message in messages):
            raise NotSupportedError("the engines of a node take no images yet; leave them out", feature="images")
        self._check_template(messages, tools, think)
        rendered = self._template.render(messages, tools, think=think, add_generation_prompt=generate)
        text = rendered.encode("utf-8", "replace")
        self._refuse_hopeless(text)
        ids = session.tokens_of(text, self._backend, self._backend.bos, self._backend.add_bos)
        if not ids:
            raise InvalidRequestError("the messages render to no tokens", parameter="messages")
        return Prompt(messages, tools, think, text, ids, shown.left, shifts)

    def _raw(self, session: EngineSession, raw: RawPrompt) -> Prompt:
        """Text that no template made. The session shows it as a message of the user."""
        if raw.tokens:
            check_tokens(raw.tokens, self._backend, "the prompt", "prompt")
            ids, text = list(raw.tokens), b"".join(map(self._backend.piece, raw.tokens))
        else:
            text = raw.text.encode("utf-8", "replace")
            self._refuse_hopeless(text)
            ids = session.tokens_of(text, self._backend, self._backend.bos, self._backend.add_bos)
        if not ids:
            raise InvalidRequestError("the prompt has no tokens: give some text", parameter="prompt")
        shown = Message("user", text.decode("utf-8", "replace"))
        return Prompt((shown,), (), "off", text, ids, raw=True)

    def history(self, session: EngineSession, answer: Message) -> list[int]:
        """Tokens that the next turn's prompt will begin with, whatever is said in it.

        :raises ModeldError: the template fails on it.
        """
        first, second = (
            self._render(
                session,
                Shown((*session.messages, answer, Message("user", text))),
                session.tools,
                session.think,
                generate=False,
            ).ids
            for text in "AB"
        )
        return first[: shared_length(first, second)]

    def _refuse_hopeless(self, text: bytes) -> None:
        """Refuse a very long text that cannot fit whatever its tokens are."""
        least = -(-len(text) // self._backend.longest) if self._backend.longest else 0
        if len(text) > COUNTED_BYTES and least > self._window:
            raise ContextOverflowError(
                f"the prompt is {len(text)} bytes of text, at least {least} tokens, and the session holds "
                f"{self._window}: nothing was cut; shorten the conversation, or {_LARGER}",
                stage="prompt",
                resident=0,
                additional=least,
                window=self._window,
            )

    def _check_template(self, messages: tuple[Message, ...], tools: tuple[Tool, ...], think: ThinkLevel) -> None:
        """Refuse what the template would leave out of the prompt without a word."""
        facts = self._template.facts
        missing = {
            "tools": not facts.tools and bool(tools or any(m.tool_calls or m.role == "tool" for m in messages)),
            "system": not facts.system and any(m.role == "system" for m in messages),
            "think": not facts.thinking and think not in ("auto", "off"),
        }
        for feature, wanted in missing.items():
            if wanted:
                raise NotSupportedError(f"the chat template of this model takes no {feature}", feature=feature)
        if think == "off" and facts.thinking and not facts.thinking_switch:
            levels = f"; its levels are {', '.join(facts.efforts)}" if facts.efforts else ""
            raise NotSupportedError(
                f"the chat template of this model has no switch that turns thinking off{levels}", feature="think"
            )

    def _plan(self, job: Job, prompt: Prompt, stage: str, *, logits: bool, overflow: Overflow = "error") -> None:
        session = job.session
        shared = shared_length(session.tape, prompt.ids)
        if len(prompt.ids) > self._window:
            rest = f" without the {prompt.left.messages} messages that can leave" if prompt.left else ""
            way = "shorten the conversation"
            if overflow != "error":
                stays = "system messages, the prefix and the newest turn always stay"
                way = f"{overflow} lets older turns leave, {stays}: shorten those"
            raise ContextOverflowError(
                f"the {stage} is {len(prompt.ids)} tokens{rest} and the session holds {self._window}: nothing was cut; "
                f"{way}, or {_LARGER}",
                stage=stage,
                resident=shared,
                additional=len(prompt.ids) - shared,
                window=self._window,
            )
        job.prompt = prompt
        job.target = prompt.ids
        job.places = self._places(session, prompt)
        # The last token's logits are not kept anywhere: who wants to sample computes it again.
        job.reusable = len(prompt.ids) - logits

    def _places(self, session: EngineSession, prompt: Prompt) -> list[int]:
        """Where other prompts may leave this one: after tools and system prompt, and before what asks for an answer.

        Only models that cannot come back to any place need to know.
        """
        if self._backend.shares or prompt.raw:
            return []
        stable = tuple(takewhile(lambda message: message.role == "system", prompt.messages))
        places = []
        for messages in ((*stable, Message("user", "")), prompt.messages):
            # Some templates refuse some conversations: then that is no place to start from.
            with suppress(TemplateError):
                other = self._render(session, Shown(messages), prompt.tools, prompt.think, generate=False)
                places.append(shared_length(prompt.ids, other.ids))
        return places

    def _continue(self, job: Job) -> None:
        session = job.session
        if not session.logical:
            raise InvalidRequestError(
                "there is nothing to decode from: call prefill_suffix or turn first", parameter="session"
            )
        if session.logical < len(session.ids):
            prompt = self._render(session, Shown(session.stable), session.stable_tools, "auto", generate=False)
            self._plan(job, prompt, "decode", logits=True)
            return
        full = len(session.ids) > self._window
        if full and session.shifts and (shorter := self.slide(session, len(session.ids), len(session.text))):
            self._plan(job, shorter, "decode", logits=True)
            return
        if full:
            raise ContextOverflowError(
                f"the session is full: {self._window} tokens and one that was sampled; nothing was cut",
                stage="decode",
                resident=session.hot,
                additional=1,
                window=self._window,
            )
        job.target = list(session.ids)
        job.reusable = len(job.target) - 1

    def seed(self, options: DecodeOptions) -> int:
        """The seed asked for, or a random one."""
        return secrets.randbelow(2**32 - 1) if options.seed is None else options.seed

    @property
    def template(self) -> ChatTemplate:
        """The model's own, or the default."""
        return self._template

    def parser(self, job: Job, spans: Spans | None = None) -> OutputParser:
        """A parser for what the model will write after the job's prompt. :param spans: see :class:`OutputParser`."""
        session = job.session
        tail = "" if session.raw else bytes(session.text[-4096:]).decode("utf-8", "replace")
        return OutputParser(self._syntax, tools=session.tools, prompt_tail=tail, spans=spans)


def close_answer(job: Job, pool: Pool, *, cut: bool) -> None:
    """Make what a stream generated a span of the session's text.

    :param cut: a stop string ended it: tokens that are not wholly part of the answer leave the tape.
    """
    session, stream = job.session, job.stream
    assert stream is not None
    if cut:
        kept = sum(end <= stream.matcher.passed for end in stream.token_ends)
        # Where the model cannot forget a tail, all is gone: the next receipt says so.
        pool.cut(session, job.generated_from + kept)
        del session.ids[job.generated_from + kept :]
        del session.text[job.text_from + (stream.token_ends[kept - 1] if kept else 0) :]
    start, text_start, thinking = job.generated_from, job.text_from, stream.thought
    if (earlier := session.answer_before(start, text_start)) is not None:
        session.spans.pop()
        start, text_start, thinking = earlier.token_start, earlier.byte_start, thinking or earlier.thinking
    if len(session.ids) > start:
        session.spans.append(Span(start, len(session.ids), text_start, len(session.text), thinking))
    session.logical = len(session.ids)


def slide_under(job: Job, prompt: Prompt, pool: Pool) -> None:
    """Put the shorter conversation of :meth:`Prompts.slide` under the answer that a job generates."""
    session, stream = job.session, job.stream
    assert stream is not None
    job.generated_from += len(prompt.ids) - len(session.ids)
    job.text_from += len(prompt.text) - len(session.text)
    # The token that was sampled last has no KV yet; computing it is a step of the answer.
    target = prompt.ids[:-1]
    kept = shared_length(session.tape, target)
    job.begin_again(target, session.hot - kept)
    if job.stop is None:
        detail = f"the window was full after {stream.count} tokens of the answer"
        job.blame(stopped("turns_left", kept, detail), session.tape)
    pool.cut(session, kept)
    job.reused += pool.seat(session, target)
    session.adopt(prompt, session.hot)


def what_left(job: Job) -> list[WarningPart]:
    """What to tell the reader of a stream before the text that follows."""
    session = job.session
    if session.left is None:
        return []
    truncated = isinstance(job.request, Turn) and job.request.overflow == "truncate"
    return [announce(session.left, len(session.messages), len(session.ids), truncated=truncated)]
