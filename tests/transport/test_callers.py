"""Hazard: who is on the node? Clients name themselves; what they say is bounded and believed by nobody but people."""

from __future__ import annotations

import os
from typing import Any

import pytest

from modeld.transport.grpc import callers
from modeld.transport.grpc.callers import Callers, introduction
from modeld.transport.methods import CLIENT_KEY


class Call:
    def __init__(self, said: str | None, peer: str = "unix:") -> None:
        self._metadata = ((CLIENT_KEY, said),) if said is not None else ()
        self._peer = peer

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return self._peer


def test_introduction_names_this_process() -> None:
    key, said = introduction()
    seen = Callers()
    seen.heard(Call(said))
    (client,) = seen.latest()
    assert key == CLIENT_KEY
    assert (client.pid, client.address, client.calls) == (os.getpid(), "unix", 1)


def test_connections_of_one_client_are_one_line() -> None:
    seen = Callers()
    for port in (1000, 2000):
        seen.heard(Call("7 editor", f"ipv4:127.0.0.1:{port}"))
    (client,) = seen.latest()
    assert (client.program, client.calls, client.address) == ("editor", 2, "ipv4:127.0.0.1")


@pytest.mark.parametrize("said", [None, "", "x", "12", "99999999999 x", "1 " + "y" * 61, "1 a\nb"])
def test_senseless_introductions_are_unknown(said: str | None) -> None:
    seen = Callers()
    seen.heard(Call(said))
    (client,) = seen.latest()
    assert (client.pid, client.program) == (0, "unknown")


def test_list_is_bounded_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(callers, "monotonic", lambda: now[0])
    seen = Callers()
    for pid in range(1000):
        seen.heard(Call(f"{pid} p"))
    assert len(seen.latest()) == 256
    assert seen.latest()[0].pid == 999
    now[0] = 61.0
    seen.heard(Call("5 p"))
    assert [client.pid for client in seen.latest()] == [5]
