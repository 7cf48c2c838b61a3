"""What schemathesis is told of a node: most bodies name a model that answers, or each would end at its name."""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis
from hypothesis import strategies
from schemathesis.core.errors import InvalidSchema
from schemathesis.generation.jsonschema import strategy

_repeated: Any = strategy._repeated


def _repeated_or_nothing(*arguments: Any, **options: Any) -> Any:
    """No array, where nothing can be in it.

    While schemathesis (4.32.5) builds a schema that refers to itself it does not ask whether an element has any value,
    and where it has none the whole operation ends with a schema error. Other branches of the schema may have some.
    """
    try:
        return _repeated(*arguments, **options)
    except InvalidSchema:
        return strategies.nothing()


strategy._repeated = _repeated_or_nothing


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Seven of eight models are the fake one: its answers are short, whatever is asked."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and zlib.crc32(repr(body).encode()) % 8:
        return body | {"model": "fake:rank=1" if context.operation.path == "/v1/rerank" else "fake"}
    return body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """Half of the models that are looked for are there."""
    if isinstance(path_parameters, dict) and zlib.crc32(repr(path_parameters).encode()) % 2:
        return path_parameters | {"id": "tiny"}
    return path_parameters


@schemathesis.check
def error_has_the_dialects_shape(context: Any, response: Any, case: Any) -> None:
    """Also where the published document says nothing."""
    if response.status_code < 400 or case.operation.method.upper() == "HEAD":
        return
    error = response.json()["error"]
    anthropic = case.operation.path.startswith("/v1/messages")
    assert error.keys() == ({"type", "message"} if anthropic else {"message", "type", "param", "code"}), error
    assert all(isinstance(error[name], str) and error[name] for name in ("type", "message"))
    assert "x-request-id" in response.headers
