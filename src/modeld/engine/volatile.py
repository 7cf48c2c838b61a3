"""Text that changes by itself: dates, times, ids, counters and the like, which programs write into a system prompt.

Told by its shape: on both sides of a difference stands the same kind of thing, beginning at the same place. Whether a
program or a person changed it nobody can see from that.
"""

from __future__ import annotations

import re
from typing import Final

from modeld.session.headers import BILLING_LINE

_NEAR: Final = 300
"""Characters of the line on each side of the difference that are looked at."""

_GIT_LINES: Final = 40
"""Lines above a status line among which its heading stands."""

_MONTH: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|January|February|March|April|June|July|August"
_MONTHS: Final = _MONTH + r"|September|October|November|December)\.?"
_DAYS: Final = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_CLOCK: Final = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
_ID_PREFIX: Final = r"(?:req|request|msg|call|chatcmpl|toolu|resp|run|sess|session|conv|thread|trace|span|task)"
_COUNTED: Final = (
    r"(?:counter|count|turn|step|round|iteration|attempt|retries|retry|seq|sequence|request|nonce|usage|elapsed|uptime"
    r"|(?:tokens|context|messages|requests|budget) (?:used|left|remaining))"
)
_FOLDER: Final = r"(?:working (?:directory|dir|folder)|workspace(?: (?:root|folder|directory))?|cwd|pwd)"
_PATH: Final = r"(?:[~./]|[a-z]:\\)"


def _shape(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.I)


_SHAPES: Final = (
    ("a billing header", _shape(BILLING_LINE)),
    ("a billing header", _shape(r"\bcch=(?P<value>[0-9a-f]+)")),
    ("a UUID", _shape(r"(?<![0-9a-f-])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f-])")),
    ("a timestamp", _shape(rf"(?<!\d)\d{{4}}-\d\d-\d\d[T ]{_CLOCK}(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?(?!\d)")),
    # Seconds, milliseconds, microseconds or nanoseconds of the years 2017 to 2033.
    ("a timestamp", _shape(r"(?<![\w.])1[5-9]\d{8}(?:\d{3}){0,3}(?:\.\d+)?(?!\w)")),
    ("a date", _shape(r"(?<![\w.])\d{4}(?P<mark>[-/.])\d{1,2}(?P=mark)\d{1,2}(?!\d)")),
    ("a date", _shape(r"(?<![\w.])\d{1,2}(?P<mark>[-/])\d{1,2}(?P=mark)\d{2,4}(?!\d)|\d{1,2}\.\d{1,2}\.\d{4}(?!\d)")),
    ("a date", _shape(rf"(?<!\w){_MONTHS} +\d{{1,2}}(?:st|nd|rd|th)?(?:,? +\d{{4}})?(?!\w)")),
    ("a date", _shape(rf"(?<!\w)\d{{1,2}}(?:st|nd|rd|th)? +{_MONTHS}(?:,? +\d{{4}})?(?!\w)")),
    ("a date", _shape(rf"(?<!\w){_MONTHS},? +\d{{4}}(?!\w)")),
    ("a date", _shape(rf"(?<!\w){_DAYS}(?!\w)")),
    ("a time", _shape(rf"(?<![\w:]){_CLOCK}(?: ?[ap]\.?m\b\.?)?(?![\w:])")),
    ("an id", _shape(rf"(?<!\w){_ID_PREFIX}[-_](?=[\w-]*\d)[\w-]{{6,}}")),
    ("an id", _shape(r"(?<!\w)[0-7][0-9a-hjkmnp-tv-z]{25}(?!\w)")),
    ("an id", _shape(r"(?<!\w)(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,64}(?!\w)")),
    ("an id", _shape(r"\b(?:\w+[ _-])?id\b[\"'*`]*\s*[:=]\s*[\"'`]?(?P<value>(?=[\w-]*\d)[\w-]{4,})")),
    (
        "a working directory",
        _shape(rf"\b{_FOLDER}\b(?:[\"'*`]*\s*(?:[:=]|is)\s*|>)[\"'`]?(?P<value>{_PATH}.*)"),
    ),
    ("a temporary path", _shape(r"(?<![\w/])/(?:tmp|var/tmp|var/folders|private/var)/[^\s\"'<>]+")),
    ("a counter", _shape(rf"\b{_COUNTED}\b[\"'*`]*\s*(?:[:=#]|number|no\.)\s*#?[\"'`]?(?P<value>\d[\d,./]*)")),
    ("a counter", _shape(r"\b(?:turn|step|round|iteration|attempt)\s+(?P<value>\d+)(?=\s*(?:of|/)\s*\d)")),
    ("a counter", _shape(r"(?<![\w.])\d[\d,.]*(?=%?\s+(?:\w+\s+){0,2}(?:used|left|remaining|so far)\b)")),
)
"""What changes is the group ``value``, or else the whole match."""

_GIT_HEADING: Final = re.compile(r"git ?status|current branch|on branch|recent commits", re.I)
_GIT_LINE: Final = re.compile(
    r"\s*(?:[MADRCUT?!]{1,2} +\S.*|(?:current branch|main branch|on branch|head detached|your branch).*"
    r"|(?:modified|deleted|renamed|new file): .*|[0-9a-f]{7,40} \S.*|\(clean\)|nothing to commit.*|status:.*"
    r"|recent commits:.*)?",
    re.I,
)
_BLOCK: Final = re.compile(r"<(/?)[\w-]{0,30}(?:system|env|environment|context|reminder|info|status)[\w-]{0,30}>", re.I)
"""Tags with which programs put such text into the message of a user."""


def volatile_shape(old: str, new: str, place: int) -> str:
    """What stands at ``place``, the first difference of two texts, if both have such a thing there; else empty."""
    begin = max(old.rfind("\n", 0, place) + 1, place - _NEAR)
    was, now, at = _line(old, begin, place), _line(new, begin, place), place - begin
    for what, shape in _SHAPES:
        for start, value in _values(shape, was, at):
            if any(start == other and value != replaced for other, replaced in _values(shape, now, at)):
                return what
    return "a git status" if _git_status(old, was, now, begin) else ""


def in_header(text: str, place: int) -> bool:
    """Whether ``place`` lies in a block that a program has put into the message: between tags such as ``<env>``."""
    tags = [match[1] for match in _BLOCK.finditer(text, 0, place)]
    return bool(tags) and not tags[-1]


def _line(text: str, begin: int, place: int) -> str:
    end = text.find("\n", place)
    return text[begin : min(place + _NEAR, len(text) if end < 0 else end)]


def _values(shape: re.Pattern[str], line: str, at: int) -> list[tuple[int, str]]:
    """Where values of that shape begin that hold ``at``, or end there; and the values."""
    group = shape.groupindex.get("value", 0)
    matches = shape.finditer(line)
    return [(m.start(group), m[group]) for m in matches if m.start(group) <= at <= m.end(group)]


def _git_status(text: str, was: str, now: str, begin: int) -> bool:
    above = text[:begin].splitlines()[-_GIT_LINES:]
    headed = any(_GIT_HEADING.search(line) for line in (*above, was))
    return headed and was != now and bool(_GIT_LINE.fullmatch(was) and _GIT_LINE.fullmatch(now))
