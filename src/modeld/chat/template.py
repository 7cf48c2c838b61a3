"""A model's own Jinja chat template: what it is given, and the prompt that comes out.

It runs in a sandbox with bounds (:mod:`modeld.chat.sandbox`). What it can do, and which dialect it wants its input in,
is found out by rendering (:mod:`modeld.chat.probe`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self

import jinja2

from modeld.chat.budget import BUDGET, Budget, Deadline
from modeld.chat.dialect import Form, messages_of, tool_of
from modeld.chat.probe import Prober
from modeld.chat.sandbox import compile_template
from modeld.errors import InvalidRequestError, TemplateError
from modeld.thinking import ThinkLevel
from modeld.types import Message, Tool

DEFAULT_NAME: Final = "chatml"
"""Name of the template that a model without one gets."""
CHATML: Final = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The default for a model without a template: plain ChatML. It has no tools and no thinking."""

EFFORTS: Final[dict[str, str]] = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
"""``reasoning_effort`` by thinking level."""

_END: Final = "THE-FINAL-MESSAGE-GOES-ON-HERE "


class ChatTemplate:
    """A compiled template. Rendering keeps no state: it may run in several threads.

    Bounded are the source, processor time, the size and depth of every value, and all memory together
    (:mod:`modeld.chat.budget`). A template cannot reach Python objects other than what it is given.

    :param source: Jinja source, or sources by name: ``default``, and where the model brings them ``tool_use`` (taken
        when tools are offered) and ``rag`` (taken when there are documents). Empty: the default, ChatML.
    :param bos: text of the token that begins a sequence. :param eos: of the one that ends it.
    :param clock: what ``strftime_now`` tells.
    :ivar source: all sources, one after the other. :ivar digest: SHA-256 of that.
    :ivar name: ``model``, or the name of the default. :ivar form: the dialect it wants its input in.
    :ivar facts: what the template can do.
    :raises TemplateError: a source cannot be compiled, or compiling and probing do not end in time.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        bos: str = "",
        eos: str = "",
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if not sources.get("default") and len(sources) > 1:
            raise TemplateError(
                f"none of the chat templates {', '.join(sources)} is named default", reason="no default"
            )
        self.name = "model" if sources.get("default") else DEFAULT_NAME
        sources["default"] = sources.get("default") or CHATML
        self.source = "\n".join(sources.values())
        self.digest = hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()
        self._tokens = {"bos_token": bos, "eos_token": eos}
        with Deadline() as limit:
            self._templates = {name: _compile(text, clock, limit) for name, text in sources.items()}
            prober = Prober(self.render_with, limit)
            self.form = prober.find_form()
            self.facts = prober.facts(self.name)

    @classmethod
    def from_tokenizer_config(cls, config: Mapping[str, Any], **options: Any) -> Self:
        """The template of a ``tokenizer_config.json``: one text, or a list of texts with names.

        :raises TemplateError: as for the class, or the config is not of that shape.
        """
        sources: Any = config.get("chat_template") or ""
        if isinstance(sources, list):
            entries = [entry if isinstance(entry, dict) else {} for entry in sources]
            sources = {entry.get("name"): entry.get("template") for entry in entries}
        texts = sources.items() if isinstance(sources, dict) else [("default", sources)]
        if not all(isinstance(name, str) and isinstance(text, str) for name, text in texts):
            raise TemplateError(
                "chat_template of a tokenizer_config is a text, or a list of objects with name and template",
                reason="shape",
            )
        return cls(sources, bos=_token(config.get("bos_token")), eos=_token(config.get("eos_token")), **options)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        think: ThinkLevel = "auto",
        add_generation_prompt: bool,
        documents: Sequence[Mapping[str, str]] = (),
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt.

        With level ``auto`` the template decides; ``off`` sets its thinking switch to false; the others set it to true
        and ``reasoning_effort`` to low, medium or high. The thinking of earlier answers is given to the template as
        ``reasoning_content``: most leave it out.

        :param documents: for templates that take them, with ``title`` and ``text``.
        :param continue_final_message: the prompt ends in the middle of the last message, an answer that was begun.
        :param variables: what else the template reads, such as ``date_string`` or ``builtin_tools``.
        :raises TemplateError: whatever went wrong; ``reason`` is the template's own message.
        :raises InvalidRequestError: there is no final answer to continue.
        """
        given = {**(variables or {}), **self._thinking(think), "add_generation_prompt": add_generation_prompt}
        if documents:
            given["documents"] = [dict(document) for document in documents]
        if not continue_final_message:
            return self._render_in_time(messages, tools, given)
        if not messages or messages[-1].role != "assistant" or not messages[-1].content or add_generation_prompt:
            raise InvalidRequestError(
                "only an answer with text, the last message, can be continued, and without a generation prompt",
                parameter="messages",
            )
        begun = Message("assistant", messages[-1].content + _END, thinking=messages[-1].thinking)
        prompt = self._render_in_time([*messages[:-1], begun], tools, given)
        head, found, tail = prompt.rpartition(_END.rstrip())
        if not found:
            raise TemplateError("the chat template leaves the last answer out: it cannot be continued", reason="cut")
        return head if tail.startswith(" ") else head.rstrip()

    def _render_in_time(self, messages: Sequence[Message], tools: Sequence[Tool], given: Mapping[str, Any]) -> str:
        with Deadline() as limit:
            return self.render_with(self.form, messages, tools, given, limit)

    def render_with(
        self, form: Form, messages: Sequence[Message], tools: Sequence[Tool], given: Mapping[str, Any], limit: Deadline
    ) -> str:
        """The prompt of input in a certain dialect; for probing.

        :param given: further variables. :param limit: when it must be done.
        :raises TemplateError: as :meth:`render`.
        """
        variables: dict[str, Any] = {
            **self._tokens,
            **dict(form.variables),
            "messages": messages_of(messages, form, tools=bool(tools)),
            "tools": [tool_of(tool) for tool in tools] or None,
            **given,
        }
        wanted = "tool_use" if tools else "rag" if given.get("documents") else "default"
        template = self._templates.get(wanted) or self._templates["default"]
        try:
            return _render(template, variables, limit)
        except Exception as error:
            failure = _failed(error)
        raise failure  # out here, so that it does not keep the frames of the render and what they hold

    def _thinking(self, think: ThinkLevel) -> dict[str, Any]:
        variables: dict[str, Any] = {}
        if think != "auto":
            variables |= dict.fromkeys(self.form.switches, think != "off")
        if think in EFFORTS:
            variables["reasoning_effort"] = EFFORTS[think]
        return variables


def _render(template: jinja2.Template, variables: dict[str, Any], limit: Deadline) -> str:
    budget = Budget(variables, limit)
    before = BUDGET.set(budget)
    try:
        pieces: list[str] = []
        size = 0
        # Not generate(): it makes a traceback whose frames hold each other, and all that was made, until a collection.
        for piece in template.root_render_func(template.new_context(variables)):
            limit.spend()
            size += len(piece)
            budget.size(size)
            pieces.append(piece)
        prompt = "".join(pieces)
        prompt.encode()  # half a surrogate pair could not be tokenised
        return prompt
    finally:
        BUDGET.reset(before)


def _token(value: Any) -> str:
    # Either the text itself, or an AddedToken written out.
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _compile(source: str, clock: Callable[[], datetime], limit: Deadline) -> jinja2.Template:
    try:
        return compile_template(source, clock, limit)
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> TemplateError:
    reason = (str(error) or type(error).__name__)[:2000]
    if isinstance(error, jinja2.TemplateSyntaxError):
        reason = f"{reason} (line {error.lineno})"
    return TemplateError(f"the chat template failed: {reason}", reason=reason, kind=type(error).__name__)
