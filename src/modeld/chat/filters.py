"""Filters and string methods of chat templates whose result can be far larger than what goes in, with bounds.

All of them need the budget of a render that runs (:data:`modeld.chat.budget.BUDGET`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from jinja2 import Environment, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.filters import do_indent, sync_do_sum
from markupsafe import escape

from modeld.chat.budget import BUDGET

LEFT_OUT: Final = frozenset({"pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"})
"""Filters of Jinja that no chat template needs. ``striptags`` takes hours for a megabyte, ``random`` reuses nothing."""
LISTS: Final = frozenset({"list", "slice", "sort"})
"""Filters of Jinja that make a list of what they are given, at once."""
MAX_SEPARATOR: Final = 64
"""Characters that ``tojson`` takes as indentation or separator."""
MAX_WIDTH: Final = 1000

_COMPUTED_WIDTH: Final = re.compile(r"\d{4}|\*|\{[^}]*\{")


def text_of(value: object) -> str:
    """The value written out, as ``{{ value }}`` does."""
    if isinstance(value, str):
        return value
    budget = BUDGET.get()
    budget.weigh(value)
    return budget.made(str(value))


def join(pieces: Iterable[Any], separator: str = "") -> str:
    """``separator.join(pieces)`` of anything that can be written."""
    budget = BUDGET.get()
    texts: list[str] = []
    size = 0
    for piece in pieces:
        text = text_of(piece)
        size += len(text) + len(separator)
        budget.size(size)
        texts.append(text)
        budget.count(len(texts))
    return budget.made(str(separator).join(texts))


def replace(text: object, old: str, new: str, count: int | None = None) -> str:
    """``str.replace``."""
    text, times = text_of(text), -1 if count is None else count
    found = text.count(old)
    budget = BUDGET.get()
    budget.size(len(text) + (found if times < 0 else min(found, times)) * len(new))
    return budget.made(text.replace(old, new, times))


def check_format(pattern: str, mark: str, values: Iterable[object]) -> None:
    """Refuse what would write more than a string may hold.

    :param mark: what begins a field. :param values: of the fields.
    """
    if _COMPUTED_WIDTH.search(pattern):
        raise SecurityError("a format string must not hold a width above 999 or one that is computed")
    budget = BUDGET.get()
    longest = max((budget.weigh(value) for value in values), default=0)
    budget.size(len(pattern) + pattern.count(mark) * (longest + MAX_WIDTH))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    for part in (indent, *(separators or ())):
        if (part if isinstance(part, int) else len(part or "")) > MAX_SEPARATOR:
            raise SecurityError(f"tojson takes indentation and separators of at most {MAX_SEPARATOR} characters")
    if indent is None:
        return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)
    # With indentation the encoder is Python, and each level multiplies: so piece by piece.
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return join(_looking(encoder.iterencode(value)))


def _looking(pieces: Iterator[str]) -> Iterator[str]:
    budget = BUDGET.get()
    for piece in pieces:
        budget.spend()
        yield piece


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        raise SecurityError("join takes no attribute here; use map(attribute=...) before it")
    return join(value, d)


def _format(value: str, *args: Any, **kwargs: Any) -> str:
    check_format(value, "%", (*args, *kwargs.values()))
    return value % (kwargs or args)


def _indent(s: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = text_of(s)
    size = width if isinstance(width, int) else len(width)
    BUDGET.get().size(len(text) + (len(text.splitlines()) + 1) * size)
    return do_indent(text, width, first, blank)


@pass_environment
def _sum(environment: Environment, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
    if not isinstance(start, int | float):
        raise SecurityError("sum adds numbers only")  # of lists it would copy what it has for each
    return sync_do_sum(environment, iterable, attribute, start)


def _escape(value: object) -> str:
    # No Markup: its methods are Python's own, not those of a string that are looked at.
    return str(escape(text_of(value)))


def _same(value: Any) -> Any:
    return value


OWN: Final[dict[str, Callable[..., Any]]] = {
    **{"tojson": _tojson, "join": _join, "replace": replace, "format": _format, "indent": _indent, "sum": _sum},
    **{"escape": _escape, "e": _escape, "forceescape": _escape, "safe": text_of, "string": text_of},
    **{" each": iter, " concat": join, " plain": _same, " made": _same},
}
"""What stands in the place of Jinja's own; the last four no template can name."""
