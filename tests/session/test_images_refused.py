"""Hazard: a picture that is left out of the prompt without a word, or refused when half an answer is there."""

from __future__ import annotations

import pytest

from modeld.errors import NotSupportedError
from modeld.types import DecodeOptions, ImagePart, Message

from .conftest import World

pytestmark = pytest.mark.anyio

PIXEL = ImagePart(b"\x89PNG", "image/png")
GREEDY = DecodeOptions(temperature=0, max_tokens=400)


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
async def test_every_call_of_a_session_refuses_images_and_changes_nothing(world: World, role: str) -> None:
    ask = [Message("user", world.engine.asks[0])]
    seen = [*ask, Message(role, "See?", images=(PIXEL,)), *ask]  # type: ignore[arg-type]
    session = await world.open()
    before = (await session.turn(ask, options=GREEDY).join()).receipt.resident
    parts: list[object] = []

    async def read() -> None:
        async with session.turn(seen, options=GREEDY) as stream:
            async for part in stream:
                parts.append(part)

    for call in (
        read(),
        session.turn(seen, options=GREEDY).join(),
        session.prefill_suffix(seen),
        session.ensure_prefix(seen),
        world.service.render(world.engine.ref, seen),
    ):
        with pytest.raises(NotSupportedError) as caught:
            await call
        assert (caught.value.code, caught.value.details["feature"]) == ("unsupported_feature", "images")
    assert parts == []
    report = await session.explain()
    assert (report.resident, report.decode_calls) == (before, 1)
