"""The fake's runes and template: one rune is one token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

START, END = "\ue000", "\ue001"
TEMPLATE = (
    """
{%- if tools -%}{{ 'START' + 'tools ' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ 'END' }}{%- endif -%}
{%- for m in messages -%}{{ 'START' + m.role + ' ' + m.content }}
{%- for c in m.tool_calls or [] -%}
{{ '<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' + c.function.arguments + '}\\n</tool_call>' }}
{%- endfor -%}{{ 'END' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'START' + 'assistant ' }}
{%- if enable_thinking is defined and enable_thinking -%}{{ '<think>\\n' }}{%- endif -%}{%- endif -%}
""".replace("START", START)
    .replace("END", END)
    .strip()
)
"""Runes of the private use area stand where a real model has control tokens. History carries no thinking."""


WORDS = 0x180
"""Of all runes, those before this one are what an answer in a format is made of."""


class FakeLexicon:
    """Runes as tokens."""

    template_source = TEMPLATE
    named_templates: Mapping[str, str] = {}
    bos = ""
    eos = END
    add_bos = False
    tokenizer_digest = hashlib.sha256(b"one rune is one token").hexdigest()
    vocabulary = 0x110000
    shares = True
    longest = 4

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        """Runes as numbers."""
        return [ord(rune) for rune in text.decode("utf-8", "replace")]

    def piece(self, token: int) -> bytes:
        """The rune in UTF-8."""
        return chr(token).encode("utf-8", "replace")

    def is_end(self, token: int) -> bool:
        """Whether the rune ends a message."""
        return token == ord(END)

    def is_special(self, token: int) -> bool:
        """Whether the rune stands where a real model has a control token."""
        return token in (ord(START), ord(END))

    def words(self) -> list[bytes]:
        """See :meth:`modeld.engine.backend.Vocabulary.words`: Latin letters, and the rune that ends a message."""
        words = [self.piece(rune) if 0 < rune < WORDS else b"" for rune in range(ord(END) + 1)]
        words[ord(END)] = b"\xff" + self.piece(ord(END))
        return words

    def close(self) -> None:
        """Nothing to free."""
