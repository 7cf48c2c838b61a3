"""Ollama: ``/api/chat``, ``/api/embed``, ``/api/tags`` and ``/api/show``, through the client of the SDK ``ollama``.

Source: https://docs.ollama.com/api. A conversation that does not fit its window is an error, never cut in silence,
unless ``truncate`` or ``shift`` ask for it.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import msgspec
from msgspec import Struct, structs

from modeld.errors import (
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    CapacityError,
    ContextOverflowError,
    DeadlineExceededError,
    InvalidRequestError,
    ModeldError,
    NotSupportedError,
)
from modeld.providers.bodies import read_body
from modeld.providers.facts import find_facts, observe
from modeld.providers.failures import Codes, Failure, failure_error, header_key, is_http
from modeld.providers.ollama_messages import OPTIONS, ChatRequest, FrameDecoder, FrameError
from modeld.providers.ollama_models import (
    FACTS,
    Card,
    Shown,
    Tag,
    Tags,
    Windows,
    make_card,
    observed,
)
from modeld.repository.catalog import CatalogOptions
from modeld.repository.connections import Connections, require
from modeld.repository.options import make_rules, mapped, native, refused
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, EmbedResult, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.types import StreamPart, Usage

if TYPE_CHECKING:
    import httpx

DEFAULT_URL: Final = "http://127.0.0.1:11434"
MAX_LOOKUPS: Final = 8
LOOKUP_TIMEOUT: Final = 30.0
"""Seconds for what loads no model. Other requests have no limit of their own: loading takes minutes."""

RULES: Final = make_rules(
    **{option: native(f"options.{field}") for option, field in OPTIONS.items()},
    tools=native("tools"),
    tool_choice=mapped("tools", "auto is what always holds; none sends no tools; required and names are an error"),
    parallel_tool_calls=refused("there is no such field; a model calls as many tools at once as it likes"),
    response_format=mapped("format", "the schema itself, or the word json; always strict; the name is not sent"),
    think=mapped(
        "think",
        "auto sends nothing; off is false and high is true on models that only switch; models with levels take those "
        "that /api/show lists (max is xhigh); a level a model lacks is an error",
    ),
    logprobs=native("logprobs"),
    top_logprobs=native("top_logprobs"),
    shift=native("shift"),
    truncate=native("truncate"),
    images=native("messages.images"),
)

CODES: Final[Codes] = {
    "exceed_context_size_error": ContextOverflowError,
    "unsupported": NotSupportedError,
    "out_of_memory": CapacityError,
    "no_api": BackendError,
}
"""``exceed_context_size_error`` is the engine's own; the others stand for sentences, in ``SENTENCES``."""

SENTENCES: Final = (
    # llm/llama_server.go and server/routes.go of the server; the vendor has no codes.
    (
        re.compile(
            r"exceeds? (?:the )?(?:available |maximum )?context (?:size|length)"
            r"|prompt is longer than the context|larger than the max context size"
        ),
        "exceed_context_size_error",
    ),
    (re.compile(r"does not support (?P<feature>\w+)"), "unsupported"),
    (re.compile(r"(?P<feature>think) value \S+ is not supported"), "unsupported"),
    (re.compile(r"requires more system memory"), "out_of_memory"),
)
COUNTS: Final = re.compile(r"request \((?P<tokens>\d+) tokens\) exceeds the available context size \((?P<window>\d+)")

T = TypeVar("T")


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """:raises InvalidRequestError: the URL is none, or the HTTP client is of another library than the SDK's."""
    return WireCatalog(OllamaWire(spec, options))


class _Embedded(Struct, frozen=True):
    embeddings: tuple[tuple[float, ...], ...] = ()
    model: str = ""
    prompt_eval_count: int | None = None


class _Failed(Struct, frozen=True):
    error: Any = None
    signin_url: str | None = None


class OllamaWire(Wire):
    """One Ollama server."""

    type: ClassVar[str] = "ollama"

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        self.rules = RULES
        self._url = _root(spec.base_url)
        given = options.http_client
        # Not imported for this: what is an instance of a class has its module loaded.
        library = sys.modules.get("httpx")
        if given is not None and (library is None or not isinstance(given, library.AsyncClient)):
            kind = f"{type(given).__module__}.{type(given).__qualname__}"
            text = f"the SDK of ollama is built on httpx: http_client must be an httpx.AsyncClient, not {kind}"
            raise InvalidRequestError(text, parameter="http_client")
        self._connections = Connections(self._open, None if given is not None else Connection.aclose)
        self._cards: dict[str, Card] = {}
        self._windows = Windows()

    def _open(self) -> Connection:
        key = header_key(self.type, self.spec.api_key)
        return Connection(self._url, key, self.options.http_client)

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """Root of the server, without ``/api``."""
        return (self._url,)

    def model(self, name: str) -> ObservedModel:
        """What our table says; ``/api/show`` is asked at the first call."""
        return observe(name, find_facts(FACTS, name))

    async def list_models(self) -> list[ObservedModel]:
        """Installed models, each looked up, at most 8 at a time. One that cannot be looked up is listed without."""
        async with self._connections.use() as connection:
            tags = await connection.ask("GET", "/api/tags", Tags)
            limit = asyncio.Semaphore(MAX_LOOKUPS)

            async def look_up(tag: Tag) -> ObservedModel:
                name = tag.model or tag.name
                async with limit:
                    try:
                        shown = await self._show(connection, name)
                    except Exception as error:
                        reason = error.message if isinstance(error, ModeldError) else f"{type(error).__name__}: {error}"
                        listed = observed(tag, None)
                        return structs.replace(listed, meta={**listed.meta, "error": f"not looked up: {reason}"})
                    self._cards[name] = make_card(name, shown)
                    return observed(tag, shown)

            return list(await asyncio.gather(*[look_up(tag) for tag in tags.models or () if tag.model or tag.name]))

    async def _show(self, connection: Connection, name: str) -> Shown:
        return await connection.ask("POST", "/api/show", Shown, {"model": name}, model=name)

    async def _card(self, connection: Connection, name: str) -> Card:
        """Looked up once; a listing looks it up again."""
        if name not in self._cards:
            self._cards[name] = make_card(name, await self._show(connection, name))
        return self._cards[name]

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """See :meth:`Wire.stream`."""
        async with self._answer(call, stream=True) as (response, decoder):
            async for chunk in response.aiter_bytes():
                for part in decoder.feed(chunk):
                    yield part
            for part in decoder.finish():
                yield part

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        """See :meth:`Wire.chat`."""
        async with self._answer(call, stream=False) as (response, decoder):
            parts = decoder.whole(await read_body(response, self.type))
            if not decoder.ended:
                raise BackendProtocolError("ollama gave an answer that is not done", backend=self.type)
            return parts

    @asynccontextmanager
    async def _answer(self, call: Call, *, stream: bool) -> AsyncIterator[tuple[httpx.Response, FrameDecoder]]:
        """The open answer to ``call`` and what decodes it."""
        name = call.model.name
        async with self._connections.use() as connection:
            card = await self._card(connection, name)
            request = ChatRequest(call, card)
            window = self._windows.fit(name, request.tokens + request.room, card)
            try:
                response = await connection.send("POST", "/api/chat", request.encode(window, stream), name)
            except ContextOverflowError as error:
                # More tokens than were thought: once more, with the server's count or the most it can be.
                tokens = int(error.details.get("tokens") or request.most_tokens)
                if 0 < card.context_length < tokens:
                    raise
                wider = self._windows.fit(name, tokens + request.room, card)
                if wider <= window:
                    raise
                window = wider
                response = await connection.send("POST", "/api/chat", request.encode(window, stream), name)
            decoder = FrameDecoder(request, window)
            try:
                yield response, decoder
            finally:
                await response.aclose()
            if decoder.full:
                # The next call gets a larger window, where the model has one.
                self._windows.fit(name, window + 1, card)

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """See :meth:`Wire.embed`. A text that does not fit is an error."""
        body: dict[str, Any] = {"model": model.name, "input": list(texts), "truncate": False}
        if dimensions is not None:
            body["dimensions"] = dimensions
        async with self._connections.use() as connection:
            card = await self._card(connection, model.name)
            # One token for each byte: texts are short, and an embedding model is loaded in a moment.
            window = self._windows.fit(model.name, max(len(text.encode()) for text in texts), card)
            body["options"] = {"num_ctx": window}
            found = await connection.ask("POST", "/api/embed", _Embedded, body, model=model.name, quick=False)
        usage = Usage(input=found.prompt_eval_count, source="reported")
        return EmbedResult(vectors=found.embeddings, model=found.model or model.name, usage=usage)

    def error(self, error: Exception, model: str) -> ModeldError:
        """See :meth:`Wire.error`."""
        import httpx

        details = {"backend": self.type, "model": model, "status": 0, "vendor_code": "", "request_id": ""}
        if isinstance(error, FrameError):
            return _failure(error.error, "", 0, {}, model)
        if isinstance(error, httpx.TimeoutException):
            return DeadlineExceededError(f"ollama at {self._url} did not answer in time", **details)
        if isinstance(error, httpx.TransportError):
            text = f"ollama at {self._url} cannot be reached or hung up ({error or type(error).__name__})"
            return BackendUnavailableError(f"{text}; `ollama serve` starts it", retry_after=None, **details)
        if isinstance(error, msgspec.MsgspecError | UnicodeDecodeError | httpx.DecodingError):
            return BackendProtocolError(f"an answer of ollama at {self._url} was not understood: {error}", **details)
        return BackendError(f"ollama at {self._url} failed: {error or type(error).__name__}", **details)

    async def aclose(self) -> None:
        """See :meth:`Wire.aclose`."""
        await self._connections.aclose()


class Connection:
    """The SDK's client, for one event loop.

    Its methods are not used, its HTTP client with address, headers and key is: the SDK's types of requests have no
    ``truncate`` and ``shift`` and drop keywords of tools' schemas; its types of answers drop the levels of thinking
    and the headers of errors, and a stream of them costs several times what decoding the bytes does.
    """

    def __init__(self, url: str, key: str, given: httpx.AsyncClient | None) -> None:
        sdk = require("ollama", "ollama")
        import httpx

        headers = {"authorization": f"Bearer {key}"} if key else None
        own: httpx.AsyncClient = sdk.AsyncClient(
            url, follow_redirects=False, headers=headers, timeout=httpx.Timeout(None, connect=10.0)
        )._client
        if not key:
            # The SDK takes OLLAMA_API_KEY from the environment, which may be another server's.
            own.headers.pop("authorization", None)
        self._root = str(own.base_url).rstrip("/")
        self._headers = dict(own.headers)
        self._http = given if given is not None else own
        self._lookup: Any = LOOKUP_TIMEOUT if given is None else httpx.USE_CLIENT_DEFAULT
        self._default: Any = httpx.USE_CLIENT_DEFAULT

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Mapping[str, Any] | None = None,
        *,
        model: str = "",
        quick: bool = True,
    ) -> T:
        """The whole answer to a request."""
        content = None if body is None else msgspec.json.encode(body)
        response = await self.send(method, path, content, model, quick=quick)
        try:
            return msgspec.json.decode(await read_body(response, "ollama"), type=kind)
        finally:
            await response.aclose()

    async def send(
        self, method: str, path: str, content: bytes | None, model: str, *, quick: bool = False
    ) -> httpx.Response:
        """The open response, which the caller has to close.

        :raises ModeldError: the server says that it failed. :raises BackendProtocolError: what comes is no JSON.
        """
        timeout = self._lookup if quick else self._default
        request = self._http.build_request(
            method, self._root + path, content=content, headers=self._headers, timeout=timeout
        )
        response = await self._http.send(request, stream=True)
        try:
            if not response.is_success:
                raise await _refusal(response, model)
            if "json" not in (kind := response.headers.get("content-type", "")):
                raise BackendProtocolError(
                    f"{self._root} gave {kind or 'no content type'!r} where ollama gives JSON", backend="ollama"
                )
        except BaseException:
            await response.aclose()
            raise
        return response


async def _refusal(response: httpx.Response, model: str) -> ModeldError:
    """The error that a failed response is."""
    text = (await read_body(response, "ollama")).decode(errors="replace")
    headers = {name.lower(): value for name, value in response.headers.items()}
    try:
        failed = msgspec.json.decode(text, type=_Failed)
    except msgspec.MsgspecError:
        failed = _Failed()
    signin = f" (sign in: {failed.signin_url})" if failed.signin_url else ""
    error = failed.error if failed.error is not None else text
    if failed.error is None and response.status_code == 404:
        error = {"message": f"{response.url} is no address of ollama's API: {text}", "type": "no_api"}
    return _failure(error, signin, response.status_code, headers, model)


def _failure(said: Any, more: str, status: int, headers: Mapping[str, str], model: str) -> ModeldError:
    """``said`` is a sentence, the engine's own error as JSON in a string, or an object."""
    message, code = _words(said)
    details: dict[str, Any] = {}
    for pattern, name in SENTENCES:
        if code not in CODES and (found := pattern.search(message)):
            code, details = name, found.groupdict()
    if found := COUNTS.search(message):
        details = {key: int(value) for key, value in found.groupdict().items()}
    known = code if code in CODES else ""
    if status == 404 and not known:
        more += f"; `ollama pull {model}` gets it"
    error = failure_error(
        "ollama", model, Failure(message=message + more, status=status, code=known, headers=headers), CODES
    )
    return type(error)(error.message, **{**error.details, **details}) if details else error


def _words(said: Any, depth: int = 0) -> tuple[str, str]:
    """The sentence and the type of an error. The server wraps its engine's JSON in a string, sometimes twice."""
    if isinstance(said, str) and said.lstrip().startswith("{") and depth < 4:
        try:
            return _words(msgspec.json.decode(said), depth + 1)
        except msgspec.MsgspecError:
            return said, ""
    if isinstance(said, dict) and depth < 4:
        if isinstance(said.get("error"), str | dict):
            return _words(said["error"], depth + 1)
        return str(said.get("message") or said), str(said.get("type") or "")
    return str(said), ""


def _root(url: str) -> str:
    """``url`` without ``/api`` and slashes at its end; the vendor's page gives both forms."""
    url = url.strip() or DEFAULT_URL
    url = url if "://" in url else f"http://{url}"
    if not is_http(url):
        raise InvalidRequestError(
            f"ollama needs the address of a server, such as {DEFAULT_URL}, not {url!r}", parameter="base_url"
        )
    return url.rstrip("/").removesuffix("/api").rstrip("/")
