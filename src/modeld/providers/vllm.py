"""vLLM: OpenAI's wire with sampling options of its own, and a listing that says the window but not the task.

Sources: the server's own types, ``vllm/entrypoints/openai`` in https://github.com/vllm-project/vllm, and
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from msgspec import structs

from modeld.errors import (
    BackendUnavailableError,
    ModeldError,
    NotSupportedError,
)
from modeld.providers.chat_completions import EFFORTS, FIELDS, Dialect, ModelFacts, chat_rules
from modeld.providers.facts import observe
from modeld.providers.openai import OpenAIWire
from modeld.repository.catalog import CatalogOptions
from modeld.repository.options import Rules, mapped, refused
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, Evidence, ObservedModel

PROBE_SECONDS: Final = 10.0
"""How long a model's task is asked for. A busy server may be slower; the task is then unknown."""

_EFFORT: Final[dict[str, dict[str, Any]]] = {
    # Templates read one or the other: the effort (gpt-oss) or the switch. What a template does not read changes nothing
    # in it, and not every version derives the switch from the effort.
    word: {"reasoning_effort": word, "chat_template_kwargs": {"enable_thinking": True}}
    for word in ("minimal", "low", "medium", "high", "xhigh")
}

VLLM: Final = Dialect(
    backend="vllm",
    fields={
        **FIELDS,
        "max_tokens": "max_tokens",
        "top_k": "top_k",
        "min_p": "min_p",
        "repeat_penalty": "repetition_penalty",
    },
    name_limit=0,
    max_stop=0,
    stop_field=True,
    failed=("error", "abort"),
    efforts={**EFFORTS, "off": "switch off"},
    think={
        **_EFFORT,
        "switch off": {"chat_template_kwargs": {"enable_thinking": False}},
        "switch on": {"chat_template_kwargs": {"enable_thinking": True}},
        "thinking off": {"chat_template_kwargs": {"thinking": False}},
        "thinking on": {"chat_template_kwargs": {"thinking": True}},
    },
    codes={
        "NotImplementedError": NotSupportedError,
        "error": BackendUnavailableError,
        "abort": BackendUnavailableError,
    },
)

RULES: Final = chat_rules(
    VLLM,
    think=mapped(
        "chat_template_kwargs | reasoning_effort",
        "auto sends nothing; off is enable_thinking false, the other levels are the effort and enable_thinking true; "
        "where the model's template has a switch only, on is high; a level a model lacks is an error",
    ),
    shift=refused("the server never drops turns of a conversation"),
    truncate=refused("truncate_prompt_tokens keeps the last tokens of the rendered prompt and does not say what left"),
)

_PAGE: Final = "https://docs.vllm.ai/en/latest/features/reasoning_outputs/"
_SWITCH: Final = {"off": "switch off", "high": "switch on"}
_THINKING: Final = {"off": "thinking off", "high": "thinking on"}


def _thinks(match: str, efforts: dict[str, str] | None, source: str = _PAGE) -> ModelFacts:
    return ModelFacts(match=match, source=source, checked="2026-11-22", can_think=True, efforts=efforts)


def _unknown(match: str) -> ModelFacts:
    return ModelFacts(match=match, source=_PAGE, checked="2026-11-22")


FACTS: Final = (
    # Of the name Qwen3, but not of what the page calls the Qwen3 series: nothing is said of them.
    _unknown("qwen3-[cenrv]*"),
    _unknown("qwen3-*-2507*"),
    _thinks("qwen3-*", _SWITCH),
    _thinks("qwq-32b*", {}),
    _thinks("deepseek-r1*", {}),
    _thinks("deepseek-v3.1*", _THINKING),
    _thinks("granite-3.2-*", _THINKING),
    _thinks("holo2-*", _THINKING),
    _thinks("glm-4.5*", None),
    _thinks("hunyuan-a13b*", None),
    _thinks("minimax-m2*", None),
    _thinks("ernie-4.5-21b-a3b-thinking*", None),
    _thinks(
        "gpt-oss-*",
        {"low": "low", "medium": "medium", "high": "high"},
        "https://docs.vllm.ai/projects/recipes/en/latest/OpenAI/GPT-OSS.html",
    ),
)
"""What models do is said by name; a server may serve them under any other, and may have no parser for their thinking.

An empty table of efforts: the model always thinks, and nothing sets how much.
"""


class VLLMWire(OpenAIWire):
    """One vLLM server. The key is optional; the base URL is with or without ``/v1``."""

    type: ClassVar[str] = "vllm"
    provider_id: ClassVar[str] = "{type}:{model}"
    rules: Rules = RULES
    dialect: ClassVar[Dialect] = VLLM
    facts: ClassVar[Sequence[ModelFacts]] = FACTS
    default_url: ClassVar[str] = ""

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        if not self.base_url.endswith("/v1"):
            self.base_url += "/v1"

    def listed(self, entry: dict[str, Any]) -> ObservedModel | None:
        """See :meth:`OpenAIWire.listed`. ``max_model_len`` is the window the server was started with."""
        model = super().listed(entry)
        window = entry.get("max_model_len")
        if model is None or type(window) is not int or window <= 0:
            return model
        declared = structs.replace(model.capabilities, context_length=window)
        again = observe(model.name, self.find(model.name), declared, ["context_length"])
        evidence = {**model.evidence, **again.evidence}
        return structs.replace(model, capabilities=again.capabilities, evidence=evidence)

    async def list_models(self) -> list[ObservedModel]:
        """See :meth:`Wire.list_models`. Each model is asked for one small vector: nothing else tells its task."""
        return list(await asyncio.gather(*map(self._probe, await super().list_models())))

    async def _probe(self, model: ObservedModel) -> ObservedModel:
        """``model`` with what it does: a server that generates refuses vectors at once, one that embeds never chats.

        Whatever else goes wrong leaves the task unknown.
        """
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self.embed(model, ["a"], None)
        except Exception as error:
            if not _has_no_vectors(error if isinstance(error, ModeldError) else self.error(error, model.name)):
                return model
            return _with_task(model, embeds=False)
        return _with_task(model, embeds=True)


def _has_no_vectors(error: ModeldError) -> bool:
    """By version: 400 or 501 "The model does not support Embeddings API", or 404 as there is no such route."""
    status = error.details.get("status")
    return status in (404, 405, 501) or (status == 400 and "does not support Embeddings API" in error.message)


def _with_task(model: ObservedModel, *, embeds: bool) -> ObservedModel:
    chats = not embeds
    capabilities = structs.replace(
        model.capabilities, can_embed=embeds, can_chat=chats, can_stream=chats, can_prompt=chats
    )
    probed: dict[str, Evidence] = {"can_embed": "probed", "can_chat": "probed"}
    return structs.replace(model, capabilities=capabilities, evidence={**model.evidence, **probed})


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """A catalog of one vLLM server.

    :raises InvalidRequestError: the spec has no base URL; vLLM has no default.
    """
    return WireCatalog(VLLMWire(spec, options))
