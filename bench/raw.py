"""The bare loop: one process drives a GGUF with the low-level binding and nothing else. Prints JSON.

    .venv/bin/python bench/raw.py MODEL.gguf [--prefill N] [--decode M] [--threads T]

It shows what llama.cpp gives on this machine through Python: prompt in batches of 512, then greedy decoding, one native
call for each token and one for its choice. No template, no text, no scheduler, no wire.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from llama_cpp import llama_cpp as native

from modeld.engine.llama.runtime import default_threads

BATCH = 512
QUIET = native.llama_log_callback(lambda *_: None)
"""The library logs every tensor otherwise; it may call this as long as it is loaded."""


def measure(model_path: Path, prefill: int, decode: int, threads: int) -> dict[str, float]:
    """Tokens per second of one prompt of ``prefill`` tokens and of ``decode`` greedy steps after it."""
    native.llama_log_set(QUIET, None)
    native.llama_backend_init()
    model = native.llama_model_load_from_file(os.fsencode(model_path), native.llama_model_default_params())
    if not model:
        raise SystemExit(f"raw: llama.cpp cannot load {model_path}")
    params = native.llama_context_default_params()
    params.n_ctx = prefill + decode + BATCH
    params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = threads
    context = native.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(f"raw: llama.cpp cannot make a context of {params.n_ctx} tokens")
    chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
    native.llama_sampler_chain_add(chain, native.llama_sampler_init_greedy())

    # The first call of a context reserves its buffers and wakes its threads; a node has done that long ago.
    feed(context, prompt(BATCH))
    native.llama_memory_clear(native.llama_get_memory(context), True)

    start = time.perf_counter()
    feed(context, prompt(prefill))
    token = native.llama_sampler_sample(chain, context, -1)
    middle = time.perf_counter()
    for _ in range(decode):
        feed(context, [token])
        token = native.llama_sampler_sample(chain, context, -1)
    end = time.perf_counter()

    native.llama_sampler_free(chain)
    native.llama_free(context)
    native.llama_model_free(model)
    return {"prefill": prefill / (middle - start), "decode": decode / (end - middle)}


def prompt(length: int) -> list[int]:
    """Ids of ordinary tokens of the tiny model's vocabulary, which the shapes share."""
    return [300 + i * 7 % 1500 for i in range(length)]


def feed(context: native.llama_context_p, tokens: list[int]) -> None:
    """Compute tokens after those that the context holds."""
    for i in range(0, len(tokens), BATCH):
        part = tokens[i : i + BATCH]
        ids = (native.llama_token * len(part))(*part)
        if native.llama_decode(context, native.llama_batch_get_one(ids, len(part))) != 0:
            raise SystemExit("raw: llama_decode failed")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prefill", type=int, default=2000)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0: as the engine chooses")
    args = parser.parse_args()
    print(json.dumps(measure(args.model, args.prefill, args.decode, args.threads or default_threads())))


if __name__ == "__main__":
    main()
