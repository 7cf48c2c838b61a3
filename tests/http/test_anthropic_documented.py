"""Hazard: a field of Anthropic's that nobody wrote down, or that is refused as if nobody knew it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

from anthropic.types import StopReason
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import (
    MessageCreateParamsBase,
    MessageCreateParamsNonStreaming,
    MessageCreateParamsStreaming,
)

from modeld.http import anthropic_request
from modeld.http.anthropic_answer import STOP
from modeld.http.anthropic_request import CountRequest, MessagesRequest
from modeld.types import FinishReason

DOCS = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
PAGE = DOCS.partition("\n## Messages")[2].partition("\n## ")[0]
TAKEN, _, REFUSED = PAGE.partition("Not supported, and refused by name:")


def test_every_field_of_the_vendor_is_taken_or_refused_by_name() -> None:
    vendors = (MessageCreateParamsBase, MessageCreateParamsNonStreaming, MessageCreateParamsStreaming)
    assert {name for params in vendors for name in params.__annotations__} <= set(MessagesRequest.__struct_fields__)
    assert set(MessageCountTokensParams.__annotations__) <= set(CountRequest.__struct_fields__)


def test_every_field_is_documented_as_what_it_is() -> None:
    hints = get_type_hints(MessagesRequest, vars(anthropic_request))
    refused = {name for name, hint in hints.items() if hint is type(None)}
    assert len(refused) >= 6
    for name in MessagesRequest.__struct_fields__:
        page = REFUSED.partition("\n\n")[0] if name in refused else TAKEN
        assert f"`{name}`" in page, name


def test_every_finish_has_a_reason_of_the_vendors() -> None:
    assert set(STOP) == set(get_args(FinishReason))
    assert set(STOP.values()) <= set(get_args(StopReason))
    for reason in STOP.values():
        assert f"`{reason}`" in PAGE
