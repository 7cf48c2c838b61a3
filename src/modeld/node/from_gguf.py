"""An OpenVINO model out of a GGUF file: OpenVINO GenAI reads its graph and tokeniser, the rest is told by the header.

GenAI knows few architectures, and few ways to split text. Where ``tokenizer.ggml.pre`` says ``qwen2`` it takes the
right one, for ``llama-bpe`` another, which makes other tokens of ``" ="`` or two line breaks, and says nothing (seen,
2026.4.1). So what came of it is compared with llama.cpp's reading of the same file, where that is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from modeld.errors import InvalidModelError, MissingDependencyError, ModelLoadError
from modeld.node.gguf import GGUFHeader, read_header

_TYPES: Final = "tokenizer.ggml.token_type"
_WHOLE: Final = (2, 3, 4)
"""Types of tokens that stand for themselves: unknown, control, defined by the user. llama.cpp's numbers."""
_CONTROL: Final = 3
_ENDS: Final = ("eos", "eot", "eom")

_READ: Final = """
import sys
try:
    import openvino_genai, openvino_tokenizers
except ImportError as error:
    print(error)
    sys.exit(3)
try:
    openvino_genai.LLMPipeline(sys.argv[1], "CPU", enable_save_ov_model=True)
except RuntimeError as error:
    from modeld.engine.openvino.lexicon import first_line
    print(first_line(error))
    sys.exit(4)
"""

_COMPARE: Final = """
import json, sys
from modeld.engine.protocol import Load
from modeld.engine.runtimes import load_runtime
from modeld.errors import MissingDependencyError
try:
    theirs = load_runtime("llama").lexicon(Load(sys.argv[1], "", "", cells=0, window=0))
except MissingDependencyError:
    sys.exit(3)
ours = load_runtime("openvino").lexicon(Load(sys.argv[2], "", "", cells=0, window=0))
for text in json.load(sys.stdin):
    read = [lexicon.tokenize(text.encode(), add_special=True) for lexicon in (ours, theirs)]
    if read[0] != read[1]:
        print(json.dumps([text, *read]))
        sys.exit(4)
"""

_TEXTS: Final = (
    "The quick brown fox can't jump over 13 lazy dogs, can it? I'd say: it WON'T!",
    "  leading and trailing blanks  ",
    "one\ntwo\n\nthree\r\nfour\n\n\n    indented\tand\ttabbed\n",
    "def f(x: int = 1_000) -> str:\n    return f'{x:,}' + \"...\"  # 3.14159e-10 != 0xFF\n",
    '{"name": "get_weather", "arguments": {"city": "Oslo", "days": [1, 22, 333, 4444, 1234567]}}',
    "Größe, façade, naïve, Ελληνικά, русский текст, עברית, العربية, हिन्दी, ไทย",
    "中文字符，日本語のテキスト、한국어 문장。",
    "emoji: 👩‍👩‍👧‍👦 🏳️‍🌈 é (combining) \u200b\u00a0\ufeff ½ ① ﬁ",
    "https://example.org/a?b=c&d=%20#e user@example.org ~/.config/x.toml -- $HOME && ls -la | wc -l",
    "<b>html</b> &amp; <|not a token|> [INST] </s> <unk>",
)


def convert_gguf(path: Path, work: Path) -> tuple[Path, str]:
    """Make a folder of IR below ``work``.

    :returns: it, and what there is to say of its tokeniser.
    :raises InvalidModelError: no model of one file that writes text, or text would become other tokens than
        llama.cpp makes of it. :raises MissingDependencyError: the packages of extra ``openvino`` are not installed.
    :raises ModelLoadError: GenAI cannot read it.
    """
    header = read_header(path, keep=frozenset({_TYPES}))
    if header.is_split or not header.writes_text:
        reason = "it is one of several files" if header.is_split else "it writes no text"
        raise InvalidModelError(f"{path} cannot be converted: {reason}.", path=str(path), reason=reason)
    work.mkdir()
    # GenAI writes what it made of a file beside it.
    (work / "model.gguf").symlink_to(path)
    code, said = _run(_READ, str(work / "model.gguf"))
    if code == 3:
        raise MissingDependencyError(
            f"converting a GGUF file needs OpenVINO ({said}): pip install openvino openvino-genai openvino-tokenizers",
            extra="openvino",
        )
    if code:
        raise ModelLoadError(
            f"OpenVINO GenAI cannot read {path} ({header.architecture}, {header.file_type}; code {code}): "
            f"{said or 'it gave no reason'}"
        )
    _describe(header, work)
    return work, _compared(path, work, header)


def _run(program: str, *arguments: str, given: str = "") -> tuple[int, str]:
    """Exit status and last line of a process of its own: a native library that aborts does not take this one along."""
    command = [sys.executable, "-P", "-c", program, *arguments]
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=False)
    lines = (
        done.stdout.decode("utf-8", "replace").strip() or done.stderr.decode("utf-8", "replace").strip()
    ).splitlines()
    return done.returncode, lines[-1] if lines else ""


def _describe(header: GGUFHeader, folder: Path) -> None:
    """Write what a folder of Hugging Face would say beside the graph."""
    values = {
        "model_type": header.architecture,
        "max_position_embeddings": header.context_length,
        "num_hidden_layers": header.block_count,
        "hidden_size": header.embedding_length,
        "intermediate_size": header.number("feed_forward_length"),
        "num_attention_heads": max(header.head_count),
        "sliding_window": header.sliding_window,
        "vocab_size": header.vocabulary,
    }
    types = header.metadata.get(_TYPES, ())
    kinds = types if isinstance(types, tuple) else ()
    added = {str(token): {"special": kind == _CONTROL} for token, kind in enumerate(kinds) if kind in _WHOLE}
    ends = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    _write(folder / "config.json", values)
    _write(folder / "tokenizer_config.json", {"added_tokens_decoder": added})
    _write(folder / "generation_config.json", {"eos_token_id": [end for end in ends if isinstance(end, int)]})
    if header.chat_template:
        (folder / "chat_template.jinja").write_text(header.chat_template, "utf-8")
    for name in ("tool_use", "rag"):
        if isinstance(template := header.metadata.get(f"tokenizer.chat_template.{name}"), str):
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(template, "utf-8")


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), "utf-8")


def _compared(path: Path, folder: Path, header: GGUFHeader) -> str:
    """What the comparison of the tokenisers found. :raises InvalidModelError: they differ, or ours does not work."""
    texts = [*_TEXTS, header.chat_template]
    code, said = _run(_COMPARE, str(path), str(folder), given=json.dumps(texts))
    if code == 0:
        return f"its tokeniser makes of {len(texts)} texts what llama.cpp makes of them"
    if code == 3:
        return "its tokeniser was not compared with llama.cpp's, which is not installed"
    if code == 4:
        text, ours, theirs = json.loads(said)
        at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
        reason = (
            f"OpenVINO GenAI makes {len(ours)} tokens of a text of which llama.cpp makes {len(theirs)}, "
            f"other ones from token {at} on ({text[:60]!r}); import the model's Hugging Face folder instead"
        )
    else:
        reason = f"its tokeniser does not work (code {code}): {said}"
    raise InvalidModelError(f"{path} was converted and cannot be used: {reason}.", path=str(path), reason=reason)
