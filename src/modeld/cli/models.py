"""``modeld models``, ``describe``, ``load`` and ``unload``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from modeld.cli.connection import finish
from modeld.cli.errors import usage
from modeld.cli.options import (
    ContextOption,
    DataRootOption,
    JsonOption,
    KVTypeOption,
    LoraOption,
    ModelArgument,
    adapters_of,
    model_of,
    root_of,
)
from modeld.cli.output import adapted, duration, emit, facts, table
from modeld.cli.remote import BackendOption, reached
from modeld.session.values import SessionConfig

if TYPE_CHECKING:
    from modeld.session.values import InstalledModel, ModelDescription, NodeStatus, Plan
    from modeld.template_facts import TemplateFacts


def models(backend: BackendOption = "", data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """List the models that can be named. Starts no node: without one, the data root's folder is read directly."""
    found = finish(_models(root_of(data_root), backend))
    if as_json:
        emit({"models": found})
    else:
        table(("NAME", "TYPE", "SIZE", "MODIFIED", "STATE"), [_model_row(model) for model in found])
    return 0


def describe(
    model: ModelArgument,
    context: ContextOption = 0,
    kv_type: KVTypeOption = "f16",
    lora: LoraOption = None,
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what a model is and whether it fits, with the arithmetic. Loads nothing.

    The running node answers: it knows what is free. None is started; without one this fails. Exits 1 when the model
    does not fit.
    """
    ref, config = model_of(model), _config(context, kv_type, lora)

    async def ask() -> ModelDescription:
        async with reached(root_of(data_root), backend) as client:
            return await client.describe(ref, config)

    found = finish(ask())
    if as_json:
        emit(found)
    else:
        facts([*_model_facts(found), *_plan_facts(found.plan)])
    return 0 if found.plan.fits else 1


def load(
    model: ModelArgument,
    context: ContextOption = 0,
    kv_type: KVTypeOption = "f16",
    lora: LoraOption = None,
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Make a model resident, so that the first answer need not wait. Starts a node where none runs."""
    ref, config = model_of(model), _config(context, kv_type, lora)

    async def ask() -> NodeStatus:
        from modeld.cli.waiting import Waiting

        async with reached(root_of(data_root), backend, start=True) as client:
            with Waiting(f"loading {model}"):
                return await client.load(ref, config)

    node = finish(ask())
    if as_json:
        emit({"node": node, "engine": node.engine})
    else:
        engine = f", engine process {node.engine.pid}" if node.engine else ""
        name = node.model + adapted(node.adapters)
        print(f"{name} is loaded: {node.context} tokens of context, {node.ledger.cells} cells{engine}")
    return 0


def unload(backend: BackendOption = "", data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """End the engine process, once running calls are done. The node and its sessions stay.

    KV that has a place in files comes back with the next call; the rest is computed again.
    """

    async def ask() -> NodeStatus:
        async with reached(root_of(data_root), backend) as client:
            return await client.unload()

    node = finish(ask())
    if as_json:
        emit({"node": node, "engine": node.engine})
    else:
        print("no model is loaded now")
    return 0


def _config(context: int, kv_type: str, lora: list[str] | None) -> SessionConfig:
    with usage():
        return SessionConfig(context=context, kv_type=kv_type, adapters=adapters_of(lora))  # type: ignore[arg-type]


async def _models(root: Path, backend: str) -> list[InstalledModel]:
    from modeld.errors import NodeNotRunningError, NodeStaleError
    from modeld.node.store import ModelStore

    try:
        async with reached(root, backend) as client:
            return await client.models()
    except (NodeNotRunningError, NodeStaleError):
        return ModelStore(root).list()


def _model_row(model: InstalledModel) -> tuple[str, ...]:
    from modeld.node.capacity import human_bytes

    state = model.error or ", ".join(
        word for word, so in (("loaded", model.resident), ("bundled", model.bundled)) if so
    )
    modified = f"{duration(time.time() - model.modified)} ago" if model.modified else ""
    return model.name, model.type, human_bytes(model.size), modified, state


def _model_facts(model: ModelDescription) -> list[tuple[str, str]]:
    from modeld.node.capacity import human_bytes

    pooled = f"by {model.pooling}" if model.pooling else "by mean"
    makes = ((f"yes, {pooled}", model.embeds), ("no: it scores documents for a question", model.pooling == "rank"))
    return [
        ("model", f"{model.name}{' (loaded)' if model.resident else ''}"),
        ("file", model.path),
        ("digest", model.digest),
        *(("adapter", f"{adapter.path or adapter.name}, scale {adapter.scale:g}") for adapter in model.adapters),
        ("type", f"{model.type}, {model.architecture} {model.quantization}".rstrip()),
        ("size", f"{human_bytes(model.size)}, {model.parameters:,} parameters, {model.layers} layers"),
        ("trained window", f"{model.context_length:,} tokens"),
        ("sliding window", f"{model.sliding_window:,} tokens" if model.sliding_window else ""),
        ("vocabulary", f"{model.vocabulary:,} tokens"),
        *(_template_facts(model.template) if model.generates else ()),
        ("vectors", ", ".join(word for word, so in makes if so)),
    ]


def _template_facts(facts: TemplateFacts) -> list[tuple[str, str]]:
    known = {
        "rendered": "the model's own; what it can do was seen in what it renders",
        "declared": "the model's own; never loaded here, so this is only what its text mentions",
        "default": f"{facts.name}, the default: the model brings none",
    }
    can = {
        "chat": facts.source != "default",
        "system messages": facts.system,
        "tools": facts.tools,
        "parallel calls": facts.parallel_tool_calls,
        "tool results": facts.tool_results,
        "documents": facts.documents,
        "thinking": facts.thinking,
    }
    thinking = [
        "can be switched off" if facts.thinking_switch else "cannot be switched off",
        f"effort {', '.join(facts.efforts)}" if facts.efforts else "",
        "opened in the prompt" if facts.opens_thinking else "",
        f"{facts.thinking_history.replace('_', ' ')} in history",
    ]
    seen = facts.thinking and facts.source == "rendered"
    return [
        ("template", known[facts.source]),
        ("can", ", ".join(word for word, so in can.items() if so)),
        ("thinking", "; ".join(part for part in thinking if part) if seen else ""),
        ("arguments", "as objects" if facts.object_arguments else ""),
    ]


def _plan_facts(plan: Plan) -> list[tuple[str, str]]:
    from modeld.node.capacity import human_bytes

    where = "all layers on " + plan.device if plan.gpu_layers else plan.device
    return [
        ("fits", "yes" if plan.fits else f"no: {plan.reason}"),
        ("would fit", "; ".join(plan.alternatives)),
        ("runs on", where),
        ("context", f"{plan.context:,} tokens a session; {plan.max_context:,} would fit now"),
        (
            "KV cells",
            f"{plan.cells:,} of {human_bytes(plan.kv_bytes_per_token)}, {plan.kv_type}, shared by all sessions",
        ),
        ("needs", f"{human_bytes(plan.required)}: {_sum(plan)}"),
        ("may use", f"{human_bytes(plan.usable)}: {human_bytes(plan.free)} free - {human_bytes(plan.reserve)} reserve"),
    ]


def _sum(plan: Plan) -> str:
    from modeld.node.capacity import human_bytes

    return f"{human_bytes(plan.weights)} weights + {human_bytes(plan.kv)} KV + {human_bytes(plan.overhead)} overhead"
