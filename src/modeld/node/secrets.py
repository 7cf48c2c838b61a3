"""References to secrets: what is written down of a backend's key, and how the key is found.

``env:NAME`` is a variable of the environment; ``file:PATH`` a file of mode 0600 that belongs to the user, a relative
path is one of the data root; ``keyring:SERVICE/USER`` an entry of the system's keyring (extra ``keyring``); ``""`` no
secret at all. A reference may be shown; what it stands for is in no error, no log and no ``repr``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from modeld.errors import AuthenticationError, InvalidRequestError, ModeldError
from modeld.node.private_file import MAX_BYTES, read_private
from modeld.repository.connections import require

FOLDER: Final = "secrets"
"""Under the data root: secrets that were typed or piped in, one file for each backend."""

_REFERENCE: Final = re.compile(
    r"env:[A-Za-z_][A-Za-z0-9_]{0,199}|file:[^\0\n\ud800-\udfff]{1,1000}|keyring:[^\0\n/][^\0\n]*/[^\0\n/]+"
)
_FORMS: Final = "env:NAME, file:PATH or keyring:SERVICE/USER"


def check_reference(text: str) -> str:
    """``text`` as a reference.

    :raises InvalidRequestError: it is none. The message does not hold it: it may be the key itself.
    """
    if text and not _REFERENCE.fullmatch(text):
        raise InvalidRequestError(
            f"a key is given by reference: {_FORMS}; these {len(text)} characters are none", parameter="key"
        )
    return text


def check_secret(text: str) -> str:
    """``text`` as a secret, without the white space around it: one word, or the JSON text of a service account.

    :raises InvalidRequestError: it is empty, too long, or neither. The message does not hold it.
    """
    secret = text.strip()
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:
        size = 0
    # HTTP clients quote a header that cannot be sent: a key that breaks one would be seen in their errors.
    if not 0 < size <= MAX_BYTES or not ((secret.isprintable() and " " not in secret) or secret.startswith("{")):
        raise InvalidRequestError(
            f"a secret is one word or a JSON object, of 1 to {MAX_BYTES} bytes", parameter="secret"
        )
    return secret


def stored_reference(name: str) -> str:
    """The reference of the secret that is stored for the backend of that name."""
    return f"file:{FOLDER}/{name}"


def stored_path(data_root: Path, name: str) -> Path:
    """Where that secret lies."""
    return data_root / FOLDER / name


def resolve(reference: str, data_root: Path) -> str:
    """The secret that ``reference`` stands for; ``""`` for none. It may block: files, and a keyring that asks its user.

    :raises AuthenticationError: there is nothing, or it is no secret.
    :raises NodeError: the file is another user's or open to others.
    :raises MissingDependencyError: a keyring is meant and its extra is not installed.
    """
    kind, _, rest = check_reference(reference).partition(":")
    match kind:
        case "env":
            found = os.environ.get(rest)
        case "file":
            try:
                path = data_root / Path(rest).expanduser()
            except RuntimeError:
                raise _missing(reference, "there is no such user") from None
            data = read_private(path)
            found = None if data is None else data.decode("utf-8", "surrogateescape")
        case "keyring":
            found = _from_keyring(reference, *rest.rsplit("/", 1))
        case _:
            return ""
    if found is None:
        where = f"the environment of this process ({os.getpid()}) has no {rest}" if kind == "env" else "it is not there"
        raise _missing(reference, where)
    try:
        return check_secret(found)
    except InvalidRequestError as error:
        raise _missing(reference, error.message) from None


def _from_keyring(reference: str, service: str, user: str) -> str | None:
    keyring = require("keyring", "keyring")
    try:
        found = keyring.get_password(service, user)
    except Exception as error:
        # Backends of keyring raise what they like. Their words are not repeated: nobody knows what they quote.
        raise _missing(reference, f"the keyring failed with {type(error).__name__}") from None
    return found if found is None else str(found)


def _missing(reference: str, reason: str) -> ModeldError:
    return AuthenticationError(f"there is no key at {reference}: {reason}", reference=reference)
