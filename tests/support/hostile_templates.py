"""Templates that mean harm, and a program that tries each in a process of its own with little memory.

``python hostile_templates.py`` prints one line of JSON for each: its name, the error, seconds of processor time until
it came (of making the template, or of rendering it), and the largest memory of the process so far.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from modeld.chat.sandbox import MAX_NODES, MAX_SOURCE
from modeld.chat.template import ChatTemplate
from modeld.errors import TemplateError
from modeld.types import Message

ROOM = 384 << 20
"""Bytes of address space that may come on top of what the process has before the first template."""

LOOP = "{% for i in range(100000) %}"
BIG = "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}"
DAG = "{% set ns = namespace(v=[1]) %}{% for i in range(60) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}"


def many(value: str) -> str:
    """Makes and keeps the value a thousand times."""
    body = "{% set ns.l = " + value + " %}"
    return "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}" + body + "{% endfor %}{{ missing.a }}"


def chain(value: str, use: str = "") -> str:
    """Makes it, with what was made before in it, without end; what follows uses it after the first 100,000 times."""
    body = "{% for i in range(100000) %}{% set ns.l = " + value + " %}{% endfor %}"
    return "{% set ns = namespace(l=()) %}" + (body + use if use else LOOP + body + "{% endfor %}")


def twins(use: str) -> str:
    """Uses two equal values that are told apart only by walking through all of them."""
    return DAG + DAG.replace("ns", "us") + use


HOSTILE: dict[str, str] = {
    "attribute walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute alone": "{{ ''.__class__ }}",
    "item walk": "{{ ''['__class__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "globals of cycler": "{{ cycler.__init__.__globals__ }}",
    "globals of raise_exception": "{{ raise_exception.__globals__ }}",
    "globals of self": "{{ self._TemplateReference__context.environment }}",
    "format walk": "{{ '{0.__class__}'.format('') }}",
    "format_map walk": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "change the messages": "{% set _ = messages.append(1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "the budget": "{{ ' budget' ~ missing.budget.spend() }}",
    "string times": "{{ 'a' * 10000000000 }}",
    "times string": "{{ 10000000000 * 'a' }}",
    "list times": "{{ [0] * 10000000000 }}",
    "list times after list": "{{ ([0] * 1000000) * 1000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "product of integers": "{% set ns = namespace(n=99) %}" + LOOP + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling by +": BIG + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by ~": BIG + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling lists": BIG.replace("'aaaaaaaaaaaaaaaa'", "[0]") + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": BIG + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "doubling by join method": BIG + "{% set ns.s = ns.s.join(['', ns.s, '']) %}{% endfor %}",
    "doubling by replace": BIG + "{% set ns.s = ns.s | replace('a', ns.s) %}{% endfor %}",
    "doubling by replace method": BIG + "{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "doubling by %": BIG + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling by format": BIG + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "doubling by the format filter": BIG + "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}",
    "doubling by a block": BIG + "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "doubling by a macro": "{% macro m(s) %}{{ s ~ s }}{% endmacro %}" + BIG + "{% set ns.s = m(ns.s) %}{% endfor %}",
    "width by %": "{{ '%10000000000d' % 1 }}",
    "width by % and *": "{{ '%*d' % (10000000000, 1) }}",
    "width by format": "{{ '{:>10000000000}'.format(1) }}",
    "width by a nested format": "{{ '{:{}}'.format(1, 10000000000) }}",
    "width by the format filter": "{{ '%10000000000d' | format(1) }}",
    "center filter": "{{ 'a' | center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "indent": "{{ 'a\nb' | indent(10000000000) }}",
    "tojson indent": "{{ [1] | tojson(indent=10000000000) }}",
    "batch": "{{ [1] | batch(10000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "round": "{{ 1 | round(1000000000, 'ceil') }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "gigantic range": "{% for i in range(10000000000) %}x{% endfor %}",
    "nested ranges": LOOP * 4 + "{% endfor %}" * 4,
    "nested ranges with output": LOOP + LOOP + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "nested ranges in a block": "{% set t %}" + LOOP + "{{ '" + "a" * 999 + "' }}{% endfor %}{% endset %}{{ t }}",
    "filters in ranges": LOOP + "{% set _ = range(100000) | map('string') | list %}{% endfor %}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "exponential macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loop recursion": "{% for i in [[]] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep value": "{% set ns = namespace(v=[]) %}" + LOOP + "{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v | tojson }}",
    "deep source": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "huge source": "a" * (MAX_SOURCE + 1),
    "huge constants": "{{ 'a' | center(100000) | replace(' ', '" + "a" * 1000 + "') }}" * 40,
    "raise_exception": "{{ raise_exception('no') }}",
    "undefined attribute": "{{ missing.attribute }}",
    "undefined call": "{{ missing() }}",
    "unknown filter": "{{ 1 | nothing }}",
    "syntax": "{% if %}",
    "unclosed": "{% for m in messages %}",
    "division by zero": "{{ 1 / 0 }}",
    "half a surrogate pair": "{{ '\ud800' }}",
    "json of a function": "{{ raise_exception | tojson }}",
    "billion laughs": DAG + "{{ ns.v }}",
    "billion laughs as text": DAG + "{{ ns.v | string }}",
    "billion laughs as json": DAG + "{{ ns.v | tojson }}",
    "billion laughs as json with indent": DAG + "{{ ns.v | tojson(indent=1) }}",
    "billion laughs compared": twins("{{ ns.v == us.v }}"),
    "billion laughs compared by a test": twins("{{ ns.v is eq(us.v) }}"),
    "billion laughs sought": twins("{{ ns.v in [us.v] }}"),
    "billion laughs counted": twins("{{ [ns.v].count(us.v) }}"),
    "billion laughs sorted": twins("{{ [ns.v, us.v] | sort }}"),
    "billion laughs sorted lazily": twins("{{ [ns.v, us.v] | map('default') | sort }}"),
    "billion laughs by a selection": twins("{{ [[ns.v]] | selectattr(0, 'eq', us.v) | list }}"),
    "billion laughs joined": DAG + "{{ [1] | map('default', ns.v) | join }}",
    "billion laughs by ~": DAG + "{{ 'a' ~ ns.v }}",
    "billion laughs by %": DAG + "{{ '%s' % ns.v }}",
    "billion laughs by % of a tuple": DAG + "{{ '%s' % (ns.v,) }}",
    "billion laughs by format": DAG + "{{ '{0}'.format(ns.v) }}",
    "billion laughs in a namespace": DAG + "{{ ns }}",
    "billion laughs in a view": DAG + "{{ {'a': ns.v}.values() }}",
    "billion laughs of dictionaries": DAG.replace("[ns.v, ns.v]", "{'a': ns.v, 'b': ns.v}") + "{{ ns.v }}",
    "billion laughs as a key": DAG.replace("[ns.v, ns.v]", "(ns.v, ns.v)") + "{{ {ns.v: 1} }}",
    "billion laughs as a subscript": DAG.replace("[ns.v, ns.v]", "(ns.v, ns.v)") + "{{ {}[ns.v] }}",
    "billion laughs in an error": DAG + "{{ raise_exception(ns.v) }}",
    "a deep tuple as a key": chain("(ns.l,)", "{{ {ns.l: 1} }}"),
    "a deep tuple compared": chain("(ns.l,)", "{{ ns.l is eq(1) }}"),
    "deep iterators": chain("ns.l | map('string')", "{{ ns.l | list }}"),
    "long chains of iterators": "{{ range(100000)" + " | select" * 4000 + " | list }}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.v = ns %}{{ ns }}",
    "a dictionary in itself": "{% set d = {} %}{{ dict.update(d, {'a': d}) }}",
    "the messages by dict": "{{ dict.update(messages[0], {'content': 'changed'}) }}",
    "a namespace with an underscore": "{% set ns = namespace(__html__=raise_exception) %}{{ ns | e }}",
    "a namespace set with an underscore": "{% set ns = namespace() %}{% set ns.__html__ = 1 %}{{ ns | e }}",
    "a thousand large strings": many("ns.l + ['x' * 4000000]"),
    "a thousand large wide strings": many("ns.l + ['\U0001f600' * 1000000]"),
    "a thousand large slices": "{% set big = 'x' * 4000000 %}" + many("[ns.l, big[1:]]"),
    "a thousand large lists": many("[ns.l, [0] * 50000]"),
    "a thousand large literals": many("[ns.l, [" + "0," * 7500 + "]]"),
    "many small literals": chain("[[ns.l, ns.l][0], [1, 2]]"),
    "many kept literals": chain("([1, 2, 3], ns.l)[0] + (ns.l | list)[:40000]"),
    "many blocks": "{% set big = 'x' * 4000000 %}" + many("[ns.l, big | upper]"),
    "many namespaces": chain("namespace(a=ns.l, b='x')"),
    "cycler with a large list": "{% set c = cycler(*([[0] * 50000] * 50000)) %}{{ c.next() }}{{ c.items }}",
    "cyclers without end": chain("cycler(ns.l, 1)"),
    "joiner without end": "{% set j = joiner('x' * 4000000) %}" + LOOP + "{{ j() }}{% endfor %}",
    "joiner of many": many("[ns.l, joiner('x' * 4000000)]"),
    "split into millions": "{{ ('ab,' * 1300000).split(',') }}",
    "list of characters": "{{ ('\U0001f600' * 4000000) | list }}",
    "rfind of a bad case": "{{ ('a' * 4000000).rfind('ab' ~ 'a' * 1000000) }}",
    "rsplit of a bad case": "{{ ('a' * 4000000).rsplit('ab' ~ 'a' * 1000000) }}",
    "strip of many characters": "{{ ('a' * 4000000).strip('b' * 1000000 ~ 'a') }}",
    "expandtabs of many": "{{ ('\t' * 4000000).expandtabs(100000) }}",
    "translate": "{{ ('a' * 4000000).translate({97: 'b' * 4000000}) }}",
    "encode": "{{ ('a' * 1000000).encode().replace('a'.encode(), ('b' * 1000000).encode()) }}",
    "safe text": "{{ (('a' * 1000000) | safe).replace('a', 'b' * 1000000) }}",
    "escaped text": "{{ (('a' * 1000000) | e).join(['x'] * 50000) }}",
    "autoescape": "{% autoescape true %}{{ 'a' }}{% endautoescape %}",
    "indent of many lines": "{{ ('\n' * 2000000) | indent(100000, blank=true) }}",
    "indent of other line ends": "{{ ('\r' * 2000000) | indent(100000, blank=true) }}",
    "center of many": "{{ ['a'] * 50000 | map('center', 100000) | list }}",
    "center of each": "{{ range(50000) | map('string') | map('center', 100000) | list }}",
    "tojson with a separator": "{{ [0] * 50000 | tojson(separators=(',' * 100000, ':')) }}",
    "tojson with a separator in brackets": "{{ ([0] * 50000) | tojson(separators=(',' * 100000, ':')) }}",
    "tojson with deep indentation": "{{ ([[0] * 100] * 500) | tojson(indent='x' * 100000) }}",
    "sum of lists": "{{ ([[0] * 100] * 10000) | sum(start=[]) }}",
    "huge hexadecimal": "{% set n = ('f' * 4000000) | int(base=16) %}{{ n // 3 }}",
    "division of huge integers": "{% set n = 10 ** 20000 %}" + LOOP + "{% set m = (n * n * n) // n %}{% endfor %}",
    "digits of a huge integer": "{{ 10 ** 20000 }}",
    "striptags": "{{ ('<!---->' * 500000) | striptags }}",
    "urlize": "{{ ('http://a.b/' * 300000) | urlize }}",
    "wordwrap": "{{ ('a' * 4000000) | wordwrap(1) }}",
    "pprint": "{{ ([[0] * 100] * 500) | pprint }}",
    "xmlattr": "{{ {'a b': 1} | xmlattr }}",
    "random": "{{ [1, 2] | random }}",
    "dates": "{{ strftime_now('%c' * 1000000) }}",
    "format_map of a large value": "{% set big = 'x' * 4000000 %}{{ ('{a}' * 2000).format_map({'a': big}) }}",
    "format by name": "{% set big = 'x' * 4000000 %}{{ '%(a)s%(a)s' % {'a': big} }}",
    "format with attributes": "{{ '{0.__init__.__globals__}'.format(cycler) }}",
    "format with items": "{{ '{0[__class__]}'.format({}) }}",
    "format mapping by filter": "{{ '%(a)s' | format(a=''.__class__) }}",
    "null character": "a\0b",
    "compares without end": LOOP * 3 + "{% if i == 'a' %}{% endif %}{% endfor %}" * 3,
    "loops without bodies": LOOP * 3 + "{% endfor %}" * 3,
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "mutual macros": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "macro calls itself by caller": "{% macro a() %}{% call a() %}{{ caller() }}{% endcall %}{% endmacro %}{{ a() }}",
    "extends": "{% extends 'base' %}",
    "from import": "{% from 'os' import system %}",
    "undefined in arithmetic": "{{ missing + 1 }}",
    "undefined as a filter's argument": "{{ 'a' | replace(missing.a, 'b') }}",
    "undefined walk": "{{ missing.__class__.__mro__ }}",
    "generator internals": "{{ (messages | map('upper')).gi_frame.f_globals }}",
    "method internals": "{{ messages[0].get.__self__ }}",
    "macro internals": "{% macro a() %}{% endmacro %}{{ a._func.__globals__ }}",
    "loop internals": "{% for m in messages %}{{ loop._iterable.__class__ }}{% endfor %}",
    "many outputs": "{{a}}" * (MAX_SOURCE // 5 + 1),
    "many concatenations": "{{" + "a~" * (MAX_SOURCE // 2 - 10) + "a}}{{ missing.a }}",
    "many comparisons": "{{" + "a==a," * (MAX_SOURCE // 5 - 10) + "1}}{{ missing.a }}",
    "many calls": "{{a()}}" * (MAX_SOURCE // 7),
    "as many concatenations as are taken": "{{" + "a~" * (MAX_NODES - 100) + "a}}{{ missing.a }}",
    "as many comparisons as are taken": "{{" + "a==a," * (MAX_NODES // 5 - 20) + "1}}{{ missing.a }}",
    "as many calls as are taken": "{{a()}}" * (MAX_NODES // 2 - 50),
    "many filters": "{{ 1" + "|e" * (MAX_SOURCE // 2 - 10) + "}}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep loops": "{% for i in [1] %}" * 500 + "{% endfor %}" * 500,
    "deep macros": "{% macro a() %}" * 300 + "{% endmacro %}" * 300 + "{{ missing.a }}",
    "unfinished string": "{{ 'a }}",
    "unknown tag": "{% debug %}",
    "two words in a tag": "{% set a b = 1 %}",
}  # fmt: skip


def attempt(source: str) -> tuple[str, str, float]:
    """The kind and text of the error, and its seconds; empty where there was none."""
    begin = time.thread_time()
    try:
        template = ChatTemplate(source)
        begin = time.thread_time()
        template.render([Message("user", "Hello")], add_generation_prompt=True)
    except TemplateError as error:
        return error.details["kind"], str(error), time.thread_time() - begin
    return "", "", time.thread_time() - begin


def main() -> None:
    """Try all, or those that are named."""
    attempt("{{ messages }}{{ missing.a }}")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    for name in sys.argv[1:] or HOSTILE:
        print(json.dumps({"begin": name}), flush=True)
        kind, text, seconds = attempt(HOSTILE[name])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"name": name, "kind": kind, "text": text, "seconds": seconds, "peak": peak}), flush=True)


if __name__ == "__main__":
    main()
