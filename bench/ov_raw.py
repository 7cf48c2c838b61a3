"""OpenVINO GenAI's own pipeline on an IR folder, called directly. Prints JSON.

    .venv/bin/python bench/ov_raw.py FOLDER [--prefill N] [--decode M] [--threads T] [--as-shipped]

The numbers are computed as the node has them (f32, KV in f16, nothing quantised on the way) unless ``--as-shipped``:
then with the package's defaults, which on many processors are bf16 and KV of 8 bits. One prompt of token ids, greedy;
the first call warms up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from modeld.engine.llama.runtime import default_threads

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def measure(folder: Path, prefill: int, decode: int, threads: int, properties: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of a prompt up to the first token, and from there on."""
    pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", INFERENCE_NUM_THREADS=threads, **properties)
    generate(pipeline, 64, 16)
    return generate(pipeline, prefill, decode)


def generate(pipeline: Any, prefill: int, decode: int) -> dict[str, float]:
    """One prompt that shares no beginning with another length's."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = decode, True, False
    ids = openvino.Tensor(np.array([[300 + (i * 7 + prefill) % 1500 for i in range(prefill)]], np.int64))
    result = pipeline.generate(ids, config)
    metrics = result.perf_metrics
    assert metrics.get_num_generated_tokens() == decode
    whole = sum(metrics.raw_metrics.generate_durations) / 1e6
    first = metrics.raw_metrics.m_times_to_first_token[0] / 1e6
    return {"prefill": prefill / first, "decode": (decode - 1) / (whole - first)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prefill", type=int, default=2000)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0: as the engine chooses")
    parser.add_argument("--as-shipped", action="store_true")
    args = parser.parse_args()
    properties = {} if args.as_shipped else EXACT
    print(json.dumps(measure(args.folder, args.prefill, args.decode, args.threads or default_threads(), properties)))


if __name__ == "__main__":
    main()
