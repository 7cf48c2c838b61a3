"""Claude models at Anthropic, or at a server that speaks its Messages wire.

The SDK brings client, authentication and errors; answers are read from its raw responses.
Sources: https://platform.claude.com/docs/en/api/overview and the vendor's SDK 2.12 (API version 2026-10-21).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import msgspec
from msgspec import Struct

from modeld.errors import (
    AuthenticationError,
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    ModeldError,
    NotSupportedError,
)
from modeld.providers.anthropic_errors import CODES, ErrorBody, vendor_failure
from modeld.providers.anthropic_events import Decoder
from modeld.providers.anthropic_facts import DEFAULT_MAX_TOKENS, ModelPage, facts_of, observed
from modeld.providers.anthropic_messages import NAME_LIMIT, build_request
from modeld.providers.bodies import drain, read_body
from modeld.providers.facts import observe
from modeld.providers.failures import failure_error, is_http, masked
from modeld.providers.sse import sse_data
from modeld.repository.catalog import CatalogOptions
from modeld.repository.connections import Connections, require
from modeld.repository.names import ToolNames
from modeld.repository.options import Rules, make_rules, mapped, native, refused
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, EmbedResult, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.types import EndPart, StreamPart

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic

URL: Final = "https://api.anthropic.com"
VERSION: Final = "2026-10-21"
SAMPLING_VERSION: Final = "2023-06-01"
"""The last version that knows temperature, top_p and top_k."""

EMBEDDINGS_PAGE: Final = "https://platform.claude.com/docs/en/build-with-claude/embeddings"
MAX_PAGES: Final = 100
PAGE: Final = 1000
_SAMPLING: Final = (
    f"sent with API version {SAMPLING_VERSION}, the last that knows it; an error on models since Claude 4.7, which "
    "take none, and beside thinking"
)

RULES: Final = make_rules(
    max_tokens=mapped(
        "max_tokens",
        f"the vendor wants one: without it the model's ceiling, else {DEFAULT_MAX_TOKENS}; "
        "a budget of thinking is added to it",
    ),
    temperature=mapped("temperature", f"{_SAMPLING}; 0 to 1, and not together with top_p"),
    top_p=mapped("top_p", f"{_SAMPLING} below 0.95"),
    top_k=mapped("top_k", f"{_SAMPLING}; 0, which is off, sends nothing"),
    min_p=refused("the vendor has none"),
    seed=refused("the vendor has none"),
    stop=native("stop_sequences"),
    frequency_penalty=refused("the vendor has none"),
    presence_penalty=refused("the vendor has none"),
    repeat_penalty=refused("the vendor has none"),
    logprobs=refused("the vendor does not tell them"),
    top_logprobs=refused("the vendor does not tell them"),
    tools=mapped("tools", f"names of up to {NAME_LIMIT} letters, digits, _ and -; others are rewritten and read back"),
    tool_choice=mapped("tool_choice", "required is any; forcing a call is an error on 5.5 models and beside thinking"),
    parallel_tool_calls=mapped(
        "tool_choice.disable_parallel_tool_use", "False sends it; True is what holds without it and sends nothing"
    ),
    response_format=mapped(
        "output_config.format",
        "always strict; objects are closed with additionalProperties: false; an error without a schema",
    ),
    think=mapped(
        "thinking | output_config.effort",
        "adaptive with an effort, or enabled with a budget; off is disabled or between_tools; auto sends nothing; an "
        "error where the model has no such level",
    ),
    prompt_cache=mapped(
        "cache_control",
        "5m or 1h: the vendor keeps the whole prompt, and finds in it what it kept of earlier turns. Writing costs "
        "1.25 or 2 times what input does, reading a tenth. Marks of single blocks and tools travel in provider_meta",
    ),
    prompt_cache_key=refused("the vendor has none: it finds what it keeps by its content"),
    shift=refused("the vendor never drops turns of a conversation"),
    truncate=refused("the vendor never drops turns of a conversation"),
    images=mapped("messages", "base64 blocks of JPEG, PNG, GIF or WebP, in messages of the user and results of tools"),
)


class AnthropicWire(Wire):
    """One server of the Messages API."""

    type: ClassVar[str] = "anthropic"
    provider_id: ClassVar[str] = "{type}-{model}"
    rules: Rules = RULES

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        self.base_url = _checked_url(spec.base_url or URL)
        self._key = spec.api_key.strip()
        self._connections = Connections(self._open, None if options.http_client is not None else _close)

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """The server's root."""
        return (self.base_url,)

    def model(self, name: str) -> ObservedModel:
        """See :meth:`Wire.model`."""
        return observe(name, facts_of(name))

    async def list_models(self) -> list[ObservedModel]:
        """See :meth:`Wire.list_models`. Source: https://platform.claude.com/docs/en/api/models/list

        :raises BackendProtocolError: the pages do not end.
        """
        models: dict[str, ObservedModel] = {}
        seen: set[str] = set()
        after = ""
        async with self._use() as session:
            while after not in seen and len(seen) < MAX_PAGES:
                seen.add(after)
                page = await self._page(session, after)
                models.update((info.id, observed(info)) for info in page.data if info.id)
                after = page.last_id or (page.data[-1].id if page.data else "")
                if not page.has_more or not after:
                    return list(models.values())
        raise BackendProtocolError(f"the listing of anthropic does not end: page {after!r} again", backend=self.type)

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """See :meth:`Wire.stream`."""
        names, body = _prepared(call)
        decoder = Decoder(call.model.name, names)
        async with self._use() as session:
            response = await self._post(session, {**body, "stream": True})
            try:
                self._check_type(response, "text/event-stream")
                # Uncompressed bytes are taken as they come: one layer less for each chunk.
                packed = "content-encoding" in response.headers
                chunks = response.aiter_bytes() if packed else response.aiter_raw()
                events = cast("AsyncGenerator[bytes, None]", sse_data(chunks))
                async with aclosing(chunks), aclosing(events):
                    async for data in events:
                        for part in decoder.feed(data):
                            if type(part) is EndPart:
                                await drain(events)
                            yield part
            finally:
                await response.aclose()

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        """See :meth:`Wire.chat`."""
        names, body = _prepared(call)
        async with self._use() as session:
            response = await self._post(session, body)
            try:
                self._check_type(response, "json")
                return Decoder(call.model.name, names).whole(await read_body(response, self.type))
            finally:
                await response.aclose()

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """:raises NotSupportedError: the vendor has no embeddings."""
        raise NotSupportedError(
            f"anthropic has no embeddings; its page names others that do: {EMBEDDINGS_PAGE}",
            feature="embeddings",
            backend=self.type,
        )

    def error(self, error: Exception, model: str) -> ModeldError:
        """See :meth:`Wire.error`."""
        import anthropic
        import httpx2

        about = {"backend": self.type, "model": model}
        if isinstance(error, anthropic.APIStatusError):
            return _status_error(error, model)
        if isinstance(error, anthropic.APITimeoutError | httpx2.TimeoutException):
            return DeadlineExceededError("anthropic did not answer in time; the request was closed", **about)
        if isinstance(error, anthropic.APIConnectionError | httpx2.TransportError):
            why = masked(str(error.__cause__ or error))[:200] or type(error).__name__
            return BackendUnavailableError(
                f"anthropic does not answer at {self.base_url}: {why}", retry_after=None, **about
            )
        if isinstance(error, msgspec.DecodeError | UnicodeDecodeError | httpx2.DecodingError):
            return BackendProtocolError(f"an answer of anthropic could not be understood: {error}", **about)
        return BackendError(f"anthropic: {type(error).__name__}: {masked(str(error))[:500]}", status=0, **about)

    async def aclose(self) -> None:
        """See :meth:`Wire.aclose`."""
        await self._connections.aclose()

    def _open(self) -> _Session:
        sdk = require("anthropic", "anthropic")
        client = sdk.AsyncAnthropic(
            # Without one the SDK looks into the environment and its profiles; the headers below say what is sent.
            api_key=self._key or "none",
            webhook_key="",
            base_url=self.base_url,
            max_retries=0,
            open_telemetry=False,
            # A redirect would hand the conversation to another server.
            http_client=self.options.http_client or sdk.DefaultAsyncHttpxClient(follow_redirects=False),
            # Not with the headers of a call: the SDK writes those to its log.
            default_headers={"authorization": f"Bearer {self._key}"} if self._key else {},
        )
        return _Session(client, self._headers(sdk.Omit()))

    def _headers(self, omit: Any) -> dict[str, Any]:
        """Headers of every call. The SDK adds those of ``ANTHROPIC_CUSTOM_HEADERS``: they are taken out again.

        Nothing of the environment may reach a server that a spec names.
        """
        lines = os.environ.get("ANTHROPIC_CUSTOM_HEADERS", "").split("\n")
        names = [name.strip().lower() for name, colon, _ in (line.partition(":") for line in lines) if colon]
        return {
            **{name: omit for name in names if not (self._key and name == "authorization")},
            "accept": "application/json",
            "content-type": "application/json",
            "anthropic-version": VERSION,
            **({} if self._key else {"authorization": omit}),
        }

    @contextlib.asynccontextmanager
    async def _use(self) -> AsyncIterator[_Session]:
        """:raises AuthenticationError: there is no key where one is needed, or it cannot stand in a header."""
        if not self._key and self.base_url == URL:
            raise AuthenticationError("anthropic needs an API key, and the backend has none", backend=self.type)
        if not (self._key.isascii() and self._key.isprintable()):
            text = "the API key of anthropic has characters that no key has; is it the right text?"
            raise AuthenticationError(text, backend=self.type)
        async with self._connections.use() as session:
            yield session

    async def _post(self, session: _Session, body: dict[str, Any]) -> httpx2.Response:
        """The response, its body unread. ``stream`` is the SDK's public way to it: nothing is read before iteration."""
        import anthropic

        try:
            content = msgspec.json.encode(body)
        except (TypeError, RecursionError) as error:
            raise InvalidRequestError(f"the request is no JSON: {error}", parameter="tools") from error
        headers = session.headers
        if body.keys() & {"temperature", "top_p", "top_k"}:
            headers = {**headers, "anthropic-version": SAMPLING_VERSION}
        stream: anthropic.AsyncStream[object] = await session.client.post(
            "/v1/messages",
            cast_to=object,
            content=content,
            options={"headers": headers},
            stream=True,
            stream_cls=anthropic.AsyncStream[object],
        )
        return stream.response

    async def _page(self, session: _Session, after: str) -> ModelPage:
        import httpx2

        params = {"limit": PAGE, **({"after_id": after} if after else {})}
        response = await session.client.get(
            "/v1/models", cast_to=httpx2.Response, options={"headers": session.headers, "params": params}
        )
        self._check_type(response, "json")
        return msgspec.json.decode(response.content, type=ModelPage)

    def _check_type(self, response: httpx2.Response, wanted: str) -> None:
        """:raises BackendProtocolError: the answer is something else, such as the page of a proxy."""
        got = response.headers.get("content-type", "")
        if wanted not in got.lower():
            text = f"anthropic at {self.base_url} answered with {got or 'no type'!r}, not with {wanted}"
            raise BackendProtocolError(text, backend=self.type, status=response.status_code)


class _Session(Struct, frozen=True):
    """An SDK client, and the headers that go with every call of it."""

    client: AsyncAnthropic
    headers: Mapping[str, Any]


def _status_error(error: Any, model: str) -> ModeldError:
    body = error.body.get("error") if isinstance(error.body, dict) else None
    try:
        said = msgspec.convert(body, ErrorBody)
    except msgspec.ValidationError:
        said = None
    headers = {name.lower(): value for name, value in error.response.headers.items()}
    failure = vendor_failure(said, error.message, status=error.status_code, headers=headers)
    return failure_error("anthropic", model, failure, CODES)


def _prepared(call: Call) -> tuple[ToolNames, dict[str, Any]]:
    names = ToolNames(call.config.tools, NAME_LIMIT)
    return names, build_request(call, names)


async def _close(session: _Session) -> None:
    await session.client.close()


def _checked_url(url: str) -> str:
    """``url`` without blanks, slashes and ``/v1`` at its end, which the SDK adds itself.

    :raises InvalidRequestError: it is no HTTP URL.
    """
    url = url.strip().rstrip("/").removesuffix("/v1")
    if not is_http(url):
        text = f"anthropic needs a base URL such as {URL}, not {url!r}"
        raise InvalidRequestError(text, parameter="base_url")
    return url


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """A catalog of Anthropic, or of a server that speaks like it."""
    return WireCatalog(AnthropicWire(spec, options))
