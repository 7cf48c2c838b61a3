"""Hazard: a field, a route or an error that nobody wrote down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from modeld.http import openai_request, routes
from modeld.http.errors import STATUS
from modeld.http.openai_answer import FINISH
from modeld.http.openai_request import ChatRequest
from modeld.transport import errors
from modeld.types import FinishReason

DOCS = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
TAKEN, _, REFUSED = DOCS.partition("Not supported, and refused by name:")


def test_every_field_of_the_vendor_is_taken_or_refused_by_name() -> None:
    vendors = (CompletionCreateParamsBase, CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming)
    known = {name for params in vendors for name in params.__annotations__}
    assert known <= set(ChatRequest.__struct_fields__)


def test_every_field_is_documented_as_what_it_is() -> None:
    hints = get_type_hints(ChatRequest, vars(openai_request))
    refused = {name for name, hint in hints.items() if hint is type(None)}
    assert refused
    for name in ChatRequest.__struct_fields__:
        page = REFUSED.partition("\n\n")[0] if name in refused else TAKEN
        assert f"`{name}`" in page, name


def test_every_route_is_documented() -> None:
    source = Path(routes.__file__).read_text()
    found = re.findall(r'_(get|post)\("([^"]+)"', source)
    assert len(found) >= 6
    for method, path in found:
        assert f"`{method.upper()} {path.replace(':path', '')}`" in DOCS


def test_every_error_has_a_status_and_every_finish_a_reason() -> None:
    assert STATUS.keys() == errors.STATUS.keys()
    assert all(400 <= status < 600 for status in STATUS.values())
    assert set(FINISH) == set(get_args(FinishReason))
