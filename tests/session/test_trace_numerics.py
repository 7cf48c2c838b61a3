"""Hazard: batching and sharing that change what the model says. The bounds are those of docs/engines.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.chat.parser import make_parser
from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.types import ChatResult, EndPart, PartsJoiner, Usage
from support.engines import ENGINES, TINY_F16
from support.traces import Made, Trace, prefilled, run_trace

pytestmark = pytest.mark.anyio

BOUND = 0.05
"""Largest difference of a logit of tiny f16 in other batch shapes."""
ENGINE = ENGINES["llama"]


class Cold:
    """One sequence in an engine of its own, emptied before each call: nothing is shared, batched or warm."""

    def __init__(self, backend: LlamaBackend) -> None:
        self.backend = backend
        # What a session has said so far, in text and in the tokens it was said in.
        self._said: dict[tuple[int, str], list[tuple[bytes, list[int]]]] = {}

    def answer(self, made: Made) -> tuple[list[int], list[int], ChatResult]:
        """Prompt and answer in tokens, the end token included, and the answer as a client gets it."""
        call = made.call
        rendered = ENGINE.template().render(made.messages, call.tools, think="off", add_generation_prompt=True)
        key = made.client, call.session
        if key not in self._said:
            self._said[key] = list(self._said[made.client, call.fork_of]) if call.fork_of else []
        prompt = self._tokens(rendered.encode(), self._said[key])
        assert call.options.max_tokens is not None
        answer = self._greedy(prompt, call.options.max_tokens)
        ended = self.backend.is_end(answer[-1])
        tokens = answer[: len(answer) - ended]
        text = b"".join(map(self.backend.piece, tokens))
        self._said[key].append((rendered.encode() + text, prompt + tokens))
        return prompt, answer, self._parsed(made, rendered, tokens)

    def _greedy(self, prompt: list[int], limit: int) -> list[int]:
        logits = self.logits(prompt)
        answer = [logits.index(max(logits))]
        while len(answer) < limit and not self.backend.is_end(answer[-1]):
            logits = self._feed(len(prompt) + len(answer) - 1, answer[-1:])
            answer.append(logits.index(max(logits)))
        return answer

    def _tokens(self, text: bytes, said: list[tuple[bytes, list[int]]]) -> list[int]:
        """A session keeps the tokens that the model wrote: they may be others than the tokeniser's for that text."""
        known = [one for one in said if text.startswith(one[0])]
        before, ids = max(known, key=lambda one: len(one[0]), default=(b"", []))
        return [*ids, *ENGINE.tokenize(text[len(before) :].decode())]

    def _parsed(self, made: Made, rendered: str, tokens: list[int]) -> ChatResult:
        source, backend = ENGINE.template().source, self.backend
        parser = make_parser(source, tools=made.call.tools, prompt_tail=rendered, special=self._is_special)
        joiner = PartsJoiner()
        for token in tokens:
            for part in parser.feed(backend.piece(token), backend.is_special(token)):
                joiner.add(part)
        for part in parser.finish():
            joiner.add(part)
        joiner.add(EndPart(finish_reason="stop", usage=Usage(output=len(tokens))))
        return joiner.result()

    def _is_special(self, text: str) -> bool:
        ids = self.backend.tokenize(text.encode(), add_special=False)
        return len(ids) == 1 and self.backend.is_special(ids[0])

    def logits(self, tokens: list[int], batch: int = 512) -> list[float]:
        """After ``tokens``, from nothing, computed ``batch`` at a time."""
        self.backend.remove(0, 0)
        logits: list[float] = []
        for start in range(0, len(tokens), batch):
            logits = self._feed(start, tokens[start : start + batch])
        return logits

    def _feed(self, start: int, tokens: list[int]) -> list[float]:
        assert self.backend.step([Slice(0, start, tokens, True)]) is StepResult.OK
        return self.backend.logits(0)


@pytest.fixture
def cold() -> Iterator[Cold]:
    backend = LlamaRuntime().load(Load(str(TINY_F16), "tiny", "d", 8192, 8192, sequences=1, threads=1))
    yield Cold(backend)
    backend.close()


def said(result: ChatResult) -> tuple[str, str, list[tuple[str, str]], int | None]:
    """An answer without what is random in it."""
    message = result.message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
    return message.content, message.thinking, calls, result.end.usage.output


@pytest.mark.parametrize("cells", [32768, 2304], ids=["all-hot", "a-quarter-hot"])
async def test_what_sixteen_agents_hear_is_what_each_would_hear_alone(tmp_path: Path, cold: Cold, cells: int) -> None:
    node = Node(NodeConfig(data_root=tmp_path, sequences=40, cells=cells, ram=10**9, threads=1))
    try:
        trace = await run_trace(node, ENGINE, Trace(16, seed=1))
    finally:
        await node.aclose()
    held = sum(made.result.receipt.input for made in trace) - prefilled(trace)
    assert cells > 10_000 or sum(made.result.receipt.restored for made in trace) > prefilled(trace)
    assert held > 10 * prefilled(trace), "or else the answers are cold ones"
    for made in trace:
        prompt, answer, alone = cold.answer(made)
        assert made.result.receipt.input == len(prompt)
        if said(made.result) != said(alone):
            assert_no_clear_next_token(cold, prompt, answer, made.answer)


def assert_no_clear_next_token(cold: Cold, prompt: list[int], alone: list[int], heard: list[int]) -> None:
    """Where the answers part, both tokens are within what another batch shape makes of the same logits."""
    same = next(n for n, (a, b) in enumerate(zip(alone, heard, strict=False)) if a != b)
    logits = cold.logits(prompt + alone[:same])
    assert logits[alone[same]] - logits[heard[same]] <= 2 * BOUND
    others = cold.logits(prompt + alone[:same], batch=32)
    assert max(abs(a - b) for a, b in zip(logits, others, strict=True)) <= BOUND
