"""The token, asked for before anything else of a call is looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from modeld.errors import NodeError
from modeld.transport.errors import DETAILS_KEY, to_status
from modeld.transport.security import AUTHORIZATION, check_authorization

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TokenRequired(grpc.aio.ServerInterceptor):
    """Refuses every call without the token: of the node, of health and of reflection, and of methods nobody has."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler that was asked for, or one that refuses without reading the request."""
        metadata = handler_call_details.invocation_metadata or ()
        values = [value for key, value in metadata if key == AUTHORIZATION]
        try:
            check_authorization(values, self._token)
        except NodeError as error:
            return _refusal(error)
        return await continuation(handler_call_details)


def _refusal(error: NodeError) -> Handler:
    status = to_status(error)

    async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        details = ((DETAILS_KEY, status.SerializeToString()),)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, status.message, details)

    # A stream both ways: gRPC then waits for no request, so a stranger cannot send us one of 64 MiB first.
    return grpc.stream_stream_rpc_method_handler(cast("Any", refuse))
