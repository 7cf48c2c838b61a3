"""What an OpenVINO model folder knows of text: tokeniser, control tokens, template. No weights are read for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from modeld.errors import ModelLoadError

TOKENIZER_FILES: Final = (
    "openvino_tokenizer.xml", "openvino_tokenizer.bin", "openvino_detokenizer.xml", "openvino_detokenizer.bin",
    "tokenizer.json", "tokenizer_config.json", "generation_config.json",
)  # fmt: skip
"""What decides how text becomes tokens and back, and which of them end an answer."""

_END_NAMES: Final = frozenset(
    b"<|endoftext|> <|im_end|> <|eot_id|> <|eom_id|> <|end|> <|return|> <|call|> <end_of_turn> <|end_of_text|> <|eot|> "
    b"<|END_OF_TURN_TOKEN|> </s> <EOT> [EOS]".split()
)
"""Control tokens that end an answer whatever the configuration says of them, as llama.cpp has it."""

_MAX_JSON: Final = 256 << 20


class OpenvinoLexicon:
    """The vocabulary of a model, which is read whole: 150,000 tokens take 20 MB. Used by one thread.

    :raises ModelLoadError: the folder has no tokeniser that can be used.
    """

    shares = True

    def __init__(self, folder: Path, name: str) -> None:
        from openvino_genai import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer(str(folder))
            ids: dict[bytes, int] = self._tokenizer.get_vocab()
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelLoadError(f"OpenVINO cannot read the tokeniser of {name}: {first_line(error)}") from error
        if not ids or min(ids.values()) < 0:
            raise ModelLoadError(f"the tokeniser of {name} has no vocabulary")
        config = _json(folder / "tokenizer_config.json")
        added, self._control = _added(folder, config)
        self.vocabulary = max(ids.values(), default=-1) + 1
        self._pieces = [b""] * self.vocabulary
        for piece, token in ids.items():
            self._pieces[token] = piece
        self._fill_doubles(set(ids.values()))
        self._special = added
        self._ends = _ends(folder, self._tokenizer.get_eos_token_id(), self.vocabulary)
        self._ends |= {token for token in self._control if self.piece(token) in _END_NAMES}
        self.bos, self.eos = self._tokenizer.get_bos_token(), self._tokenizer.get_eos_token()
        self.add_bos = self._adds_bos()
        self.template_source = _template(folder, self._tokenizer)
        self.named_templates: Mapping[str, str] = _named(folder, config)
        self.tokenizer_digest = _digest(folder)
        self.longest = max(4, *map(len, self._pieces))

    def _fill_doubles(self, known: set[int]) -> None:
        """Two tokens may stand for the same bytes; the map from bytes has one of them."""
        for token in set(range(self.vocabulary)) - known:
            self._pieces[token] = self._tokenizer.decode([token], skip_special_tokens=False).encode("utf-8", "replace")

    def _adds_bos(self) -> bool:
        ids = self._encode("a", special=True)
        return (
            bool(ids)
            and len(ids) > len(self._encode("a", special=False))
            and (ids[0] == self._tokenizer.get_bos_token_id())
        )

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        """Token ids; text that spells a control token becomes that token. Nothing is cut off."""
        return self._encode(text.decode("utf-8", "replace"), special=add_special)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        return [int(token) for token in ids.reshape(-1)]

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; those of a control token are its name. None where the tokeniser has none."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def words(self) -> list[bytes]:
        """See :meth:`modeld.engine.backend.Vocabulary.words`. What is read here never changes: any thread may."""
        words = []
        for token, piece in enumerate(self._pieces):
            # Some vocabularies have plain text among what was added, such as runs of white space.
            tag = token in self._special and piece[:1] == b"<" and piece[-1:] == b">"
            words.append(b"\xff" + piece if piece and (token in self._control or tag) else piece)
        return words + [b""] * (self.vocabulary - len(words))

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with it."""
        return token in self._ends

    def is_special(self, token: int) -> bool:
        """Whether it is a control token, or one that was added to the vocabulary whole."""
        return token in self._special

    def close(self) -> None:
        """Free the tokeniser."""
        self._tokenizer = None


def first_line(error: BaseException) -> str:
    """What an exception of OpenVINO says, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or lines or ["it gave no reason"])[0][:300]


def _json(path: Path) -> dict[str, Any]:
    """What a file of the folder holds; nothing where it is not there, or is no object."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON:
            return {}
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return {}
    return value if isinstance(value, dict) else {}


def _added(folder: Path, config: dict[str, Any]) -> tuple[set[int], set[int]]:
    """Tokens that were added to the vocabulary whole, and those of them that no text is made of."""
    found = _json(folder / "tokenizer.json").get("added_tokens")
    if not isinstance(found, list):
        decoder = config.get("added_tokens_decoder")
        pairs = decoder.items() if isinstance(decoder, dict) else ()
        found = [{**entry, "id": int(id_)} for id_, entry in pairs if isinstance(entry, dict) and str(id_).isdigit()]
    entries = [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("id"), int)]
    return {entry["id"] for entry in entries}, {entry["id"] for entry in entries if entry.get("special")}


def _ends(folder: Path, eos: int, vocabulary: int) -> set[int]:
    ends = {eos}
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        ends.update(token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int))
    return {token for token in ends if 0 <= token < vocabulary}


def _template(folder: Path, tokenizer: Any) -> str:
    path = folder / "chat_template.jinja"
    try:
        if path.is_file() and path.stat().st_size <= _MAX_JSON:
            return path.read_text("utf-8", "replace")
    except OSError:
        pass
    return str(tokenizer.get_original_chat_template() or "")


def _named(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Templates for a purpose: of the tokeniser's configuration, or files beside the one for all."""
    listed = config.get("chat_template")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    named = {str(entry.get("name")): str(entry.get("template", "")) for entry in entries}
    for name in ("tool_use", "rag"):
        path = folder / "additional_chat_templates" / f"{name}.jinja"
        if path.is_file() and path.stat().st_size <= _MAX_JSON:
            named[name] = path.read_text("utf-8", "replace")
    return {name: named[name] for name in ("tool_use", "rag") if named.get(name)}


def _digest(folder: Path) -> str:
    sha = hashlib.sha256()
    for name in TOKENIZER_FILES:
        path = folder / name
        data = path.read_bytes() if path.is_file() else b""
        sha.update(f"{name} {len(data)}\n".encode())
        sha.update(data)
    return sha.hexdigest()
