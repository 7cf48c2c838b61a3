"""Hazard: a hook fails and the ones after it never run."""

import pytest

from modeld.repository import Daemon, hooks, register_shutdown_hook, shutdown

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def own_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_hooks", [])


async def test_all_run_in_order_and_the_errors_come_at_the_end() -> None:
    ran: list[str] = []

    async def later() -> None:
        ran.append("async")

    def fails() -> None:
        ran.append("fails")
        raise OSError("disk")

    async def fails_too() -> None:
        ran.append("fails too")
        raise ValueError("value")

    for hook in (lambda: ran.append("first"), fails, None, later, fails_too, lambda: ran.append("last")):
        register_shutdown_hook(hook)
    with pytest.raises(ExceptionGroup, match="2 of 5") as caught:
        await shutdown()
    assert ran == ["first", "fails", "async", "fails too", "last"]
    assert [type(error) for error in caught.value.exceptions] == [OSError, ValueError]


async def test_hooks_run_again_each_time() -> None:
    ran: list[int] = []
    register_shutdown_hook(lambda: ran.append(1))
    daemon = Daemon()
    await daemon.stop()
    await daemon.stop()
    assert ran == [1, 1]


async def test_without_hooks_it_is_safe() -> None:
    await shutdown()


async def test_a_hook_registered_meanwhile_runs_the_next_time() -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        register_shutdown_hook(lambda: ran.append("second"))

    register_shutdown_hook(first)
    await shutdown()
    assert ran == ["first"]
    await shutdown()
    assert ran == ["first", "first", "second"]
