"""Fixtures that every room shares."""

import gc
import os
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from grpc.aio import init_grpc_aio, shutdown_grpc_aio
from hypothesis import settings

from support.examples import HUNT, examples
from support.progress import Progress


def pytest_configure(config: pytest.Config) -> None:
    """Nodes that tests start do not take the one default port; those of `tests/http` name theirs."""
    os.environ["MODELD_HTTP"] = "off"
    # As nodes start their engines: a thread that waits for another one must not keep it from its core.
    os.environ["GOMP_SPINCOUNT"] = "1000"
    # Each test has a time limit; an example that waits for the machine is no finding.
    settings.register_profile("modeld", deadline=None, derandomize=not HUNT, max_examples=examples(100))
    settings.load_profile("modeld")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait a fifth of their time."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish() -> None:
    """What thousands of collected tests hold is not looked at by the collector again: each time took 0.6 s, of whatever
    a test did just then, and a template has no more than that."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def grpc_stays_initialised() -> Iterator[None]:
    """The last server or channel of gRPC that is collected ends its poller and waits for that thread, which blocks
    whatever test the collector happens to run in."""
    init_grpc_aio()
    yield
    shutdown_grpc_aio()


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """A call of modeld's that blocks the event loop fails the test."""
    with blockbuster_ctx("modeld") as guard:
        for function in guard.functions.values():
            # Binding the socket happens once, before anybody is served, and gRPC's own bind blocks as well.
            function.can_block_in("modeld/transport/grpc/server.py", {"_unix_socket", "stop"})
        yield
