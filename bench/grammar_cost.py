"""What holding an answer to a schema costs: llguidance beside the llama.cpp binding's GBNF.

    .venv/bin/python bench/grammar_cost.py

Both get the same 200 random schemas (``random_schemas.py``), the same made-up vocabulary of 151,936 tokens and
the same walk: of the tokens that are allowed one is drawn, evenly; an end that is allowed is drawn every second time.
Only masks are timed, one for each token; ``decode_cost.py`` says what a token of a model costs with and without.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import jsonschema
import numpy as np

from modeld.chat.call_grammar import whole_answer
from modeld.chat.grammar import check_format
from modeld.engine.llama.sampler import forbid
from modeld.engine.words import Words
from modeld.types import ResponseFormat
from random_schemas import Maker

SIZE = 151_936
STEPS = 100
SCHEMAS = 200
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def vocabulary() -> list[bytes]:
    """Single bytes, made-up words with what stands beside words in JSON, and one token that ends."""
    drawn = random.Random(1)
    tokens = {bytes([byte]): None for byte in range(256)}
    while len(tokens) < SIZE - 1:
        word = "".join(drawn.choices(LETTERS, range(26, 0, -1), k=drawn.randint(1, 9)))
        before, after = drawn.choice(["", " ", " ", " ", "\n", '"', ', "']), drawn.choice(["", "", "", "", '"', '":'])
        tokens[f"{before}{word.title() if drawn.random() < 0.2 else word}{after}".encode()] = None
    return [*tokens, b"<|im_end|>"]


class Made:
    """A made-up vocabulary."""

    longest = 0

    def __init__(self, tokens: list[bytes]) -> None:
        self._words = [*tokens[:-1], b"\xff" + tokens[-1]]

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        """See :class:`modeld.engine.backend.Vocabulary`."""
        return list(text)

    def piece(self, token: int) -> bytes:
        """Likewise."""
        return self._words[token].removeprefix(b"\xff")

    def is_special(self, token: int) -> bool:
        """Likewise."""
        return token == SIZE - 1

    def words(self) -> list[bytes]:
        """Likewise."""
        return self._words

    def is_end(self, token: int) -> bool:
        """Likewise."""
        return token == SIZE - 1


Walker = tuple[Callable[[], np.ndarray[Any, Any]], Callable[[int], object]]
"""The tokens that are allowed, and that one was taken."""


def guided(words: Words, schema: dict[str, Any]) -> Walker:
    """llguidance, as the engine uses it."""
    matcher = words.matcher(whole_answer(check_format(ResponseFormat(schema=schema)).rules))

    def mask() -> np.ndarray[Any, Any]:
        return np.frombuffer(matcher.compute_bitmask(), np.uint8)

    return mask, lambda token: matcher.consume_token(token)


@contextmanager
def native_vocabulary(tokens: list[bytes]) -> Iterator[tuple[Any, Any]]:
    """The binding, and its vocabulary of these tokens."""
    from llama_cpp import llama_cpp as native

    quiet = native.llama_log_callback(lambda *_: None)
    native.llama_log_set(quiet, None)
    letters = {byte: chr(byte) if 33 <= byte < 127 or 161 <= byte < 173 or byte > 173 else "" for byte in range(256)}
    spare = iter(range(256, 512))
    letters = {byte: letter or chr(next(spare)) for byte, letter in letters.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vocabulary.gguf")
        writer = gguf.GGUFWriter(path, "qwen3")
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        spelled = ["".join(letters[byte] for byte in token) for token in tokens[:-1]]
        writer.add_token_list([*spelled, tokens[-1].decode()])
        writer.add_token_types([1] * (SIZE - 1) + [3])
        writer.add_token_merges(["a b"])  # it wants one
        writer.add_eos_token_id(SIZE - 1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        params = native.llama_model_default_params()
        params.vocab_only = True
        model = native.llama_model_load_from_file(os.fsencode(path), params)
        assert model
        yield native, native.llama_model_get_vocab(model)
        native.llama_model_free(model)


def bound(native: Any, vocab: Any, schema: dict[str, Any]) -> Walker:
    """The binding's converter and its grammar sampler."""
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    sampler = native.llama_sampler_init_grammar(vocab, json_schema_to_gbnf(json.dumps(schema)).encode(), b"root")
    if not sampler:
        raise ValueError("llama.cpp cannot read the grammar")
    data = (native.llama_token_data * SIZE)()
    view = np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_float)), (SIZE, 3))
    view.view(np.int32)[:, 0] = np.arange(SIZE)
    candidates = native.llama_token_data_array(data, SIZE, -1, False)

    def mask() -> np.ndarray[Any, Any]:
        view[:, 1] = 0
        native.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return np.packbits(view[:, 1] == 0, bitorder="little")

    return mask, lambda token: native.llama_sampler_accept(sampler, token)


def walk(walker: Walker, tokens: list[bytes], seed: int, times: list[float]) -> str | None:
    """One answer; ``None``: it did not end."""
    mask, take = walker
    drawn, said = random.Random(seed), b""
    for _ in range(STEPS):
        began = time.perf_counter()
        bits = mask()
        times.append(time.perf_counter() - began)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        ends = allowed[-1] == SIZE - 1
        token = SIZE - 1 if ends and drawn.random() < 0.5 else int(drawn.choice(allowed))
        if token == SIZE - 1:
            return said.decode("utf-8", "replace")
        take(token)
        said += tokens[token]
    return None


def compare(name: str, make: Callable[[dict[str, Any]], Walker], tokens: list[bytes]) -> None:
    """Walk through all schemas and print a row."""
    refused = ended = fine = 0
    compiled: list[float] = []
    times: list[float] = []
    for seed in range(SCHEMAS):
        schema = Maker(seed).make()
        began = time.perf_counter()
        try:
            walker = make(schema)
        except Exception:
            refused += 1
            continue
        compiled.append(time.perf_counter() - began)
        text = walk(walker, tokens, seed, times)
        ended += text is not None
        fine += text is not None and valid(text, schema)
    ms = sorted(1000 * seconds for seconds in times)
    print(
        f"| {name} | {refused} | {ended} | {fine} | {1000 * statistics.mean(compiled):.1f} | {statistics.mean(ms):.3f} "
        f"| {ms[len(ms) // 2]:.3f} | {ms[len(ms) * 99 // 100]:.3f} | {ms[-1]:.1f} |",
        flush=True,
    )


def valid(text: str, schema: dict[str, Any]) -> bool:
    """Formats are not looked at: the converter knows few."""
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def main() -> int:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    tokens = vocabulary()
    began = time.perf_counter()
    words = Words(Made(tokens))
    print(f"vocabulary of {SIZE} tokens: {time.perf_counter() - began:.2f} s")
    logits = np.zeros(SIZE, np.float32)
    forbidding = []
    for _ in range(50):
        began = time.perf_counter()
        forbid(logits.ctypes.data, SIZE, words.every)
        forbidding.append(time.perf_counter() - began)
    print(f"mask put on the logits: {1000 * statistics.median(forbidding):.3f} ms (median)")
    print("| | refused of 200 | ended | of them valid | compile ms | mask ms, mean | median | 99 % | worst |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    compare("llguidance", lambda schema: guided(words, schema), tokens)
    with native_vocabulary(tokens) as (native, vocab):
        compare("GBNF", lambda schema: bound(native, vocab, schema), tokens)
    return 0


if __name__ == "__main__":
    sys.exit(main())
