"""A fake of vLLM's server. The helper that starts a real one in a container is :mod:`modeld.testing.vllm`.

Sources, all below ``vllm/entrypoints`` of https://github.com/vllm-project/vllm: ``openai/chat_completion/protocol.py``
and ``serving.py``, ``openai/engine/protocol.py``, ``pooling/embed``; https://docs.vllm.ai/en/latest/features/.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from modeld.testing.compatible import (
    DONE,
    CompatibleRequest,
    FakeCompatible,
    Flat,
    NamedChoice,
    check_logprobs,
    dump,
    event,
)
from modeld.testing.server import Answer, Rejected, split
from modeld.types import Usage

CHAT_MODEL: Final = "meta-llama/Llama-3.1-8B-Instruct"
THINKING_MODEL: Final = "Qwen/Qwen3-8B"
OSS_MODEL: Final = "openai/gpt-oss-20b"
VISION_MODEL: Final = "Qwen/Qwen2.5-VL-7B-Instruct"
EMBED_MODEL: Final = "BAAI/bge-m3"


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False


class VLLMRequest(CompatibleRequest, forbid_unknown_fields=True, kw_only=True):
    """What ``/v1/chat/completions`` takes, of what has a place in :class:`modeld.types.ChatConfig`.

    The server itself logs and ignores a field it does not know; here it is an error.
    """

    seed: int | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | UnsetType = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | UnsetType = UNSET
    chat_template_kwargs: dict[str, bool] | UnsetType = UNSET
    stream_options: StreamOptions | UnsetType = UNSET


class FakeVLLM(FakeCompatible):
    """A vLLM server. It lists several models, as a router in front of servers does; a server itself has one.

    :param key: ``""``: it was started without ``--api-key``, and takes every request.
    :param legacy: speaks as versions of 2024 and 2025 did: ``reasoning_content``, and the fields of an error on top.
    :param embed_refusal: how a model that generates refuses vectors: 400, 501 or 404, by version.
    """

    request_type = VLLMRequest

    def __init__(self, *, key: str = "test-key", legacy: bool = False, embed_refusal: int = 400) -> None:
        super().__init__(key=key)
        self.legacy = legacy
        self.embed_refusal = embed_refusal
        self.probes = 0
        """Embedding requests for models that have no vectors."""

    def cards(self, query: Flat) -> list[Flat]:
        """See :meth:`FakeCompatible.cards`."""
        return [
            {
                "id": name,
                "object": "model",
                "created": 1700000000,
                "owned_by": "vllm",
                "root": name,
                "parent": None,
                "max_model_len": length,
                "permission": [],
            }
            for name, length in (
                (CHAT_MODEL, 131072),
                (THINKING_MODEL, 40960),
                (OSS_MODEL, 131072),
                (VISION_MODEL, 128000),
                (EMBED_MODEL, 8192),
            )
        ]

    def check(self, request: Any, messages: list[Any]) -> None:
        """See :meth:`FakeCompatible.check`."""
        if request.model == EMBED_MODEL:
            raise Rejected("The model does not support Chat Completions API")
        if request.stream_options is not UNSET and not request.stream:
            raise Rejected("Stream options can only be defined when `stream=True`.")
        check_logprobs(request)
        if request.tools is UNSET and request.tool_choice not in (UNSET, "none"):
            raise Rejected("When using `tool_choice`, `tools` must be set.")
        if request.max_tokens is not UNSET and request.max_tokens < 1:
            raise Rejected(f"max_tokens must be at least 1, got {request.max_tokens}.")
        for name, low, high in (("temperature", 0, 100), ("min_p", 0, 1), ("repetition_penalty", 1e-9, 100)):
            value = getattr(request, name)
            if value is not UNSET and not low <= value <= high:
                raise Rejected(f"{name} must be in [{low}, {high}], got {value}.")

    def embeds(self, model: str) -> None:
        """See :meth:`FakeCompatible.embeds`."""
        if model != EMBED_MODEL:
            self.probes += 1
            raise Rejected("The model does not support Embeddings API", status=self.embed_refusal)

    def message(self, answer: Answer) -> Flat:
        """See :meth:`FakeCompatible.message`. All fields are there, most of them null."""
        message = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
        thinking = {"reasoning_content" if self.legacy else "reasoning": answer.thinking or None}
        return {**super().message(answer), **message, **thinking}

    def thinking_deltas(self, answer: Answer) -> list[Flat]:
        """See :meth:`FakeCompatible.thinking_deltas`."""
        field = "reasoning_content" if self.legacy else "reasoning"
        return [{field: piece} for piece in split(answer.thinking, answer.pieces)]

    def usage(self, usage: Usage) -> Flat:
        """See :meth:`FakeCompatible.usage`. Details come with ``--enable-prompt-tokens-details`` only."""
        details = None if usage.cache_read is None else {"cached_tokens": usage.cache_read}
        return {**super().usage(usage), "prompt_tokens_details": details}

    def choice(self, **fields: Any) -> Flat:
        """See :meth:`FakeCompatible.choice`."""
        ends = {"stop_reason": None, "token_ids": None} if fields.get("finish_reason") else {}
        return {"index": 0, **fields, "logprobs": None, **ends}

    def pieces(self, request: Any, answer: Answer) -> list[bytes]:
        """See :meth:`FakeCompatible.pieces`. Usage comes where it is asked for."""
        pieces = super().pieces(request, answer)
        wanted = request.stream_options is not UNSET and request.stream_options.include_usage
        return pieces if wanted else [*pieces[:-2], DONE]

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_body`. Without the key the server says a word, not an object."""
        if status == 401:
            return dump({"error": message})
        if self.legacy:
            return dump({"object": "error", **_error(status, code, message)})
        return dump({"error": _error(status, code, message)})

    def error_event(self, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_event`."""
        return event({"error": _error(500, code, message)}) + DONE


def _error(status: int, code: str, message: str) -> Flat:
    names = {404: "NotFoundError", 501: "NotImplementedError", 429: "Too Many Requests", 503: "ServiceUnavailableError"}
    kind = names.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    return {"message": message, "type": code or kind, "param": None, "code": status}
