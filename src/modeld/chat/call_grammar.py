"""Grammars of tool calls whose arguments are JSON, made from the data of the output formats.

What such a grammar takes, the format's own parser reads as calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Struct

from modeld.chat.grammar import HEAD, json_rule, text_atom
from modeld.chat.json_schema import Schema
from modeld.chat.output.formats import CallFormat, ChannelFormat, Dialect, JsonBody, NamedBody, SectionBody
from modeld.errors import NotSupportedError

Spell = Callable[[str], str]
"""Writes a marker in the grammar: as the token that stands for it, where there is one, or as text. Empty: it is a token
that ends the answer, which no grammar holds."""
HeldFormat = CallFormat | ChannelFormat

# Without a bound a model could write white space for ever.
_TERMINALS: Final = r"""MODELD_W: /[ \n]{0,16}/
MODELD_ID: /[A-Za-z0-9_]{1,40}/
MODELD_NUMBER: /[0-9]{1,3}/
"""
_W: Final = "MODELD_W"
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""A name that stands between markers, not in a string of JSON."""


class Calls(Struct, frozen=True):
    """The calls that may be made, and how they are written.

    :param tools: name and schema of the arguments; without a schema they are any object. None: of channels, no calls.
    :param parallel: more than one call may be made.
    """

    format: HeldFormat
    tools: Sequence[tuple[str, Schema | None]]
    spell: Spell
    parallel: bool

    @property
    def ends(self) -> bool:
        """The marker behind a call ends the answer."""
        close = _last(self.format)
        return bool(close) and not self.spell(close)


def is_held(call_format: HeldFormat) -> bool:
    """Whether its arguments can be held to a schema: they are JSON."""
    return isinstance(call_format, ChannelFormat) or isinstance(call_format.body, JsonBody | SectionBody | NamedBody)


def written_format(dialect: Dialect) -> HeldFormat | None:
    """How a model writes calls by itself: the first format that its template speaks. ``None``: it shows none."""
    return dialect.channels or next(iter(dialect.calls), None)


def parted(channels: ChannelFormat, spell: Spell) -> bool:
    """What parts the messages are tokens, so that free text between them cannot be taken for it."""
    return all(spell(marker).startswith("<[") for marker in _parting(channels))


def whole_answer(answer: str, calls: Calls | None = None) -> str:
    """The grammar of everything that follows the thinking; of channels, of all there is.

    :param answer: rules of :class:`modeld.chat.grammar.Grammar`, in Lark; empty: the answer is a call.
    """
    head, rules = ["answer"] if answer else [], answer
    if calls is not None:
        if isinstance(calls.format, ChannelFormat):
            return _channels(calls, calls.format, rules)
        head.append("modeld_calls")
        rules += _spans(calls, calls.format, marked=bool(answer)) + _call_rules(calls)
    return f"{HEAD}start: {' | '.join(head)}\n{rules}"


def rest_of_call(calls: Calls) -> str:
    """The grammar of what follows the trigger of a call; of channels, of the whole answer, which need be no call."""
    if isinstance(calls.format, ChannelFormat):
        return _channels(calls, calls.format, None)
    return f"{HEAD}start: modeld_rest\n{_call_rules(calls)}"


def bare_beginning(calls: Calls) -> re.Pattern[bytes] | None:
    """What makes an answer a call without a marker: the name of a tool in its place. ``None``: it needs a marker."""
    if not (isinstance(calls.format, CallFormat) and calls.format.bare and isinstance(calls.format.body, JsonBody)):
        return None
    names = "|".join(re.escape(_quoted(name)) for name, _ in calls.tools)
    return re.compile(rf'"{calls.format.body.names[0]}"[ \n]*:[ \n]*(?:{names})'.encode())


def _last(call_format: HeldFormat) -> str:
    return call_format.call if isinstance(call_format, ChannelFormat) else call_format.close


def _spans(calls: Calls, written: CallFormat, *, marked: bool) -> str:
    """Calls from the first marker on.

    :param marked: a call needs its marker, as the answer may be something else.
    """
    between = written.between
    span = "modeld_rest"
    if marked or not written.bare:
        span = f"{calls.spell(written.open)} modeld_rest"
        between = "" if written.bare else between
    more = f" ({text_atom(between) if between else ''} modeld_span)*" if calls.parallel and between is not None else ""
    return f"modeld_calls: modeld_span{more if not calls.ends else ''}\nmodeld_span: {span}\n"


def _call_rules(calls: Calls) -> str:
    """What follows the marker that opens a call, as ``modeld_rest``, and the arguments of each tool."""
    written, spell = calls.format, calls.spell
    assert isinstance(written, CallFormat)
    match written.body:
        case JsonBody():
            rest, rules = _json_body(calls, written.body)
        case SectionBody():
            rest, rules = _section_body(calls, written.body)
        case NamedBody(before_id=before_id, before_arguments=before, listed=listed):
            rest, rules = _json_body(calls, listed)
            given = f"({spell(before_id)} MODELD_ID)?"
            named = [f"{_word(name)} {given} {spell(before)} {_W} modeld_a{i}" for i, (name, _) in _each(calls)]
            rest = f"({rest} | {_either(named)})"
        case _:
            raise AssertionError(written.name)
    close = f" {_W} {spell(written.close)}" if written.close else ""
    return f"modeld_rest: {_W} {rest}{close}\n{rules}{_arguments(calls)}{_TERMINALS}"


def _arguments(calls: Calls) -> str:
    return "".join(f"modeld_a{i}: {json_rule(schema or {'type': 'object'})}\n" for i, (_, schema) in _each(calls))


def _json_body(calls: Calls, body: JsonBody) -> tuple[str, str]:
    """An object for each call, in a list where the model writes one."""
    bare = isinstance(calls.format, CallFormat) and calls.format.bare
    given = f'{_key(body.ids[0])} "\\"" MODELD_ID "\\""' if body.ids else ""
    first = f'({_key("type")} "\\"function\\"" {_W} "," {_W})? ' if bare else ""
    first += f'({given} {_W} "," {_W})? ' if given and not body.late_id else ""
    last = f'("," {_W} {given} {_W})? ' if body.late_id else ""
    tools = [
        f'{text_atom(_quoted(name))} {_W} "," {_W} {_key(body.arguments[0])} modeld_a{i}'
        for i, (name, _) in _each(calls)
    ]
    brace = f'"{{" {_W}' if bare else '"{"'  # behind a marker models write their objects in one line
    rule = f'modeld_object: {brace} {first}{_key(body.names[0])} {_either(tools)} {_W} {last}"}}"\n'
    if not body.listed:
        return "modeld_object", rule
    more = f' ({_W} "," {_W} modeld_object)*' if calls.parallel else ""
    return f'"[" {_W} modeld_object{more} {_W} "]"', rule


def _section_body(calls: Calls, body: SectionBody) -> tuple[str, str]:
    """Sections, one for each call. Where names are no ids they may also stand before a fenced block."""
    separator = calls.spell(body.separator)
    tools = []
    for i, (name, _) in _each(calls):
        if body.numbered:
            tools.append(f'"functions." {_word(name)} ":" MODELD_NUMBER {separator} {_W} modeld_a{i} {_W}')
        else:
            fenced = f'"\\n```json\\n" modeld_a{i} "\\n```" {_W}'
            tools.append(f"{_word(name)} {separator} {_W} modeld_a{i} {_W}")
            tools.append(f'"function" {separator} {_word(name)} {fenced}')
    rule = f"modeld_section: {calls.spell(body.begin)} {_either(tools)} {calls.spell(body.end)}\n"
    return f"modeld_section{f' ({_W} modeld_section)*' if calls.parallel else ''}", rule


def _channels(calls: Calls, channels: ChannelFormat, answer: str | None) -> str:
    """A whole answer in messages, after the header's first word. What is said in them is free.

    :param answer: rules of the last one; empty: it is a call; ``None``: it is anything.
    """
    spell = calls.spell
    start, channel, message, end = map(spell, _parting(channels))
    if not parted(channels, spell):
        raise NotSupportedError(
            f"calls in the format {channels.name} cannot be held: its markers are no tokens of this vocabulary",
            feature="tools",
        )
    shown = f'(" "? {spell(channels.constrain)} "json" | " json" | " ")?'
    said = f"{channel} /analysis|commentary|final/ {message} MODELD_TEXT"
    thought = f'({channel} "analysis" {message} MODELD_TEXT {end} {start} "assistant")'
    tools = []
    for i, (name, _) in _each(calls):
        to = f'"to=functions." {_word(name)}'
        for header in (f'{channel} "commentary " {to}', f'" " {to} {channel} "commentary"'):
            tools.append(f"{header} {shown} {message} {_W} modeld_a{i}")
    if not tools:
        return f'{HEAD}start: {thought}? {channel} "final" {message} answer\n{answer}MODELD_TEXT: /(?s:.*)/\n'
    close = spell(channels.call)
    more = f' ({start} "assistant" modeld_call)*' if calls.parallel and close else ""
    rules = f"modeld_call: {_either(tools)} {_W} {close}\n{_arguments(calls)}{_TERMINALS}MODELD_TEXT: /(?s:.*)/\n"
    rules += f"modeld_calls: modeld_call{more}\n"
    if answer is None:
        before = f'({said} {end} {start} "assistant")*'
        return f"{HEAD}start: {before} ({said} {end}? | modeld_calls)\n{rules}"
    final = f' | {channel} "final" {message} answer' if answer else ""
    return f"{HEAD}start: {thought}? (modeld_calls{final})\n{answer}{rules}"


def _parting(channels: ChannelFormat) -> tuple[str, str, str, str]:
    return channels.start, channels.channel, channels.message, channels.ends[0]


def _each(calls: Calls) -> Iterable[tuple[int, tuple[str, Schema | None]]]:
    return enumerate(calls.tools)


def _either(choices: Iterable[str]) -> str:
    return f"({' | '.join(choices)})"


def _key(name: str) -> str:
    return f'{text_atom(_quoted(name))} {_W} ":" {_W}'


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def _word(name: str) -> str:
    if _WORD.fullmatch(name) is None:
        text = f"the name {name[:40]!r} cannot be written by this model: letters, digits and _ . - only, 128 at most"
        raise NotSupportedError(text, feature="tools", parameter="tools")
    return text_atom(name)
