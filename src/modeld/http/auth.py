"""Who may come in: the token, the Host and the Origin of a request. Everything is refused that is not allowed here.

The token is the node's, as over TCP (:mod:`modeld.transport.security`). It is taken from headers only: addresses land
in logs and histories. A page in a browser has neither the token nor an allowed origin; a name that was bound anew to
this machine's address (DNS rebinding) is no allowed host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from modeld.errors import NodeError
from modeld.http.bodies import query_pairs
from modeld.http.errors import Refusal
from modeld.transport.security import check_authorization, is_loopback

Raw = Sequence[tuple[bytes, bytes]]
"""Headers as they came, their names in small letters."""

ORIGIN_HINT: Final = "`modeld serve --http-origin ORIGIN` lets the pages of one in"
"""What a refused page's owner can do."""

_SECRET_NAMES: Final = frozenset({"token", "access_token", "api_key", "api-key", "apikey", "key", "x-api-key", "auth"})


class Gate(Struct, frozen=True):
    """What is let in.

    :param hosts: names that ``Host`` may have, with any port: a port may be forwarded, and nothing rebinds a name of
        loopback. :param addresses: any address in place of a name is one too: nothing can rebind an address.
    :param scheme: of the node's own pages. :param origins: of others' pages that may call.
    Not in ``repr``: the token.
    """

    token: str
    hosts: frozenset[str]
    addresses: bool
    scheme: str
    origins: frozenset[str]

    def __repr__(self) -> str:
        return f"Gate(hosts={sorted(self.hosts)!r}, origins={sorted(self.origins)!r})"

    def check_host(self, headers: Raw) -> None:
        """:raises Refusal: the request is meant for somebody else, or for nobody."""
        values = values_of(headers, b"host")
        if len(values) == 1:
            name = _name(values[0].decode("latin-1").lower())
            if name in self.hosts or (self.addresses and _is_address(name)):
                return
        text = "this node does not answer to that Host: ask the address that `modeld status` shows"
        if not self.addresses:
            text += ", or let it serve other machines: `modeld serve --http HOST:PORT`"
        raise Refusal(403, "forbidden_host", text)

    def check_origin(self, headers: Raw) -> str:
        """The origin that the answer allows to read it, ``""`` for none.

        :raises Refusal: a page of somebody else's asks.
        """
        values = values_of(headers, b"origin")
        if not values:
            return ""
        origin = values[0].decode("latin-1").lower()
        # The Host is ours by now, so a page that was loaded from it is too.
        if len(values) == 1 and origin.encode("latin-1") in {
            self.scheme.encode() + b"://" + host.lower() for host in values_of(headers, b"host")
        }:
            return ""
        if len(values) == 1 and origin in self.origins:
            return origin
        raise Refusal(403, "forbidden_origin", f"pages of this origin may not call the node; {ORIGIN_HINT}")

    def check_token(self, headers: Raw) -> None:
        """As ``authorization: Bearer`` or, as Anthropic's clients send it, ``x-api-key``.

        :raises Refusal: it is missing or another one.
        """
        given: list[bytes] = values_of(headers, b"authorization")
        given += [b"Bearer " + value for value in values_of(headers, b"x-api-key")]
        try:
            for value in given or [b""]:
                check_authorization([value], self.token)
        except NodeError as error:
            text = error.message.replace("over TCP this node", "this node")
            raise Refusal(401, error.code, text, headers=(("www-authenticate", "Bearer"),)) from None


def make_gate(host: str, token: str, *, tls: bool, origins: Iterable[str], names: Iterable[str]) -> Gate:
    """The gate of a server at ``host``. :param names: that the machine is called by beyond loopback."""
    own = {"localhost", "127.0.0.1", "[::1]", f"[{host}]" if ":" in host else host.lower()}
    if not is_loopback(host):
        own |= {name.lower() for name in names}
    return Gate(
        token=token,
        hosts=frozenset(own),
        addresses=not is_loopback(host),
        scheme="https" if tls else "http",
        origins=frozenset(origin.lower().rstrip("/") for origin in origins),
    )


def check_url(query: bytes) -> None:
    """:raises Refusal: a secret is in the address, or more fields than anybody needs."""
    names = {name.lower() for name, _ in query_pairs(query)}
    if names & _SECRET_NAMES:
        text = "a token does not belong in an address, where logs keep it: send it as `authorization: Bearer ...`"
        raise Refusal(400, "token_in_url", text)


def values_of(headers: Raw, name: bytes) -> list[bytes]:
    """All values of a header."""
    return [value for key, value in headers if key == name]


def _name(host: str) -> str:
    """``host`` without its port; empty where that is none."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]{1,5})?", host)
    return found[1] if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
