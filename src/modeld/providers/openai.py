"""OpenAI, and every server that speaks its wire: Chat Completions, Responses, embeddings, models.

The SDK brings client, authentication and errors; answers are read from its raw responses.
Source: https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

import msgspec
from msgspec import Struct, structs

from modeld.errors import (
    AuthenticationError,
    BackendProtocolError,
    InvalidRequestError,
    ModeldError,
    RefusedError,
)
from modeld.providers.bodies import drain, read_body
from modeld.providers.chat_completions import (
    CODES,
    ChatCodec,
    Dialect,
    ModelFacts,
    chat_rules,
)
from modeld.providers.chat_decoder import read_usage
from modeld.providers.facts import find_facts, observe
from modeld.providers.failures import is_http
from modeld.providers.openai_errors import Place, sdk_error
from modeld.providers.openai_facts import FACTS, OpenAIFacts
from modeld.providers.responses import ResponsesCodec
from modeld.providers.responses_values import DECLINED
from modeld.providers.sse import sse_data
from modeld.repository.catalog import CatalogOptions
from modeld.repository.connections import Connections, require
from modeld.repository.names import ToolNames
from modeld.repository.options import Rules, mapped, native, refused
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, EmbedResult, Evidence, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.types import EndPart, StreamPart

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

OPENAI: Final = Dialect(
    backend="openai",
    logprobs_of="text",
    codes={**CODES, **dict.fromkeys(DECLINED, RefusedError)},
    keeps_prompts=True,
)

RULES: Final = chat_rules(
    OPENAI,
    max_tokens=native("max_completion_tokens | max_output_tokens"),
    seed=mapped("seed", "models of the Responses API have none: an error"),
    stop=mapped("stop", "at most 4; models of the Responses API have none: an error"),
    frequency_penalty=mapped("frequency_penalty", "models of the Responses API have none: an error"),
    presence_penalty=mapped("presence_penalty", "models of the Responses API have none: an error"),
    logprobs=mapped("logprobs", "models of the Responses API have none: an error"),
    top_logprobs=mapped("top_logprobs", "models of the Responses API have none: an error"),
    strict_tools=native("tools[].strict"),
    response_format=mapped("response_format | text.format", "json_schema; json_object without a schema"),
    think=mapped("reasoning_effort | reasoning.effort", "auto sends nothing; a level a model lacks is an error"),
    images=mapped("messages | input", "a data URI, in messages of the user"),
    top_k=refused("the vendor has top_p only"),
    min_p=refused("the vendor has top_p only"),
    repeat_penalty=refused("the vendor has frequency_penalty and presence_penalty"),
    prompt_cache=mapped(
        "prompt_cache_retention",
        "in_memory or 24h, an error on models without it; without it the vendor keeps some anyway",
    ),
    prompt_cache_key=native("prompt_cache_key"),
    shift=refused("the vendor never drops turns of a conversation"),
    truncate=refused("the vendor never drops turns of a conversation"),
)

MAX_PAGES: Final = 1000


class Decoder(Protocol):
    """Reads one answer."""

    def feed(self, data: bytes) -> list[StreamPart]:
        """The parts of one event."""

    def close(self) -> list[StreamPart]:
        """The last parts, where the end of the body is the end of the answer."""

    def whole(self, body: bytes) -> list[StreamPart]:
        """The parts of an answer that was not streamed."""


class Codec(Protocol):
    """One of the two APIs. A codec holds no state of a call."""

    path: str

    def build(self, call: Call, names: ToolNames, facts: ModelFacts | None) -> dict[str, Any]:
        """The body of a request that does not stream."""

    def streaming(self, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` as a request that streams."""

    def decoder(self, call: Call, names: ToolNames) -> Decoder:
        """What reads the answer."""


class _Session(Struct, frozen=True):
    """An SDK client, and the headers that go with every call of it."""

    client: AsyncOpenAI
    headers: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"_Session({', '.join(self.headers)})"


class _Page(Struct):
    data: list[dict[str, Any]]
    has_more: Any = None
    last_id: Any = None


class _Embedding(Struct):
    embedding: tuple[float, ...]
    index: int = 0


class _Embeddings(Struct):
    data: list[_Embedding]
    model: str = ""
    usage: Any = None


class OpenAIWire(Wire):
    """One server. What another vendor of this wire has of its own is in the class attributes, and in
    :meth:`listed` and :meth:`codec`.
    """

    type: ClassVar[str] = "openai"
    provider_id: ClassVar[str] = "{type}-{model}"
    rules: Rules = RULES
    dialect: ClassVar[Dialect] = OPENAI
    facts: ClassVar[Sequence[ModelFacts]] = FACTS
    default_url: ClassVar[str] = "https://api.openai.com/v1"
    """The vendor's own; it wants a key. ``""``: there is none, the spec must name one."""

    headers: ClassVar[Mapping[str, str]] = {}
    """Goes with every call."""

    dimensions_field: ClassVar[str] = "dimensions"
    """Of an embedding request: the length of the vectors."""

    extra: ClassVar[str] = "openai"
    """The extra that brings the SDK."""

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        self.base_url = _checked_url(self.type, spec.base_url or self.default_url)
        self._key = spec.api_key.strip()
        self._connections = Connections(self._open, None if options.http_client is not None else _close)
        self._chat: Codec = ChatCodec(self.dialect)
        self._responses: Codec = ResponsesCodec(self.dialect.backend)

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """The server's root."""
        return (self.base_url,)

    def find(self, name: str) -> ModelFacts | None:
        """What the tables say of a model."""
        return find_facts(self.facts, name)

    def model(self, name: str) -> ObservedModel:
        """See :meth:`Wire.model`."""
        return observe(name, self.find(name))

    def codec(self, facts: ModelFacts | None) -> Codec:
        """The API that a model is used by."""
        other = isinstance(facts, OpenAIFacts) and facts.api == "responses"
        return self._responses if other else self._chat

    def listed(self, entry: dict[str, Any]) -> ObservedModel | None:
        """A model as an entry of the listing has it; ``None``: it is not of interest."""
        name = str(entry["id"])
        meta = {key: str(entry[key]) for key in ("owned_by", "shutdown_date") if entry.get(key)}
        created = entry.get("created")
        modified_at = datetime.fromtimestamp(created, UTC) if isinstance(created, int) and created > 0 else None
        model = observe(name, self.find(name), modified_at=modified_at, meta=meta)
        declared: dict[str, Evidence] = dict.fromkeys(meta, "declared")
        return structs.replace(model, evidence={**model.evidence, **declared})

    async def list_models(self) -> list[ObservedModel]:
        """See :meth:`Wire.list_models`. Pages are followed where a server has them.

        :raises BackendProtocolError: the pages go round in a circle.
        """
        models: dict[str, ObservedModel] = {}
        seen: set[str] = set()
        after = ""
        async with self._use() as session:
            while after not in seen and len(seen) < MAX_PAGES:
                seen.add(after)
                page = await self._page(session, {"after": after} if after else {})
                for entry in page.data:
                    if entry.get("id") and (model := self.listed(entry)) is not None:
                        models[model.name] = model
                last = page.last_id or (page.data[-1].get("id") if page.data else None)
                if not page.has_more or not last:
                    return list(models.values())
                after = str(last)
        raise BackendProtocolError(f"the listing of {self.type} does not end: page {after!r} again", backend=self.type)

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """See :meth:`Wire.stream`."""
        codec, names, body = self._prepare(call)
        decoder = codec.decoder(call, names)
        async with self._use() as session:
            response = await self._post(session, codec.path, codec.streaming(body))
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
                                return
                            yield part
                    for part in decoder.close():
                        yield part
            finally:
                await response.aclose()

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        """See :meth:`Wire.chat`."""
        codec, names, body = self._prepare(call)
        async with self._use() as session:
            answer = await self._answer(session, codec.path, body)
        return codec.decoder(call, names).whole(answer)

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """See :meth:`Wire.embed`. Source: https://platform.openai.com/docs/api-reference/embeddings"""
        body: dict[str, Any] = {"model": model.name, "input": list(texts), "encoding_format": "float"}
        if dimensions is not None:
            body[self.dimensions_field] = dimensions
        async with self._use() as session:
            answer = await self._answer(session, "/embeddings", body)
        said = msgspec.json.decode(answer, type=_Embeddings)
        ordered = sorted(said.data, key=lambda item: item.index)
        vectors = tuple(item.embedding for item in ordered)
        return EmbedResult(vectors=vectors, model=said.model or model.name, usage=read_usage(said.usage))

    def error(self, error: Exception, model: str) -> ModeldError:
        """See :meth:`Wire.error`."""
        return sdk_error(error, Place(self.type, self.base_url, model), self.dialect.codes)

    async def aclose(self) -> None:
        """See :meth:`Wire.aclose`."""
        await self._connections.aclose()

    def _prepare(self, call: Call) -> tuple[Codec, ToolNames, dict[str, Any]]:
        facts = self.find(call.model.name)
        codec = self.codec(facts)
        names = ToolNames(call.config.tools, self.dialect.name_limit)
        return codec, names, codec.build(call, names, facts)

    def _open(self) -> _Session:
        openai = require("openai", self.extra)
        client = openai.AsyncOpenAI(
            # The SDK wants one and would look for it in the environment; the headers below say what is sent.
            api_key=self._key or "none",
            base_url=self.base_url,
            max_retries=0,
            # A redirect would hand the conversation to another server, and the key only to some.
            http_client=self.options.http_client or openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        return _Session(client, self._own_headers(openai.Omit()))

    def _own_headers(self, omit: Any) -> dict[str, Any]:
        """Headers of every call. The SDK fills some from ``OPENAI_*`` variables: they are taken out again.

        Nothing of the environment may reach a server that a spec names.
        """
        lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
        return {
            **{name.strip(): omit for name, colon, _ in (line.partition(":") for line in lines) if colon},
            "OpenAI-Organization": omit,
            "OpenAI-Project": omit,
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._key}" if self._key else omit,
            **self.headers,
        }

    def _check_key(self) -> None:
        """:raises AuthenticationError: there is no key where one is needed, or it cannot stand in a header."""
        if not self._key and self.base_url == self.default_url:
            text = f"{self.type} needs an API key, and the backend has none"
            raise AuthenticationError(text, backend=self.type, status=0)
        if not (self._key.isascii() and self._key.isprintable()):
            text = f"the API key of {self.type} has characters that no key has; is it the right text?"
            raise AuthenticationError(text, backend=self.type, status=0)

    @contextlib.asynccontextmanager
    async def _use(self) -> AsyncIterator[_Session]:
        self._check_key()
        async with self._connections.use() as session:
            yield session

    async def _post(self, session: _Session, path: str, body: dict[str, Any]) -> httpx2.Response:
        """The response, its body unread.

        ``cast_to`` the HTTP library's response is the SDK's public way to the raw one: no wrapper, no parsing.
        """
        import httpx2
        import openai

        try:
            content = msgspec.json.encode(body)
        except (TypeError, RecursionError) as error:
            raise InvalidRequestError(f"the request is no JSON: {error}", parameter="tools") from error
        stream_cls: Any = openai.AsyncStream
        response = await session.client.post(
            path,
            cast_to=httpx2.Response,
            content=content,
            options={"headers": session.headers},
            stream=True,
            stream_cls=stream_cls,
        )
        return cast("httpx2.Response", response)

    async def _answer(self, session: _Session, path: str, body: dict[str, Any]) -> bytes:
        response = await self._post(session, path, body)
        try:
            self._check_type(response, "json")
            return await read_body(response, self.type)
        finally:
            await response.aclose()

    async def _page(self, session: _Session, params: dict[str, str]) -> _Page:
        import httpx2

        response = await session.client.get(
            "/models", cast_to=httpx2.Response, options={"headers": session.headers, "params": params}
        )
        self._check_type(response, "json")
        return msgspec.json.decode(response.content, type=_Page)

    def _check_type(self, response: httpx2.Response, wanted: str) -> None:
        """:raises BackendProtocolError: the answer is something else, such as the page of a proxy."""
        got = response.headers.get("content-type", "")
        if wanted not in got.lower():
            text = f"{self.type} at {self.base_url} answered with {got or 'no type'!r}, not with {wanted}"
            raise BackendProtocolError(text, backend=self.type, status=response.status_code)


async def _close(session: _Session) -> None:
    await session.client.close()


def _checked_url(backend: str, url: str) -> str:
    """``url`` without blanks and slashes around it.

    :raises InvalidRequestError: it is no HTTP URL.
    """
    url = url.strip().rstrip("/")
    if not is_http(url):
        raise InvalidRequestError(
            f"{backend} needs a base URL such as http://host:8000/v1, not {url!r}", parameter="base_url"
        )
    return url


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """A catalog of OpenAI, or of a server that speaks like it."""
    return WireCatalog(OpenAIWire(spec, options))
