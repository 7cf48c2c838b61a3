"""Which session answers a request that may know nothing of sessions.

* ``X-Modeld-Session``, or else ``metadata.session_id``, names one exactly: calls on it wait for each other, and
  ``modeld ps`` and clients of gRPC find it by this name.
* Without a name the conversation is found by its content: see :class:`modeld.session.conversations.Tapes`. A
  ``prompt_cache_key`` tells conversations with the same beginning apart, and binds nothing: a title that is asked for
  under the key of its conversation gets a session of its own, and waits for nobody.
* ``user`` (or ``safety_identifier``) is a person, who may have many conversations at once: it is the workspace of the
  sessions and takes turns with other users, and never one session.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from modeld.session.conversations import SESSION_TTL
from modeld.session.values import SessionConfig

SESSION_HEADER: Final = "x-modeld-session"
CHOSEN_WORKSPACE: Final = "http"
"""Of conversations that were found by content, without a user."""
NAMED_WORKSPACE: Final = "default"
"""Of sessions that were named, without a user: where other clients of the node look too."""


class Naming(Struct, frozen=True):
    """What a request says of its session. All empty: nothing.

    :param name: of exactly one session. :param key: tells conversations apart. :param user: whose they are.
    """

    name: str = ""
    key: str = ""
    user: str = ""

    def check(self) -> None:
        """:raises InvalidRequestError: one of them is no name."""
        if self.named() is None:
            self.chosen("any")

    def named(self) -> SessionConfig | None:
        """The session that was named. :raises InvalidRequestError: it is no name."""
        if not self.name:
            return None
        return SessionConfig(workspace=self.user or NAMED_WORKSPACE, name=self.name)

    def chosen(self, name: str) -> SessionConfig:
        """The session ``name`` that was found by content. :raises InvalidRequestError: the user is no name."""
        return SessionConfig(workspace=self.user or CHOSEN_WORKSPACE, name=name, ttl=SESSION_TTL)


def naming_of(headers: Mapping[str, str], *, session_id: str = "", key: str = "", user: str = "") -> Naming:
    """:param session_id: that the body names, where no header does."""
    return Naming(name=headers.get(SESSION_HEADER, "") or session_id, key=key, user=user)
