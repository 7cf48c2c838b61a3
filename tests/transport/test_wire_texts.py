"""Hazard: what a call without a session is asked, or answers, changes on the wire."""

from __future__ import annotations

import pytest

from modeld.session import EmbeddedItem, EmbedInput
from modeld.transport.grpc.client import RemoteNode
from modeld.types import Message

pytestmark = pytest.mark.anyio


async def test_questions_and_answers_cross_as_they_are(node: RemoteNode, service) -> None:
    found = await node.embed("tiny", iter(["one", [1, 2]]), dimensions=3)
    assert service.asked == [(EmbedInput("one"), EmbedInput(tokens=(1, 2)))]
    assert found.vectors == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert found.items == (EmbeddedItem(tokens=3, used=2, chunks=2),) * 2
    assert (found.pooling, found.pooling_source, found.normalized, found.usage.input) == ("cls", "model", False, 2)
    ranked = await node.rerank("tiny", "query", iter(["a", "b"]))
    assert (service.asked[-1], ranked.scores, ranked.order) == (("a", "b"), (0.5,), (0,))
    assert (await node.tokenize("tiny", "\N{SNOWMAN}", add_special=False)).tokens == (1, 0)
    assert service.asked[-1] == "\N{SNOWMAN}"
    assert await node.detokenize("tiny", [7]) == b"\xff"
    rendered = await node.render("tiny", [Message("user", "hi")])
    assert (rendered.text, rendered.tokens, rendered.template) == ("t", (1,), "default")
