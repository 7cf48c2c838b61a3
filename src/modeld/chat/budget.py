"""What one render of a chat template may use: processor time, sizes, depth and memory.

A template comes with a downloaded file. Python gives no way to stop a long step in C, so every value is weighed before
such a step: writing it, comparing it, sorting it, hashing it.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final, Self, TypeVar

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

RENDER_SECONDS: Final = 0.6
"""Processor time of one render, and of compiling and all probes together; 1 s for each million characters that the
caller gave comes on top. A thousand messages take 0.03 s, in a template that looks ahead from each of them 0.3 s."""
MAX_TEXT: Final = 4 << 20
"""Characters of a prompt, and of any string on the way; four times what the caller gave come on top."""
MAX_ITEMS: Final = 50_000
"""Items of a list that a template makes; as many as the caller gave characters come on top."""
MAX_BYTES: Final = 128 << 20
"""Bytes of all values that a template makes, freed ones included; 512 for each character of the caller come on top."""
MAX_DEPTH: Final = 100
"""Levels of lists in lists that a template makes. CPython's hash of a tuple has no bound of its own and overflows."""
MAX_INTEGER: Final = 100_000
"""Largest integer that a filter or a method takes (a width, a count, a precision); bits of any integer."""
NODE: Final = 64
"""What an item weighs beside its characters."""

BUDGET: Final[ContextVar[Budget]] = ContextVar("budget")
"""Of the render that runs. While a template is compiled there is none, so nothing bounded is folded into a constant."""

T = TypeVar("T")


class Deadline:
    """An end in processor time of this thread, so that a busy machine fails no template.

    As a context manager it does not count full collections of garbage, which look at all that the process holds, of
    sessions and files too: 0.2 s were seen in tests, where a template takes 0.001. What it makes bounds their number.
    """

    def __init__(self) -> None:
        self._seconds = RENDER_SECONDS
        self._end = time.thread_time() + RENDER_SECONDS
        self._thread = threading.get_ident()
        self._collection = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._collects)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._collects)

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2 or threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collection = time.thread_time()
        elif self._end:
            self._end += time.thread_time() - self._collection

    def extend(self, seconds: float) -> None:
        """There is more to do. A bound that was broken stays so."""
        if self._end:
            self._seconds += seconds
            self._end += seconds

    def spent(self) -> bool:
        """The time is over, or another bound was broken."""
        return time.thread_time() > self._end

    def end(self) -> None:
        """A bound was broken: whoever tries several renders within this time need not try another."""
        self._end = 0.0

    def spend(self) -> None:
        """Look at the clock.

        :raises SecurityError: the time is over.
        """
        if self.spent():
            raise SecurityError(f"it took more than {self._seconds:.1f} s of processor time")


class Budget:
    """Of one render. What the caller gave may be as large as it is; what the template makes of it may not.

    :param inputs: the variables of the render. They must stay as they are, and alive, as long as the budget is used.
    """

    def __init__(self, inputs: object, deadline: Deadline) -> None:
        self._known: dict[int, int] = {}
        size = self._learn(inputs)
        deadline.extend(size / 1e6)
        self._deadline = deadline
        self.spend = deadline.spend
        self.text = MAX_TEXT + 4 * size
        self.items = MAX_ITEMS + size
        self._bytes = MAX_BYTES + 512 * size

    def _learn(self, value: object) -> int:
        if isinstance(value, str):
            return NODE + len(value)
        children = _children(value)
        if children is None:
            return NODE
        weight = self._known[id(value)] = NODE + sum(map(self._learn, children))
        return weight

    def weigh(self, value: object) -> int:
        """Characters of the value written out, and 64 for each item, each as often as it is met.

        :raises SecurityError: too many, or too deep.
        """
        if isinstance(value, str):
            return len(value)
        weight = 0
        stack = [(value, 0)]
        while stack:
            item, depth = stack.pop()
            if (known := self._known.get(id(item))) is not None:
                weight += known
            elif isinstance(item, str):
                weight += NODE + len(item)
            elif isinstance(item, int):
                weight += NODE + item.bit_length() // 3
            elif (children := _children(item)) is not None:
                if depth == MAX_DEPTH:
                    raise self._refusal(f"it nests values more than {MAX_DEPTH} levels deep")
                self.size(weight + NODE * len(children))
                stack.extend((child, depth + 1) for child in children)
            else:
                weight += NODE
            self.size(weight)
        return weight

    def size(self, size: int) -> None:
        """Check the length of a string that is about to be made.

        :raises SecurityError: too long.
        """
        if size > self.text:
            raise self._refusal(f"it made {size} characters or items, at most {self.text} are allowed")

    def count(self, items: int) -> None:
        """Check the length of a list that is about to be made.

        :raises SecurityError: too long.
        """
        if items > self.items:
            raise self._refusal(f"it made a list of {items} items, at most {self.items} are allowed")

    def made(self, value: T) -> T:
        """Charge for a value that the template made. Gives it back, an iterator as one that looks at each item.

        :raises SecurityError: too large, or too much in all.
        """
        if isinstance(value, str):
            self.size(len(value))
        elif isinstance(value, list | tuple | dict):
            self.count(len(value))
        elif isinstance(value, int):
            check_bits(value)
        elif isinstance(value, Iterator) and not isinstance(value, Lazy):
            return Lazy(value, self)  # type: ignore[return-value]
        self.charge(sys.getsizeof(value, 0) + 4 * NODE)
        return value

    def charge(self, size: int) -> None:
        """Count bytes.

        :raises SecurityError: too many in all.
        """
        self._bytes -= size
        if self._bytes < 0:
            raise self._refusal("it made too many values: their bytes in all are above what a render may use")

    def _refusal(self, why: str) -> SecurityError:
        self._deadline.end()
        return SecurityError(why)


class Lazy:
    """An iterator that a filter gave: each item is weighed, as who takes it (``sort``, ``join``) cannot be stopped."""

    __slots__ = ("_budget", "_items")

    def __init__(self, items: Iterator[object], budget: Budget) -> None:
        self._items = items
        self._budget = budget

    def __iter__(self) -> Lazy:
        return self

    def __next__(self) -> object:
        self._budget.spend()
        item = next(self._items)
        self._budget.weigh(item)
        return item


def check_bits(*values: object) -> None:
    """Refuse integers so long that arithmetic with them is slow.

    :raises SecurityError: one is.
    """
    for value in values:
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER:
            raise SecurityError(f"an integer has more than {MAX_INTEGER} bits")


def check_integers(values: Iterable[object]) -> None:
    """Refuse huge widths, counts and precisions.

    :raises SecurityError: one is above :data:`MAX_INTEGER`.
    """
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise SecurityError(f"an argument is above {MAX_INTEGER}")


def _children(value: object) -> list[object] | tuple[object, ...] | None:
    """What writing, comparing or hashing the value walks into; ``None``: nothing."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, dict | MappingProxyType):
        return [*value.keys(), *value.values()]
    if isinstance(value, ItemsView | KeysView | ValuesView):
        return list(value)
    return None
