"""Hazard: a stream that is taken for dead while the node works on it."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from modeld.http import sse

from .conftest import Site

pytestmark = pytest.mark.anyio

SLOW = "fake:delay=0.002"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_is_read_and_not_told_is_silence(
    site: Site, web: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The engine says each second how far the prompt is, which nobody asked to hear."""
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 1.3)
    content = path[-4] * 2200
    body: dict[str, Any] = {"model": SLOW, "max_tokens": 1, "stream": True}
    answer = await web.post(path, json=body | {"messages": [{"role": "user", "content": content}]}, timeout=30)
    assert answer.status_code == 200
    head = answer.text.partition("content_block_start" if "messages" in path else '"choices"')[0]
    beats = head.count("event: ping") + head.count(": still working")
    assert beats >= 3


async def test_the_first_event_begins_the_message_and_pings_tell_progress(site: Site, web: httpx2.AsyncClient) -> None:
    for asks in (True, False):
        body = {
            "model": SLOW,
            "max_tokens": 1,
            "stream": True,
            "messages": [{"role": "user", "content": f"{asks}" * 300}],
        }
        headers = {"x-modeld-progress": "1"} if asks else {}
        answer = await web.post("/v1/messages", json=body, headers=headers, timeout=30)
        lines = answer.text.splitlines()
        names = [line[7:] for line in lines if line.startswith("event: ")]
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        assert names == [event["type"] for event in events]
        assert names[0] == "message_start"
        assert names[-1] == "message_stop"
        progress = [event["modeld"]["progress"] for event in events if event["type"] == "ping" and "modeld" in event]
        assert bool(progress) == asks
