"""Fakes of Gemini and of Vertex AI."""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs

import msgspec

from modeld.testing.google_requests import (
    BatchEmbed,
    GenerateContent,
    Predict,
    Thinking,
    VertexBatchEmbed,
    VertexEmbed,
    check,
    invalid,
    read,
    texts_of,
)
from modeld.testing.server import Answer, FakeServer, Recorded, Rejected, Reply, split, vectors_for
from modeld.testing.token_logprobs import candidate_entries, shares
from modeld.types import TokenLogprob

_STATUSES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_FINISH: Final = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "refused": "SAFETY"}

MODELS: Final[dict[str, Thinking | None]] = {
    "gemini-2.5-pro": Thinking(budget=(128, 32_768)),
    "gemini-2.5-flash": Thinking(budget=(1, 24_576), can_stop=True),
    "gemini-3.1-pro-preview": Thinking(levels=("low", "medium", "high"), signed=True),
    "gemini-3-flash-preview": Thinking(levels=("minimal", "low", "medium", "high"), signed=True),
    "gemini-4-argon": Thinking(levels=("low", "medium", "high"), signed=True),
    "gemini-embedding-001": None,
    "text-embedding-005": None,
}
"""Models that chat, with how they think, and models that embed."""


class FakeGemini(FakeServer):
    """The Gemini API, v1beta. Its listing has pages of three models, whatever is asked for."""

    page: ClassVar[int] = 3

    def __init__(self, *, key: str = "test-key") -> None:
        super().__init__(key=key)
        self.signatures: set[str] = set()
        """What it signed with, and so takes back."""

    async def respond(self, request: Recorded) -> Reply:
        """The answer of a method of ``models``."""
        self._authorize(request)
        if request.path == "/v1beta/models" and request.method == "GET":
            return self._list(request)
        name, _, method = request.path.removeprefix("/v1beta/models/").partition(":")
        if not request.path.startswith("/v1beta/models/") or request.method != "POST":
            raise Rejected("The requested URL was not found on this server.", status=404, code="NOT_FOUND")
        return self._call(request, name, method)

    def _authorize(self, request: Recorded) -> None:
        key = request.headers.get("x-goog-api-key")
        if not key:
            raise Rejected("Method doesn't allow unregistered callers", status=403, code="PERMISSION_DENIED")
        if key != self.key:
            raise Rejected("API key not valid. Please pass a valid API key.", code="API_KEY_INVALID")

    def _call(self, request: Recorded, name: str, method: str) -> Reply:
        if name not in MODELS:
            text = f"models/{name} is not found for API version v1beta, or is not supported for {method}."
            raise Rejected(text, status=404, code="NOT_FOUND")
        if request.headers.get("content-type") != "application/json":
            raise invalid("Content-Type must be application/json")
        thinking = MODELS[name]
        if method in ("generateContent", "streamGenerateContent") and thinking is not None:
            return self._generate(request, name, thinking, streams=method == "streamGenerateContent")
        if thinking is None:
            return self._embed(request, name, method)
        raise Rejected(f"models/{name} is not supported for {method}.", status=404, code="NOT_FOUND")

    def _list(self, request: Recorded) -> Reply:
        if request.query.keys() - {"pageSize", "pageToken"} or int(request.query.get("pageSize", 50)) > 1000:
            raise invalid("Invalid JSON payload received. Unknown name or page_size.")
        entries, token = self._page([self._entry(name) for name in MODELS], request)
        return _json({"models": entries} | token)

    def _page(self, entries: list[Any], request: Recorded) -> tuple[list[Any], dict[str, str]]:
        start = int(request.query.get("pageToken", "page+0").removeprefix("page+"))
        end = start + self.page
        # A token with a sign that has to be escaped.
        return entries[start:end], {"nextPageToken": f"page+{end}"} if end < len(entries) else {}

    def _entry(self, name: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": f"models/{name}", "version": "001", "displayName": name, "description": name}
        if (thinking := MODELS[name]) is None:
            methods = ["embedContent", "countTextTokens", "countTokens", "asyncBatchEmbedContent"]
            return entry | {"inputTokenLimit": 2048, "outputTokenLimit": 1, "supportedGenerationMethods": methods}
        methods = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
        entry |= {"inputTokenLimit": 1_048_576, "outputTokenLimit": 65_536, "supportedGenerationMethods": methods}
        return entry | {
            "temperature": 1,
            "topP": 0.95,
            "topK": 64,
            "maxTemperature": 2,
            "thinking": thinking is not None,
        }

    def _generate(self, request: Recorded, name: str, thinking: Thinking, *, streams: bool) -> Reply:
        asked = read(request.body, GenerateContent)
        check(asked, thinking, self.signatures)
        answer = self.next_answer()
        thoughts = answer.thinking if asked.generation_config.thinking_config.include_thoughts else ""
        signature = base64.b64encode(answer.signature.encode()).decode() if thinking.signed else ""
        self.signatures.add(signature)
        parts = list(_parts(answer, thoughts, signature, answer.pieces if streams else 1))
        frame = {"modelVersion": name, "responseId": f"resp-{len(self.requests)}"}
        if not streams:
            whole = _candidate(answer, parts) | _logprobs(asked, answer.logprobs)
            return _json({"candidates": [whole], "usageMetadata": _tokens(answer)} | frame)
        if request.query != {"alt": "sse"}:
            raise invalid("streams are asked for with alt=sse here")
        # The first chunk of a model that thinks is empty, and so is the last.
        steps: list[dict[str, Any]] = [
            {"content": {"parts": [part], "role": "model"}, "index": 0} for part in ({"text": ""}, *parts)
        ]
        texts = [step for step in steps if step["content"]["parts"][0].get("text")]
        for step, tokens in zip(texts, shares(answer.logprobs, len(texts)), strict=True):
            step |= _logprobs(asked, tokens)
        chunks = [{"candidates": [step], "usageMetadata": {"promptTokenCount": answer.usage.input}} for step in steps]
        chunks.append({"candidates": [_candidate(answer, [{"text": ""}])], "usageMetadata": _tokens(answer)})
        pieces = tuple(b"data: " + json.dumps(chunk | frame).encode() + b"\r\n\r\n" for chunk in chunks)
        return Reply(content_type="text/event-stream", pieces=pieces)

    def _embed(self, request: Recorded, name: str, method: str) -> Reply:
        if method != "batchEmbedContents":
            raise Rejected(f"models/{name} is not supported for {method}.", status=404, code="NOT_FOUND")
        asked = read(request.body, BatchEmbed).requests
        if len(asked) > 100:
            raise invalid("* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch")
        if any(one.model != f"models/{name}" for one in asked):
            raise invalid("* BatchEmbedContentsRequest.requests[0].model: unexpected model name format")
        texts = texts_of(one.content for one in asked)
        vectors = vectors_for(self.next_answer(), texts, asked[0].output_dimensionality)
        return _json({"embeddings": [{"values": vector} for vector in vectors]})

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """``code`` is a status of google.rpc.Code, the reason of an ErrorInfo, or the id of a quota."""
        error: dict[str, Any] = {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}
        if code in _STATUSES.values():
            error["status"] = code
        elif "Per" in code:
            violation = {"quotaMetric": "generate_content_free_tier_requests", "quotaId": code}
            error["details"] = [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.074824224s"},
            ]
        elif code:
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code, "domain": "googleapis.com"}
            error["details"] = [info]
        return json.dumps({"error": error}, indent=2).encode()

    def error_event(self, code: str, message: str) -> bytes:
        """The same object as an event."""
        return b"data: " + json.dumps(json.loads(self.error_body(503, code, message))).encode() + b"\r\n\r\n"


def _parts(answer: Answer, thoughts: str, signature: str, pieces: int) -> Iterator[dict[str, Any]]:
    """The parts of an answer; the signature is on the first call, or else on the last part."""
    made: list[dict[str, Any]] = [{"text": piece, "thought": True} for piece in split(thoughts, pieces)]
    made += [{"text": piece} for piece in split(answer.text, pieces)]
    if signature and not answer.tool_calls and not answer.refusal:
        made.append({"text": "", "thoughtSignature": signature})
    for index, call in enumerate(answer.tool_calls):
        # The service knows the name that it was sent.
        name = "".join(c if c.isalnum() or c in "_-" else "_" for c in call.function.name)
        function = {"name": name, "args": json.loads(call.function.arguments), "id": f"fc-{index}-{call.id}"}
        made.append({"functionCall": function} | ({"thoughtSignature": signature} if signature and not index else {}))
    yield from made


def _candidate(answer: Answer, parts: list[dict[str, Any]]) -> dict[str, Any]:
    if answer.refusal:
        rating = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH", "blocked": True}
        return {"finishReason": "SAFETY", "finishMessage": answer.refusal, "index": 0, "safetyRatings": [rating]}
    content: dict[str, Any] = {"role": "model"} | ({"parts": parts} if parts else {})
    return {"content": content, "finishReason": _FINISH.get(answer.finish_reason, "OTHER"), "index": 0}


def _logprobs(asked: GenerateContent, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """What was asked for of the tokens."""
    config = asked.generation_config
    if not config.response_logprobs or not tokens:
        return {}
    return {"logprobsResult": candidate_entries(tokens, config.logprobs or 0)}


def _tokens(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    thoughts = usage.reasoning or 0
    counts: dict[str, Any] = {"promptTokenCount": usage.input, "candidatesTokenCount": (usage.output or 0) - thoughts}
    if usage.cache_read:
        counts["cachedContentTokenCount"] = usage.cache_read
    if thoughts:
        counts["thoughtsTokenCount"] = thoughts
    details = [{"modality": "TEXT", "tokenCount": usage.input}]
    return counts | {"totalTokenCount": (usage.input or 0) + (usage.output or 0), "promptTokensDetails": details}


def _json(value: Any) -> Reply:
    return Reply(content_type="application/json; charset=UTF-8", body=json.dumps(value, indent=2).encode())


class FakeVertex(FakeGemini):
    """Vertex AI in project ``p1``, location ``us-central1``, with the endpoint that gives tokens to service accounts.

    ``key`` is what tokens are made of: changed later, those given before are not taken any more.
    """

    project: ClassVar[str] = "p1"

    def __init__(self, *, key: str = "test-key") -> None:
        super().__init__(key=key)
        self._issued = f"ya29.{key}"
        self.tokens = 0
        """Tokens it gave."""

    @property
    def base_url(self) -> str:
        """What ``BackendSpec.base_url`` has to be."""
        return f"{self.url}/v1/projects/{self.project}/locations/us-central1"

    def service_account(self) -> str:
        """The JSON text of a service account whose tokens come from this server."""
        return json.dumps(
            {
                "type": "service_account",
                "project_id": self.project,
                "private_key_id": "k1",
                "private_key": _private_key()[1],
                "client_email": "robot@p1.iam.gserviceaccount.com",
                "client_id": "1",
                "token_uri": f"{self.url}/token",
            }
        )

    async def respond(self, request: Recorded) -> Reply:
        """The answer of a method of a publisher's models, or a token."""
        if request.path == "/token":
            return self._token(request)
        self._authorize(request)
        if request.path == "/v1beta1/publishers/google/models" and request.method == "GET":
            return self._list(request)
        where = f"/projects/{self.project}/locations/us-central1/publishers/google/models/"
        version, _, rest = request.path.removeprefix("/").partition("/")
        name, _, method = f"/{rest}".removeprefix(where).partition(":")
        if version not in ("v1", "v1beta1") or not f"/{rest}".startswith(where) or request.method != "POST":
            raise Rejected("The requested URL was not found on this server.", status=404, code="NOT_FOUND")
        return self._call(request, name, method)

    def _authorize(self, request: Recorded) -> None:
        if request.headers.get("authorization") != f"Bearer ya29.{self.key}" or "x-goog-api-key" in request.headers:
            text = "Request had invalid authentication credentials. Expected OAuth 2 access token."
            raise Rejected(text, status=401, code="UNAUTHENTICATED")

    def _entry(self, name: str) -> dict[str, Any]:
        stage = {"launchStage": "GA", "versionState": "VERSION_STATE_STABLE", "openSourceCategory": "PROPRIETARY"}
        return {"name": f"publishers/google/models/{name}", "versionId": "default"} | stage

    def _list(self, request: Recorded) -> Reply:
        if request.query.keys() - {"pageSize", "pageToken"} or int(request.query.get("pageSize", 50)) > 100:
            raise invalid("Request contains an invalid argument.")
        entries, token = self._page([self._entry(name) for name in MODELS], request)
        return _json({"publisherModels": entries} | token)

    def _embed(self, request: Recorded, name: str, method: str) -> Reply:
        if method == "predict" and not name.startswith("gemini"):
            asked = read(request.body, Predict)
            texts = [instance.content for instance in asked.instances]
            vectors = vectors_for(self.next_answer(), texts, asked.parameters.output_dimensionality)
            counts = {"truncated": False, "token_count": 4}
            embeddings = [{"values": vector, "statistics": counts} for vector in vectors]
            return _json({"predictions": [{"embeddings": one} for one in embeddings], "metadata": {}})
        if method == "embedContent":
            one = read(request.body, VertexEmbed)
            size = one.embed_content_config.output_dimensionality
            (vector,) = vectors_for(self.next_answer(), texts_of([one.content]), size)
            usage = {"promptTokenCount": 4, "totalTokenCount": 4}
            return _json({"embedding": {"values": vector}, "usageMetadata": usage, "truncated": False})
        if method == "batchEmbedContents":
            many = read(request.body, VertexBatchEmbed).requests
            size = many[0].embed_content_config.output_dimensionality
            vectors = vectors_for(self.next_answer(), texts_of(each.content for each in many), size)
            return _json({"embeddings": [{"values": vector} for vector in vectors]})
        raise Rejected(f"{name} is not supported for {method}.", status=404, code="NOT_FOUND")

    def _token(self, request: Recorded) -> Reply:
        """A token for a signed assertion (RFC 7523, https://developers.google.com/identity/protocols/oauth2)."""
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        claims = _verified(form.get("assertion", ""))
        # The audience is Google's own endpoint, whatever the account names.
        wanted = {"iss": "robot@p1.iam.gserviceaccount.com", "aud": "https://oauth2.googleapis.com/token"}
        scope = "https://www.googleapis.com/auth/cloud-platform"
        grant = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        fine = claims is not None and claims.items() >= wanted.items() and scope in claims["scope"].split()
        if request.method != "POST" or form.get("grant_type") != grant or not fine:
            body = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            return Reply(status=400, body=json.dumps(body).encode())
        self.tokens += 1
        return _json({"access_token": self._issued, "expires_in": 3599, "token_type": "Bearer"})


@functools.cache
def _private_key() -> tuple[Any, str]:
    """A key for tests, and its text: made here, because a key in a file looks like a leak."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key, text.decode()


def _verified(assertion: str) -> dict[str, Any] | None:
    """The claims of a token signed with our key that holds now."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    signed, _, signature = assertion.rpartition(".")
    try:
        _private_key()[0].public_key().verify(
            _unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        claims: dict[str, Any] = msgspec.json.decode(_unpadded(signed.partition(".")[2]))
    except (InvalidSignature, ValueError):
        return None
    return claims if claims["iat"] - 60 <= time.time() < claims["exp"] else None


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
