"""``modeld embed`` and ``tokens``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modeld.cli.connection import finish
from modeld.cli.options import DataRootOption, JsonOption, ModelArgument, model_of, root_of
from modeld.cli.output import emit, say
from modeld.cli.remote import BackendOption, reached
from modeld.session.text_values import InputOverflow

if TYPE_CHECKING:
    from modeld.session.text_values import Embeddings, TokenList


def embed(
    model: ModelArgument,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Each gets a vector.")],
    dimensions: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The first N numbers of each vector; default all.")
    ] = None,
    overflow: Annotated[InputOverflow, typer.Option(help="What becomes of texts that are too long.")] = "error",
    context: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens that the longest text may have; 0 is 2048.")
    ] = 0,
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print a vector for each text, of length 1, one a line. The model that is loaded stays loaded.

    Starts a node where none runs.
    """
    ref = model_of(model)

    async def ask() -> Embeddings:
        from modeld.cli.waiting import Waiting

        async with reached(root_of(data_root), backend, start=True) as client:
            with Waiting(f"embedding with {model}"):
                return await client.embed(ref, texts, dimensions=dimensions, overflow=overflow, context=context)

    found = finish(ask())
    if as_json:
        facts = {name: getattr(found, name) for name in ("model", "dimensions", "pooling", "pooling_source", "items")}
        emit({**facts, "vectors": found.vectors, "usage": found.usage})
        return 0
    for vector in found.vectors:
        print(" ".join(f"{value:.6g}" for value in vector))
    cut = sum(item.truncated or item.chunks > 1 for item in found.items)
    source = " (the model does not say which)" if found.pooling_source == "default" else ""
    say(
        f"{len(found.items)} vectors of {found.dimensions} numbers from {found.usage.input} tokens, {found.pooling} "
        f"pooling{source}" + (f"; cut ({overflow}): {cut}" if cut else "")
    )
    return 0


def tokens(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT")],
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Count the tokens of a text: their number, then their ids. Loads no weights. Starts a node where none runs."""
    ref = model_of(model)

    async def ask() -> TokenList:
        async with reached(root_of(data_root), backend, start=True) as client:
            return await client.tokenize(ref, text)

    found = finish(ask())
    if as_json:
        emit({"model": found.model, "count": len(found.tokens), "tokens": found.tokens})
    else:
        print(len(found.tokens))
        print(" ".join(map(str, found.tokens)))
    return 0
