"""Reading the graph of a language model: what it must be for its KV to be ours, and only the last row of logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy
from msgspec import Struct

from modeld.engine.openvino.lexicon import first_line
from modeld.errors import ModelLoadError, NotSupportedError

INPUTS: Final = frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx"})
_CHEAP: Final = frozenset({"Convert", "Add", "Multiply", "Divide", "Tanh", "Reshape"})
"""What may stand between the last product and the logits, as scaling and capping do."""


class Graph(Struct, frozen=True):
    """A graph that was read and changed so that it gives the logits of the last token alone.

    :param rows: tokens that it has logits for; 0: the graph does not say.
    :param table: tokens that it has embeddings for; 0 likewise.
    """

    model: Any
    inputs: frozenset[str]
    rows: int
    table: int

    def check_tokens(self, tokens: int, name: str) -> None:
        """:raises ModelLoadError: it has not so many. An id beyond the end would be looked up all the same."""
        for count, what in ((self.rows, "logits"), (self.table, "embeddings")):
            if 0 < count < tokens:
                raise ModelLoadError(
                    f"{name} has {what} for {count} tokens, and its tokeniser has {tokens}: they are of two models"
                )


def read_graph(core: Any, path: Path, name: str) -> Graph:
    """Read ``openvino_model.xml``.

    :raises ModelLoadError: OpenVINO cannot read it. :raises NotSupportedError: it is no text model with KV in states.
    """
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        raise ModelLoadError(f"OpenVINO cannot read {name}: {first_line(error)}", path=str(path)) from error
    inputs = frozenset(port.get_any_name() for port in model.inputs)
    outputs = {port.get_any_name(): port for port in model.outputs}
    if "input_ids" not in inputs or "logits" not in outputs or inputs - INPUTS:
        raise NotSupportedError(
            f"{name} is no language model with KV in states: it takes {', '.join(sorted(inputs))} and gives "
            f"{', '.join(sorted(outputs))}; export it with --task text-generation-with-past",
            feature="openvino_graph",
        )
    shapes = [variable.get_info().data_shape for variable in model.get_variables()]
    if not shapes or not all(_grows(shape) for shape in shapes):
        raise NotSupportedError(
            f"{name} keeps {len(shapes)} states, and not each is [batch, heads, tokens, length]: "
            "its conversations could not be cut or copied",
            feature="openvino_states",
        )
    _keep_last_row(model)
    width = outputs["logits"].get_partial_shape()[2]
    return Graph(model, inputs, width.get_length() if width.is_static else 0, _embeddings(model))


def _embeddings(model: Any) -> int:
    """Rows of the table in which the tokens' ids are looked up; 0 where that is done otherwise."""
    ports = [next(port for port in model.inputs if port.get_any_name() == "input_ids")]
    for port in ports:
        for target in port.get_target_inputs():
            node = target.get_node()
            if node.get_type_name() == "Convert":
                ports.append(node.output(0))
            elif node.get_type_name() == "Gather" and target.get_index() == 1:
                shape = node.input_value(0).get_partial_shape()
                return int(shape[0].get_length()) if shape.rank.is_static and shape[0].is_static else 0
    return 0


def _grows(shape: Any) -> bool:
    return bool(
        shape.rank.is_static
        and shape.rank.get_length() == 4
        and shape[1].is_static
        and shape[2].is_dynamic
        and shape[3].is_static
    )


def _keep_last_row(model: Any) -> None:
    """Cut the hidden states to the last token before they become logits: of a vocabulary of 32,000 a whole batch of
    512 had 64 MB of them. A graph that ends otherwise stays as it is."""
    from openvino import opset13

    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() in _CHEAP:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul" or node.input_value(0).get_partial_shape().rank.get_length() != 3:
        return
    port = node.input(0)
    start, stop, one = (numpy.array([value], numpy.int64) for value in (-1, 2**31 - 1, 1))
    port.replace_source_output(opset13.slice(port.get_source_output(), start, stop, one, one).output(0))
    model.validate_nodes_and_infer_types()
