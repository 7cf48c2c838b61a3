"""Tiny with other chat templates in its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata

from support.engines import TINY_F16

KEY = "tokenizer.chat_template"


def write_tiny(path: Path, templates: Mapping[str, str]) -> Path:
    """A copy with these templates by name; the one for all is named ``default``."""
    reader = gguf.GGUFReader(TINY_F16)
    keys = {KEY if name == "default" else f"{KEY}.{name}": source for name, source in templates.items()}
    details = {key: MetadataDetails(gguf.GGUFValueType.STRING, source) for key, source in keys.items()}
    removed = [] if "default" in templates else [KEY]
    copy_with_new_metadata(reader, gguf.GGUFWriter(path, "qwen3"), details, removed)
    return path
