"""Hazard: KV that left the engine, told as being somewhere else."""

from pathlib import Path

import pytest

from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import SessionConfig
from modeld.types import DecodeOptions, Message

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)
"""The same answers each time: how long they are decides what leaves first."""


async def test_what_left_the_engine_is_in_ram_or_in_files(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, sequences=4))
    try:
        for number in range(8):
            session = await node.open_session("fake", SessionConfig(name=str(number)))
            await session.turn([Message("user", f"{number} " + "river stone " * 30)], options=GREEDY).join()
        infos = {info.name: info for info in await node.sessions()}
        here = [info for info in infos.values() if info.hot]
        left = [info for info in infos.values() if not info.hot]
        assert (len(here), len(left)) == (4, 4)
        for info in left:
            # What the template begins every conversation with is held for those that are here.
            assert info.shared + info.ram + info.disk == info.kept == info.tape
            assert 0 < info.shared < 20
        for info in here:
            assert info.hot == info.kept == info.tape
            assert info.ram == info.disk == 0
        await node.unload()
        info = (await node.sessions())[0]
        assert (info.kept, info.shared, info.ram, info.disk) == (None, 0, 0, 0)
    finally:
        await node.aclose()
