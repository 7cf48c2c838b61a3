"""Hazard: a node that tells where KV is, or what calls cost, otherwise than it is."""

import pytest

from modeld.session import Session
from modeld.types import DecodeOptions, Message

from .conftest import World

pytestmark = pytest.mark.anyio

SHORT = DecodeOptions(max_tokens=4, temperature=0.0)
RULES = "Repeat: " + " ".join(f"river stone {number}" for number in range(12))


async def ask(session: Session, text: str) -> None:
    await session.turn([Message("user", text)], options=SHORT).join()


async def test_what_sessions_share_is_told_of_each(world: World) -> None:
    await world.service.unload()
    first, second, third = [await world.open() for _ in range(3)]
    await ask(first, RULES)
    await ask(second, RULES + " amber")
    await ask(third, "Count to 3.")
    infos = {info.name: info for info in await world.service.sessions()}
    alone, both = infos[third.handle.name], [infos[one.handle.name] for one in (first, second)]
    if world.engine.shares:
        assert both[0].shared == both[1].shared > 20
        assert both[0].shared < min(info.tape for info in both)
        assert alone.shared < 20
    else:
        assert {info.shared for info in infos.values()} == {0}
    for info in infos.values():
        assert info.kept is None or info.shared + info.ram + info.disk <= info.kept


async def test_calls_add_up_in_the_totals_and_the_last_receipt_is_told(world: World) -> None:
    session = await world.open()
    before = (await world.service.status()).totals
    results = [
        await session.turn([Message("user", text)], options=SHORT).join() for text in ("Count to 9.", "Count to 5.")
    ]
    receipts = [result.receipt for result in results]
    now = (await world.service.status()).totals
    assert now.calls - before.calls == 2
    assert now.reused - before.reused == sum(receipt.reused for receipt in receipts)
    assert now.prefilled - before.prefilled == sum(receipt.prefilled for receipt in receipts)
    assert now.generated - before.generated == sum(result.usage.output or 0 for result in results)
    info = next(info for info in await world.service.sessions() if info.name == session.handle.name)
    assert info.last_receipt == receipts[-1]


async def test_the_plan_of_what_is_resident_is_told(world: World) -> None:
    await world.service.load(world.engine.ref)
    status = await world.service.status()
    assert status.plan is not None
    assert status.plan.context == status.context
    assert status.plan.cells == status.ledger.cells
    assert (await world.service.unload()).plan is None
