"""What schemathesis is told of a node: most bodies name a model that answers, or each would end at its name."""

from __future__ import annotations

import zlib
from typing import Any

import schemathesis


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
