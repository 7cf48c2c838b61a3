"""What Gemini and Vertex share: the SDK's client, and the wire over it.

The SDK (google-genai 3.4) brings addresses, authentication and errors. Its streams give no raw access: each chunk is
parsed, dumped, parsed again and made into objects (120 microseconds; 12 this way, measured here). But it takes a client
of its HTTP library (``HttpOptions.httpx_async_client``), and that is where a stream is taken over: :func:`_handover`
keeps the response of a stream for us and shows the SDK an empty one. Whole answers it gives raw
(``should_return_http_response``). The body of a request goes in as ``HttpOptions.extra_body``: the SDK's own conversion
takes 35 ms for 200 messages, with the event loop held, and this way 1.3 ms (measured here).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from modeld.errors import BackendProtocolError, ModeldError
from modeld.providers.generate_content import NAME_LIMIT, RULES, build_request
from modeld.providers.generate_decoder import Decoder
from modeld.providers.google_errors import sdk_error
from modeld.providers.sse import sse_data
from modeld.repository.connections import Connections, require
from modeld.repository.names import ToolNames
from modeld.repository.values import BackendSpec, EmbedResult, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.types import EndPart, StreamPart, Usage

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client
    from google.genai.types import EmbedContentResponse, Model

    from modeld.repository.catalog import CatalogOptions

MAX_BATCH: Final = 100
"""Texts in one request of embeddings: Gemini takes 100 (batchEmbedContents), Vertex 250."""

MAX_PAGES: Final = 200

_taken: ContextVar[list[httpx2.Response] | None] = ContextVar("taken", default=None)
"""Where the response of the stream that the running task asks for is put."""


class Link(Struct, frozen=True):
    """An SDK client and the HTTP client below it."""

    client: Client
    http: httpx2.AsyncClient


def open_link(http_client: Any, base_url: str, api_version: str, **arguments: Any) -> Link:
    """An SDK client that takes nothing from the environment, does not retry, and uses ``http_client`` or a new one."""
    require("google.genai", "google")
    import httpx2
    from google.genai import Client, types
    from google.genai.client import DebugConfig

    http = http_client or httpx2.AsyncClient(
        timeout=httpx2.Timeout(600.0, connect=10.0),
        limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100),
    )
    options = types.HttpOptions(
        base_url=base_url, api_version=api_version, httpx_async_client=_handover(http), retry_options=None
    )
    # Without one the SDK asks the environment whether to record or replay.
    debug = DebugConfig(client_mode=None, replays_directory=None, replay_id=None)
    return Link(Client(http_options=options, debug_config=debug, **arguments), http)


def _handover(http: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """A client for the SDK over ``http``."""
    import httpx2

    class Handover(httpx2.AsyncClient):
        """Sends through ``http``; keeps the response of a stream and shows an empty one in its place."""

        def build_request(self, *args: Any, timeout: Any = None, **options: Any) -> httpx2.Request:
            # The SDK says "no timeout" where nobody gave one; the client's own is right then.
            if timeout is not None:
                options["timeout"] = timeout
            return http.build_request(*args, **options)

        async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
            response = await http.send(request, stream=stream, **options)
            taken = _taken.get()
            if not stream or taken is None or response.status_code != 200:
                return response
            taken.append(response)
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=b"", request=request)

    # Its own pool is never used, and without a transport it would load certificates for it.
    return Handover(transport=httpx2.AsyncBaseTransport())


class GoogleWire(Wire):
    """Chat and embeddings over one SDK client for each event loop."""

    rules = RULES

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        close = None if options.http_client is not None else _close
        self._connections: Connections[Link] = Connections(self._open, close)

    @abstractmethod
    def _open(self) -> Link:
        """A new client; called in a thread."""

    @property
    def _beta(self) -> dict[str, Any]:
        """Options of a request that only the beta version of the service knows."""
        return {}

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """See :meth:`modeld.repository.wire.Wire.stream`."""
        body, decoder = self._begin(call)
        async with self._connections.use() as link:
            while True:
                response = await _send(link, call.model.name, body)
                try:
                    async with aclosing(self._events(response)) as events:
                        async for data in events:
                            for part in decoder.feed(data):
                                yield part
                finally:
                    await response.aclose()
                if not decoder.hop():
                    break
                body["continuationToken"] = decoder.continuation
        for part in decoder.finish():
            yield part

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        """See :meth:`modeld.repository.wire.Wire.chat`."""
        body, decoder = self._begin(call)
        parts: list[StreamPart] = []
        async with self._connections.use() as link:
            while True:
                config = _config(body, should_return_http_response=True)
                answer = await link.client.aio.models.generate_content(
                    model=call.model.name, contents="-", config=config
                )
                response = answer.sdk_http_response
                headers = (response.headers if response else None) or {}
                self._check_type(headers, "application/json")
                parts += decoder.feed((response.body if response else None) or "")
                if not decoder.hop():
                    break
                body["continuationToken"] = decoder.continuation
        parts += decoder.finish()
        if not parts or not isinstance(parts[-1], EndPart):
            text = f"the answer of {self.type} has neither a finish reason nor a reason why it was blocked"
            raise BackendProtocolError(text, backend=self.type, model=call.model.name)
        return parts

    def _begin(self, call: Call) -> tuple[dict[str, Any], Decoder]:
        names = ToolNames(call.config.tools, NAME_LIMIT)
        return build_request(self.type, call, names), Decoder(self.type, call.model.name, names)

    async def _events(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        """The data of each event, and a bare object at the end: a stream that fails may end in one, without ``data:``.

        Source: the SDK reads such lines too.
        """
        self._check_type(response.headers, "text/event-stream")
        last: deque[bytes] = deque(maxlen=4)

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in response.aiter_bytes():
                last.append(chunk)
                yield chunk

        async for data in sse_data(chunks()):
            yield data
        bare = b"".join(last).replace(b"\r\n", b"\n").rpartition(b"\n\n")[2].strip()
        if bare.startswith((b"{", b"[")) and b'"error"' in bare:
            yield bare.removeprefix(b"[").removesuffix(b"]")

    def _check_type(self, headers: Mapping[str, str], wanted: str) -> None:
        found = headers.get("content-type", "")
        if wanted not in found:
            text = f"{self.type} answered with {found[:80] or 'no content type'}, not with {wanted}"
            raise BackendProtocolError(text, backend=self.type, status=200)

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """See :meth:`modeld.repository.wire.Wire.embed`."""
        vectors: list[tuple[float, ...]] = []
        counts: list[int | None] = []
        config: dict[str, Any] = {"http_options": self._beta} if self._beta else {}
        if dimensions is not None:
            config["output_dimensionality"] = dimensions
        async with self._connections.use() as link:
            for start in range(0, len(texts), MAX_BATCH):
                # Each a content of its own: of bare strings the SDK makes one content, and so one vector.
                contents: Any = [{"parts": [{"text": text}]} for text in texts[start : start + MAX_BATCH]]
                answer = await link.client.aio.models.embed_content(
                    model=model.name,
                    contents=contents,
                    config=config,  # type: ignore[arg-type]
                )
                vectors += [tuple(embedding.values or ()) for embedding in answer.embeddings or ()]
                counts.append(_embedded(answer))
        known = [count for count in counts if count is not None]
        usage = Usage(input=sum(known) if len(known) == len(counts) else None, source="reported")
        return EmbedResult(vectors=tuple(vectors), model=model.name, usage=usage)

    async def _listed(self, page_size: int) -> list[Model]:
        """All pages of the SDK's listing.

        :raises BackendProtocolError: the pages do not end.
        """
        config: Any = {"page_size": page_size, "query_base": True}
        if self._beta:
            config["http_options"] = self._beta
        found: list[Model] = []
        seen: set[str] = set()
        async with self._connections.use() as link:
            pager = await link.client.aio.models.list(config=config)
            while True:
                found += pager.page
                token = pager.config.get("page_token")
                if not token:
                    return found
                if token in seen or len(seen) >= MAX_PAGES:
                    raise BackendProtocolError(f"the listing of {self.type} does not end", backend=self.type)
                seen.add(token)
                await pager.next_page()

    def error(self, error: Exception, model: str) -> ModeldError:
        """See :meth:`modeld.repository.wire.Wire.error`."""
        return sdk_error(self.type, model, error)

    async def aclose(self) -> None:
        """See :meth:`modeld.repository.wire.Wire.aclose`."""
        await self._connections.aclose()


async def _close(link: Link) -> None:
    await link.http.aclose()


def _config(body: dict[str, Any], **options: Any) -> Any:
    """Options of the SDK for one request. It adds nothing of its own: no calls of functions, no second request."""
    return {
        "http_options": {"extra_body": body},
        "automatic_function_calling": {"disable": True},
        "automatic_continuation": False,
        **options,
    }


async def _send(link: Link, model: str, body: dict[str, Any]) -> httpx2.Response:
    """Ask for a stream; its response, unread.

    :raises APIError: of the SDK, for every status but 200.
    """
    taken: list[httpx2.Response] = []
    token = _taken.set(taken)
    try:
        stream = await link.client.aio.models.generate_content_stream(model=model, contents="-", config=_config(body))
        async for _ in stream:
            pass
    except BaseException:
        for response in taken:
            await response.aclose()
        raise
    finally:
        _taken.reset(token)
    if len(taken) != 1:
        raise BackendProtocolError(f"the SDK made {len(taken)} requests where one was asked for")
    return taken[0]


def _embedded(answer: EmbedContentResponse) -> int | None:
    """Tokens of the texts: Gemini says them for the request, Vertex for each text."""
    if answer.usage_metadata is not None and answer.usage_metadata.prompt_token_count is not None:
        return answer.usage_metadata.prompt_token_count
    counts = [e.statistics.token_count if e.statistics else None for e in answer.embeddings or ()]
    known = [int(count) for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
