"""``modeld run``."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modeld.cli.connection import finish
from modeld.cli.errors import INTERRUPTED, usage
from modeld.cli.options import (
    ContextOption,
    DataRootOption,
    JsonOption,
    KVTypeOption,
    LoraOption,
    ModelArgument,
    ShiftOption,
    TruncateOption,
    adapters_of,
    model_of,
    root_of,
)
from modeld.cli.remote import BackendOption
from modeld.errors import InvalidRequestError
from modeld.session.values import SessionConfig
from modeld.types import DecodeOptions, ResponseFormat

if TYPE_CHECKING:
    from modeld.cli.chat import Chat

_ONE_QUESTION_SECONDS = 60.0
_TALK_SECONDS = 86400.0

_DEFAULTS = DecodeOptions()


def run(
    model: ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to ask; - reads it from stdin.")
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Session whose KV is reused. Default: a new one, which the node forgets some time after its last use. "
            "A session keeps KV, not text: with a PROMPT the conversation is that prompt alone.",
        ),
    ] = None,
    workspace: Annotated[str, typer.Option(metavar="NAME", help="Scope of the session's name.")] = "default",
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message.")] = "",
    think: Annotated[
        str, typer.Option(metavar="LEVEL", help="auto, off, minimal, low, medium, high or xhigh.")
    ] = "auto",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = _DEFAULTS.temperature,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = _DEFAULTS.top_p,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = _DEFAULTS.top_k,
    min_p: Annotated[float, typer.Option(help="0 is off.")] = _DEFAULTS.min_p,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens to generate at most.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Default: random, and reported with --json.")] = None,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends the answer; may be repeated.")] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON schema that the answer fits; {} is any JSON."),
    ] = None,
    context: ContextOption = 0,
    kv_type: KVTypeOption = "f16",
    lora: LoraOption = None,
    shift: ShiftOption = False,
    truncate: TruncateOption = False,
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask a model, or talk to it at a prompt where no PROMPT is given. Starts a node where none runs.

    The answer goes to stdout; what it cost, progress and thinking go to stderr (on a terminal thinking stands dimmed
    before the answer). Lines from a pipe are turns of one conversation. Ctrl-C stops an answer; with a PROMPT it then
    exits 130.
    """
    with usage():
        options = DecodeOptions(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            max_tokens=max_tokens,
            seed=seed,
            stop=tuple(stop or ()),
            response_format=None if schema is None else read_schema(schema),
        )
        config = SessionConfig(
            workspace=workspace,
            name=session if session is not None else _session_name(prompt),
            context=context,
            kv_type=kv_type,
            # Nobody comes back to the session of one question: its KV is the first to leave.
            session_class="side" if prompt is not None and session is None else "main",
            ttl=0.0 if session is not None else _ONE_QUESTION_SECONDS if prompt is not None else _TALK_SECONDS,
            shift=shift,
            truncate=truncate,
            adapters=adapters_of(lora),
        )
        if prompt is not None and not prompt.strip():
            raise InvalidRequestError("the prompt is empty")
    from modeld.cli.chat import Chat, ChatSettings
    from modeld.thinking import parse_think

    with usage():
        level = parse_think(think)
    root = root_of(data_root)
    settings = ChatSettings(
        root=root,
        backend=backend,
        model=model_of(model),
        session=config,
        options=options,
        think=level,
        system=system,
        as_json=as_json,
        one_question=prompt is not None,
    )
    chat = Chat(settings)
    if prompt is None:
        from modeld.cli.repl import repl

        repl(chat, root)
        return 0
    return finish(_ask(chat, read_stdin() if prompt == "-" else prompt))


async def _ask(chat: Chat, prompt: str) -> int:
    try:
        result = await chat.say(prompt)
    finally:
        await chat.close()
    return INTERRUPTED if result.end.finish_reason == "cancelled" else 0


def _session_name(prompt: str | None) -> str:
    # Each terminal has its own: two conversations in one session would cut each other's KV off at every turn.
    return f"{'talk' if prompt is None else 'run'}-{os.getpid()}-{secrets.token_hex(4)}"


def read_schema(file: Path) -> ResponseFormat:
    """The format that a file of JSON describes.

    :raises InvalidRequestError: it cannot be read, or is no JSON schema of those that an answer can be held to.
    """
    from modeld.chat.grammar import check_format

    try:
        schema = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidRequestError(f"the schema {file} cannot be read: {error.strerror}", parameter="schema") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{file} is no JSON: {error}", parameter="schema") from error
    if not isinstance(schema, dict):
        raise InvalidRequestError(f"{file} holds no JSON object, which a schema is", parameter="schema")
    wanted = ResponseFormat(schema=schema)
    check_format(wanted)
    return wanted


def read_stdin() -> str:
    """All of stdin, without the newline that ends it.

    :raises InvalidRequestError: it is not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"stdin is not UTF-8: {error}") from error
