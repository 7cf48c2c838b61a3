"""What ``/v1/chat/completions`` and ``/v1/completions`` have in common: how tokens are chosen, and how they come."""

from __future__ import annotations

from msgspec import Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.types import ChatConfig


class Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A field that is not known is refused."""


class PlainStreamOptions(Strict, frozen=True):
    """``include_obfuscation`` is only false: there is none."""

    include_obfuscation: bool | None = None


class StreamOptions(PlainStreamOptions, frozen=True):
    """Also with ``include_usage``."""

    include_usage: bool | None = None


class Sampling(Strict, frozen=True):
    """Fields of a body. The last three are modeld's own."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def sampling(self) -> ChatConfig:
        """These options.

        :raises InvalidRequestError: a value is out of its range, or there are options of a stream without one.
        :raises NotSupportedError: an option of a stream cannot be had.
        """
        check_stream_options(self.stream_options, self.stream)
        return ChatConfig(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repeat_penalty=self.repeat_penalty,
        )

    @property
    def tells_usage(self) -> bool:
        """A stream is to end with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def check_stream_options(options: PlainStreamOptions | None, stream: bool | None) -> None:
    """:raises InvalidRequestError: they are of no stream. :raises NotSupportedError: one of them cannot be had."""
    if options is None:
        return
    if not stream:
        raise InvalidRequestError("stream_options are for streams: set stream", parameter="stream_options")
    if options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise NotSupportedError(f"{name} is not supported here; leave it out", feature=name)
