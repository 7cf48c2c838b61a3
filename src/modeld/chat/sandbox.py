"""The environment that chat templates run in: Jinja's immutable sandbox, with a budget.

It is that of ``transformers.utils.chat_template_utils``: trimmed blocks, loop controls, ``tojson`` without HTML
escapes, ``raise_exception``, ``strftime_now`` and the ``generation`` tag. Left out is what no chat template needs and
what cannot be bounded: see :data:`modeld.chat.filters.LEFT_OUT`, ``{% autoescape %}``, and bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from modeld.chat.budget import BUDGET, Deadline, check_bits, check_integers
from modeld.chat.filters import LEFT_OUT, LISTS, OWN, check_format, join, replace, text_of

MAX_SOURCE: Final = 48 << 10
"""Characters of a template's source at most. Those of well-known models have 0.2 to 17 thousand."""
MAX_NODES: Final = 8000
"""Nodes of a template's syntax tree at most. Those of well-known models have 0.06 to 0.11 for each character, so about
2,000. Python compiles what Jinja makes of them in one step that nothing can stop: 0.12 s for as many as are taken,
0.36 s for what fits into the longest source."""
MAX_PATTERN: Final = 200
"""Characters that ``strftime_now`` takes at most."""

_BYTES: Final = frozenset({"encode", "to_bytes", "from_bytes", "translate", "maketrans"})
_SLOW: Final = frozenset({"strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"})
"""Methods of strings whose time is the product of both lengths: 20 minutes for two of a million characters."""


def compile_template(source: str, clock: Callable[[], datetime], limit: Deadline) -> jinja2.Template:
    """A template. To render it, :data:`BUDGET` must be set.

    :param clock: what ``strftime_now`` tells. :param limit: when compiling must be done.

    :raises SecurityError: the source is too long, has too many nodes, holds a null character, or takes too much time.
    :raises jinja2.TemplateError: it is no template.
    """
    if len(source) > MAX_SOURCE:
        raise SecurityError(f"its source has {len(source)} characters, at most {MAX_SOURCE} are taken")
    if "\0" in source:
        raise SecurityError("its source holds a null character, where the text ends for a native library")
    return _Environment(clock, limit).from_string(source)


class _GenerationTag(Extension):
    """``{% generation %}`` marks an answer for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounds(NodeTransformer):
    """Leads what Jinja compiles to plain Python through filters that look at the budget. No template can name them."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._nodes = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self._deadline.spend()
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise SecurityError(f"its source has more than {MAX_NODES} names, constants, operators and tags")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through(" each", node.iter)  # type: ignore[arg-type]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through(" concat", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        # What is compared with a constant is not walked into, and a list of constants is not kept.
        holders: list[Any] = [node, *node.ops]
        if sum(_is_constant(holder.expr) for holder in holders) < len(holders) - 1:
            for holder in holders:
                holder.expr = _through(" plain", holder.expr)
        for holder in holders:
            if not _is_constant(holder.expr):
                holder.expr = self.visit(holder.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through(" made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        for pair in node.items:
            if not isinstance(pair.key, nodes.Const):
                pair.key = _through(" plain", pair.key)
        return self._literal(node)

    def _literal(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _through(" made", node)

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise SecurityError("it switches autoescape, which chat templates have no use for")


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, nodes.List | nodes.Tuple):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


def _through(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Namespace(Namespace):
    """Without names that begin with ``_``: Python itself would call what a template puts there."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace holds no {str(name)[:40]!r}")


class _Dict:
    """``dict`` without its unbound methods, which would change what the caller gave."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


class _Generator(CodeGenerator):
    environment: _Environment

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.environment.compiling.spend()
        return super().visit(node, *args, **kwargs)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self, clock: Callable[[], datetime], limit: Deadline) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, LoopControlExtension],
            finalize=pass_context(lambda _, value: text_of(value)),
        )
        self.compiling = limit
        filters: dict[str, Any] = {**self.filters, **OWN}
        self.filters = {
            name: _guarded(function, lists=name in LISTS) for name, function in filters.items() if name not in LEFT_OUT
        }
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _guarded(function) for name, function in tests.items()}
        self.globals.update(
            dict=_Dict(),
            namespace=_Namespace,
            raise_exception=_raise_exception,
            strftime_now=lambda pattern: _now(clock, pattern),
        )
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds(self.compiling).visit(super()._parse(source, name, filename))
        return tree

    @staticmethod
    def concat(pieces: Any) -> str:
        """The text of a block."""
        return join(pieces)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _BYTES and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is not safe")

    def getitem(self, obj: Any, argument: Any) -> Any:
        BUDGET.get().weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, "{", (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = BUDGET.get()
        budget.spend()
        _check_operands(operator, left, right)
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.spend()
        budget.weigh((*args, *kwargs.values()))  # together: one list can be given as thousands of arguments
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            result = _call_of_text(owner, __obj, args, kwargs)
            if result is not None:
                return result
        elif isinstance(owner, list | tuple):
            budget.weigh(owner)  # index() and count() compare
        return budget.made(super().call(__context, __obj, *args, **kwargs))


def _guarded(function: Callable[..., Any], *, lists: bool = False) -> Callable[..., Any]:
    """The filter or test, with a look at the clock and at its arguments, and with what it gives charged for.

    There is no budget while Jinja compiles: so it runs none of them on constants.

    :param lists: it makes a list of what it is given.
    """
    wanted = getattr(function, "jinja_pass_arg", None)
    first = 0 if wanted is None else 1

    def checked(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.spend()
        budget.weigh((*args[first:], *kwargs.values()))
        if lists and isinstance(args[first], str):
            budget.count(len(args[first]))  # each character becomes a string of its own
        check_integers([*args[first + 1 :], *kwargs.values()])  # the value itself may be any number
        return budget.made(function(*args, **kwargs))

    if wanted is not None:
        checked.jinja_pass_arg = wanted  # type: ignore[attr-defined]
    return checked


def _call_of_text(text: str, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Check a call of a string's method; the result where it is made here."""
    name = getattr(method, "__name__", "")
    check_integers([*args, *kwargs.values()])
    if name == "replace":
        return replace(text, *args, **kwargs)
    if name == "join" and len(args) == 1:
        return join(args[0], text)
    if name == "expandtabs":
        BUDGET.get().size(len(text) + text.count("\t") * int([*args, *kwargs.values(), 8][0]))
    if name in _SLOW and args and isinstance(args[0], str):
        BUDGET.get().size(len(text) * len(args[0]) // 16)
    return None


def _check_operands(operator: str, left: Any, right: Any) -> None:
    budget = BUDGET.get()
    check_bits(left, right)
    if isinstance(left, int) and isinstance(right, int):
        if operator == "*":
            check_integers([left.bit_length() + right.bit_length()])
        elif operator == "**":
            check_integers([right, left.bit_length() * right])
    elif operator == "%" and isinstance(left, str):
        check_format(left, "%", right if isinstance(right, tuple) else (right,))
    elif operator == "+" and isinstance(left, str) and isinstance(right, str):
        budget.size(len(left) + len(right))
    elif operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        budget.count(len(left) + len(right))
    elif operator == "*":
        value, times = (left, right) if isinstance(right, int) else (right, left)
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            (budget.size if isinstance(value, str) else budget.count)(len(value) * times)


def _now(clock: Callable[[], datetime], pattern: object) -> str:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise SecurityError(f"strftime_now takes a pattern of at most {MAX_PATTERN} characters")
    return clock().strftime(pattern)
