"""What may be the name of something in a request."""

from __future__ import annotations

from modeld.errors import InvalidRequestError


def is_unicode(text: str) -> bool:
    """False for lone surrogates: no wire could carry them."""
    return not any(0xD800 <= ord(c) < 0xE000 for c in text)


def check_name(kind: str, value: str) -> None:
    """Do nothing where ``value`` can be a name.

    :raises InvalidRequestError: it is empty, too long, or holds what cannot be printed.
    """
    if not value or not is_unicode(value) or len(value) > 200 or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise InvalidRequestError(f"a {kind} is 1 to 200 printable characters, not {value[:40]!r}", parameter=kind)


def check_path(kind: str, value: str) -> None:
    """Do nothing where ``value`` can be a path, or is empty.

    :raises InvalidRequestError: it cannot.
    """
    if "\0" in value or not is_unicode(value):
        raise InvalidRequestError(f"{kind} is Unicode text without null characters", parameter="path")
