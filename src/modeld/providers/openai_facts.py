"""What OpenAI's pages say of its models: its listing gives names and dates only.

``source`` is the vendor's page. It could not be opened on the day in ``checked``; that day the rows were compared with
the constants and comments of the vendor's SDK (``openai`` 3.54: ``ChatModel`` and ``ResponsesModel`` for the API,
``Reasoning`` for efforts, ``CompletionCreateParams`` for ``stop``), with what others quote of the pages, and with error
messages in public issues. Where these differ, or say nothing, a fact is left out: it is ``None``, not a guess.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from modeld.providers.chat_completions import EFFORTS, ModelFacts

_CHECKED: Final = "2026-11-22"
_PAGES: Final = "https://developers.openai.com/api/docs/models/"


class OpenAIFacts(ModelFacts, frozen=True, kw_only=True):
    """A family of OpenAI's.

    :param api: the only one the model has; of two, the one that shows its thinking and takes it back.
    """

    api: Literal["chat", "responses"] = "chat"


SAMPLING: Final = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs")
"""Fixed for models that think. https://github.com/simonw/llm/issues/731 quotes the errors."""

_O_SERIES: Final = (*SAMPLING, "parallel_tool_calls")
"""https://github.com/evalstate/fast-agent/issues/279 quotes the error for parallel_tool_calls."""


def _efforts(first: str, last: str) -> dict[str, str]:
    """The levels from ``first`` to ``last``, as the vendor calls them."""
    levels = list(EFFORTS)
    return {level: EFFORTS[level] for level in levels[levels.index(first) : levels.index(last) + 1]}


_NOT_MINIMAL: Final = {level: word for level, word in EFFORTS.items() if level != "minimal"}
_UP_TO_HIGH: Final = {level: word for level, word in _NOT_MINIMAL.items() if level != "xhigh"}


def _thinks(match: str, page: str, efforts: dict[str, str] | None, **more: Any) -> OpenAIFacts:
    """A model that thinks, by the Responses API, with pictures, and with sampling of its own."""
    common = {"can_think": True, "can_vision": True, "can_chat": True, "api": "responses", "refuses": SAMPLING}
    return OpenAIFacts(match=match, source=_PAGES + page, checked=_CHECKED, efforts=efforts, **{**common, **more})


def _answers(match: str, page: str, context: int | None, output: int | None, **more: Any) -> OpenAIFacts:
    """A model that does not think."""
    common = {"can_think": False, "can_vision": True, "can_chat": True, "efforts": {}}
    window = {"context_length": context, "max_output_tokens": output}
    return OpenAIFacts(match=match, source=_PAGES + page, checked=_CHECKED, **{**common, **window, **more})


def _other(match: str, page: str = "", **more: Any) -> OpenAIFacts:
    """A model for something else: speech, pictures, films, one that needs a hosted tool, or plain completions."""
    return OpenAIFacts(match=match, source=_PAGES + page, checked=_CHECKED, can_chat=False, **more)


_GPT_5: Final = {"context_length": 400_000, "max_output_tokens": 128_000}
_O: Final = {"context_length": 200_000, "max_output_tokens": 100_000}
_UNLESS_NONE: Final = {"unless_effort": "none"}
_PRO: Final = _efforts("medium", "xhigh")
_O_EFFORTS: Final = _efforts("low", "high")

FACTS: Final[tuple[OpenAIFacts, ...]] = (
    _other("*realtime*", "gpt-realtime"),
    _other("*audio*", "gpt-audio"),
    _other("*transcribe*", "gpt-4o-transcribe"),
    _other("*-tts*", "gpt-4o-mini-tts"),
    _other("tts-*", "tts-1"),
    _other("whisper-*", "whisper-1"),
    _other("dall-e-*", "dall-e-3"),
    _other("*gpt-image-*", "gpt-image-1"),
    _other("sora-*", "sora-2"),
    _other("*moderation*", "omni-moderation-latest"),
    _other("*-deep-research*", "o3-deep-research", api="responses"),
    _other("computer-use-preview*", "computer-use-preview", api="responses"),
    _other("gpt-3.5-turbo-instruct*", "gpt-3.5-turbo-instruct"),
    _other("babbage-*", "babbage-002"),
    _other("davinci-*", "davinci-002"),
    _other("text-embedding-*", "text-embedding-3-small", can_embed=True, context_length=8192),
    # The fifth generation and later. Of the versions with a number only those from 5.1 on can leave thinking out.
    OpenAIFacts(
        match="gpt-5*-chat*",
        source=_PAGES + "gpt-5-chat-latest",
        checked=_CHECKED,
        context_length=128_000,
        max_output_tokens=16_384,
        can_chat=True,
        can_vision=True,
    ),
    _thinks("gpt-5-pro*", "gpt-5-pro", _efforts("high", "high"), context_length=400_000, max_output_tokens=272_000),
    _thinks("gpt-5.2-pro*", "gpt-5.2-pro", _PRO, **_GPT_5),
    _thinks("gpt-5.4-pro*", "gpt-5.4-pro", _PRO, max_output_tokens=128_000),
    _thinks("gpt-5.5-pro*", "gpt-5.5-pro", _PRO, max_output_tokens=128_000),
    _thinks("gpt-5.1-codex-max*", "gpt-5.1-codex-max", _efforts("low", "xhigh"), **_GPT_5),
    _thinks("gpt-5-codex*", "gpt-5-codex", _O_EFFORTS, **_GPT_5),
    _thinks("gpt-5.1-codex*", "gpt-5.1-codex", _O_EFFORTS, **_GPT_5),
    _thinks("gpt-5.*-codex*", "gpt-5.2-codex", _efforts("low", "xhigh"), **_GPT_5),
    _thinks("gpt-5.1*", "gpt-5.1", _UP_TO_HIGH, default_effort="none", **_UNLESS_NONE, **_GPT_5),
    _thinks("gpt-5.2*", "gpt-5.2", _NOT_MINIMAL, default_effort="none", **_UNLESS_NONE, **_GPT_5),
    _thinks("gpt-5.4-mini*", "gpt-5.4-mini", _NOT_MINIMAL, default_effort="none", **_UNLESS_NONE, **_GPT_5),
    _thinks("gpt-5.4-nano*", "gpt-5.4-nano", _NOT_MINIMAL, default_effort="none", **_UNLESS_NONE, **_GPT_5),
    # Third parties give three different windows for 5.4, and none at all for the later ones.
    _thinks("gpt-5.4*", "gpt-5.4", _NOT_MINIMAL, default_effort="none", max_output_tokens=128_000, **_UNLESS_NONE),
    _thinks("gpt-5.5*", "gpt-5.5", _NOT_MINIMAL, max_output_tokens=128_000, **_UNLESS_NONE),
    _thinks("gpt-5.6*", "gpt-5.6-sol", _NOT_MINIMAL, **_UNLESS_NONE),
    _thinks("gpt-5.*", "", None, **_UNLESS_NONE),
    _thinks("gpt-5*", "gpt-5", _efforts("minimal", "high"), default_effort="medium", **_GPT_5),
    _thinks("gpt-6*", "gpt-6-astra", _efforts("low", "xhigh")),
    OpenAIFacts(match="gpt-daybreak-*", source=_PAGES, checked=_CHECKED, can_chat=True, api="responses"),
    OpenAIFacts(match="gpt-rosalind-*", source=_PAGES, checked=_CHECKED, can_chat=True, api="responses"),
    _thinks("codex-mini-latest", "codex-mini-latest", _O_EFFORTS, default_effort="medium", **_O),
    # The o series. Chat Completions has it, where it does not show what it thinks.
    _thinks("o1-pro*", "o1-pro", _O_EFFORTS, refuses=_O_SERIES, **_O),
    _thinks("o3-pro*", "o3-pro", _O_EFFORTS, refuses=_O_SERIES, **_O),
    _thinks(
        "o1-mini*",
        "o1-mini",
        {},
        api="chat",
        refuses=_O_SERIES,
        can_vision=False,
        context_length=128_000,
        max_output_tokens=65_536,
    ),
    _thinks(
        "o1-preview*",
        "o1-preview",
        {},
        api="chat",
        refuses=_O_SERIES,
        can_vision=False,
        context_length=128_000,
        max_output_tokens=32_768,
    ),
    _thinks("o3-mini*", "o3-mini", _O_EFFORTS, api="chat", refuses=_O_SERIES, can_vision=False, **_O),
    _thinks("o1", "o1", _O_EFFORTS, api="chat", refuses=_O_SERIES, **_O),
    _thinks("o1-20*", "o1", _O_EFFORTS, api="chat", refuses=_O_SERIES, **_O),
    _thinks("o3", "o3", _O_EFFORTS, api="chat", refuses=(*_O_SERIES, "stop"), **_O),
    _thinks("o3-20*", "o3", _O_EFFORTS, api="chat", refuses=(*_O_SERIES, "stop"), **_O),
    _thinks("o4-mini*", "o4-mini", _O_EFFORTS, api="chat", refuses=(*_O_SERIES, "stop"), **_O),
    # The fourth generation and earlier.
    _answers("gpt-4o*-search-preview*", "gpt-4o-search-preview", 128_000, 16_384, can_vision=False),
    _answers("gpt-4o-2024-05-13", "gpt-4o", 128_000, 4_096),
    _answers("gpt-4o*", "gpt-4o", 128_000, 16_384),
    _answers("chatgpt-4o-latest", "chatgpt-4o-latest", 128_000, 16_384),
    _answers("gpt-4.1*", "gpt-4.1", 1_047_576, 32_768),
    _answers("gpt-4-turbo-preview", "gpt-4-turbo-preview", 128_000, 4_096, can_vision=False),
    _answers("gpt-4-turbo*", "gpt-4-turbo", 128_000, 4_096),
    _answers("gpt-4-vision-preview", "gpt-4-turbo", 128_000, 4_096),
    _answers("gpt-4-*-preview", "gpt-4-turbo-preview", 128_000, 4_096, can_vision=False),
    _answers("gpt-4-32k*", "gpt-4", 32_768, None, can_vision=False),
    _answers("gpt-4", "gpt-4", 8_192, 8_192, can_vision=False),
    _answers("gpt-4-0*", "gpt-4", 8_192, 8_192, can_vision=False),
    _answers("gpt-3.5-turbo*", "gpt-3.5-turbo", 16_385, 4_096, can_vision=False),
)
"""The first row whose ``match`` fits counts."""
