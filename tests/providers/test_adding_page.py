"""Hazard: the page that shows how to add a provider works no more. Its row and its test are run as they are."""

import re
from pathlib import Path
from typing import Any

import pytest

from modeld.providers import compatible

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-provider.md"


async def test_the_row_and_the_test_of_the_page_work(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    row: dict[str, Any] = dict(vars(compatible))
    exec(blocks[0], row)
    monkeypatch.setitem(compatible.VENDORS, "acme", row["ACME"])
    (code,) = [block for block in blocks if block.startswith('"""Hazard')]
    recorded: dict[str, Any] = {}
    exec(code, recorded)
    tests = [value for name, value in recorded.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        await test()
