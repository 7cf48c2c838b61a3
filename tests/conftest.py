"""Fixtures that every room shares."""

import os
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import settings


def pytest_configure() -> None:
    """Nodes that tests start do not take the one default port; those of `tests/http` name theirs."""
    os.environ["MODELD_HTTP"] = "off"
    # Each test has a time limit; an example that waits for the machine is no finding.
    settings.register_profile("modeld", deadline=None)
    settings.load_profile("modeld")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A call of modeld's that blocks the event loop fails the test."""
    with blockbuster_ctx("modeld") as guard:
        for function in guard.functions.values():
            # Binding the socket happens once, before anybody is served, and gRPC's own bind blocks as well.
            function.can_block_in("modeld/transport/grpc/server.py", {"_unix_socket", "stop"})
        yield
