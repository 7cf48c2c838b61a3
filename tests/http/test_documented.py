"""Hazard: a field, a route or an error that nobody wrote down."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from msgspec import inspect
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsBase,
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)

from modeld.http import routes
from modeld.http.anthropic_request import CountRequest, MessagesRequest
from modeld.http.completions_request import CompletionsRequest
from modeld.http.embeddings import EmbeddingsRequest
from modeld.http.errors import STATUS
from modeld.http.openai_answer import FINISH
from modeld.http.openai_request import ChatRequest
from modeld.http.responses_request import ResponsesRequest
from modeld.transport import errors
from modeld.types import FinishReason

DOCS = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
TAKEN, _, REFUSED = DOCS.partition("Not supported, and refused by name:")


def test_every_field_of_the_vendor_is_taken_or_refused_by_name() -> None:
    vendors = (CompletionCreateParamsBase, CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming)
    known = {name for params in vendors for name in params.__annotations__}
    assert known <= set(ChatRequest.__struct_fields__)


def test_every_field_is_documented_as_what_it_is() -> None:
    hints = get_type_hints(ChatRequest)
    refused = {name for name, hint in hints.items() if hint is type(None)}
    assert refused
    for name in ChatRequest.__struct_fields__:
        page = REFUSED.partition("\n\n")[0] if name in refused else TAKEN
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(
    ("body", "heading"),
    [(ResponsesRequest, "Responses"), (CompletionsRequest, "Completions"), (EmbeddingsRequest, "Embeddings")],
)
def test_every_field_of_the_other_routes_too(body: Any, heading: str) -> None:
    page = DOCS.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    taken, _, refused = page.partition("Not supported, and refused by name:")
    hints = get_type_hints(body)
    for name in body.__struct_fields__:
        assert f"`{name}`" in (refused if hints[name] is type(None) else taken), name


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


@pytest.mark.parametrize("body", [ChatRequest, CompletionsRequest, ResponsesRequest, MessagesRequest, CountRequest])
def test_no_object_is_taken_without_the_type_that_the_document_asks_for(body: type) -> None:
    """msgspec asks for a tag only where there is a choice."""
    alone: set[str] = set()
    seen: set[type] = set()

    def walk(type_: inspect.Type, place: str, choice: bool = False) -> None:
        if isinstance(type_, inspect.UnionType):
            several = sum(isinstance(option, inspect.StructType) for option in type_.types) > 1
            for option in type_.types:
                walk(option, place, several)
        elif isinstance(type_, inspect.StructType):
            if type_.tag is not None and not choice:
                alone.add(f"{place}: {type_.cls.__name__}")
            if type_.cls not in seen:
                seen.add(type_.cls)
                for field in type_.fields:
                    walk(field.type, f"{type_.cls.__name__}.{field.name}")
        elif isinstance(type_, inspect.ListType):
            walk(type_.item_type, place)
        elif isinstance(type_, inspect.DictType):
            walk(type_.value_type, place)

    walk(inspect.type_info(body), body.__name__)
    assert alone == set()
    assert len(seen) > 1
