"""The seam between the scheduler and whatever computes: what an engine must be able to do.

A backend holds KV for *sequences*, small integers that the scheduler hands out. It is used by one thread. A new engine
is one class that satisfies :class:`Backend`, and an entry in :func:`modeld.engine.runtimes.load_runtime`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from enum import Enum
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from modeld.engine.protocol import Device, Load
from modeld.errors import InvalidRequestError
from modeld.session.text_values import Pooling
from modeld.types import DecodeOptions


class StepResult(Enum):
    """How a step ended."""

    OK = "ok"
    NO_SPACE = "no_space"
    """No cells for the batch; nothing was changed."""
    ABORTED = "aborted"
    """Stopped inside; some of the batch may be in the KV: cut every sequence in it."""
    FAILED = "failed"
    """The native library refused or failed; what the KV holds is not known."""


class Slice(Struct, frozen=True):
    """Tokens of one sequence in a batch.

    :param start: position of the first. :param logits: whether the last one's logits are wanted.
    """

    sequence: int
    start: int
    tokens: list[int]
    logits: bool


class Vocabulary(Protocol):
    """Text to tokens and back."""

    longest: int
    """Bytes of text that one token stands for at most; 0: nobody knows."""

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        """Token ids; text that spells a control token becomes that token."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; those of a control token are its name."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with it."""
        ...

    def is_special(self, token: int) -> bool:
        """Whether the vocabulary was given it as a whole, as markers are: it is not the same as its text."""
        ...

    def words(self) -> list[bytes]:
        """The bytes of each token, as a grammar may use them; called once.

        Empty: it is never part of an answer in a format. After a byte FF comes the name of a token that no text is made
        of; those that end an answer must be among these.
        """
        ...


class Lexicon(Vocabulary, Protocol):
    """What a model knows of text without its weights."""

    template_source: str
    """The model's chat template; empty where it brings none."""
    named_templates: Mapping[str, str]
    """Those for a purpose, by name: ``tool_use``, ``rag``. Mostly none."""
    bos: str
    eos: str
    add_bos: bool
    tokenizer_digest: str
    vocabulary: int
    """Token ids are below it."""
    shares: bool
    """Any beginning of a sequence can be shared, and any end of one forgotten. Without it only whole sequences can.
    Always true where nothing is computed."""

    def close(self) -> None: ...


class Scored(NamedTuple):
    """A token, the natural logarithm of its probability, and the most probable ones with theirs, the first most."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler(Protocol):
    """Chooses tokens for one stream."""

    def sample(self, row: int, allowed: bytes | None = None) -> int:
        """A token from the logits of the last step's ``row``-th slice that wanted them.

        :param allowed: a bit for each token that may be chosen, the lowest of a byte first; ``None``: any.
            The logits of the others are lost.
        """
        ...

    def scored(self, row: int, top: int, allowed: bytes | None = None) -> Scored:
        """What :meth:`sample` gives, with logarithms of probabilities: of the logits as the model gave them.

        :param top: so many of the most probable tokens; fewer where the others cannot come.
        :raises EngineError: the logits are no numbers.
        """
        ...

    def close(self) -> None: ...


class Backend(Lexicon, Protocol):
    """A resident model."""

    kv_layout: str
    """What decides the bytes of KV besides :attr:`Load.kv_type`; part of the manifest."""
    grows: bool
    """Each token takes one of :attr:`Load.cells`. Without it a sequence is a state of one size."""
    copies: bool
    """:meth:`share` copies KV: a beginning takes cells in each sequence that holds it."""

    def step(self, slices: list[Slice]) -> StepResult:
        """Compute a batch. At most :attr:`Load.batch` tokens; a token has one sequence."""
        ...

    def sampler(self, options: DecodeOptions, seed: int, history: list[int]) -> Sampler:
        """A sampler for a stream whose context so far is ``history``."""
        ...

    def length(self, sequence: int) -> int:
        """Tokens that a sequence holds, as the native library counts them."""
        ...

    def remove(self, sequence: int, start: int, end: int = -1) -> bool:
        """Forget positions from ``start`` on, up to ``end`` where it is given.

        ``False``: this model can only forget a whole sequence; nothing was done.
        """
        ...

    def share(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Let ``target`` hold ``source``'s positions too. It must hold none of its own there.

        KV is copied only where :attr:`copies` says so.

        A part of a sequence can be given only where :attr:`shares` is true.
        """
        ...

    def save(self, sequence: int, start: int = 0, end: int = -1) -> bytes:
        """The KV of a sequence's positions as bytes that :meth:`restore` of an equal manifest takes.

        A part of a sequence can be had only where :attr:`shares` is true.
        """
        ...

    def restore(self, sequence: int, state: bytes, start: int = 0, end: int = -1) -> bool:
        """Give a sequence, which holds nothing there, the positions ``[start, end)`` of what was saved, or all of it.

        ``False``: the bytes do not read back as they were; the sequence is as before.
        """
        ...

    def request_abort(self) -> None:
        """Called by another thread while :meth:`step` runs: end it early where the device can."""
        ...

    def clear_abort(self) -> None:
        """Called before a step that may be aborted, and after it."""
        ...


class Embedder(Lexicon, Protocol):
    """A model that makes vectors. It holds nothing from one batch to the next."""

    pooling: Pooling
    """How the vectors of an input's tokens become one. ``rank``: they become scores, the first is the input's."""
    pooling_source: Literal["model", "default"]
    dimensions: int
    """Numbers of a vector; of a model that ranks, scores of an input."""
    window: int
    """Tokens of one input, and of a batch, at most."""
    sequences: int
    """Inputs of a batch at most."""
    before: list[int]
    """What the tokeniser puts before every text."""
    behind: list[int]
    """What it puts behind every text."""

    def compute(self, inputs: list[list[int]]) -> list[array[float]]:
        """One vector for each input, as the model gives it.

        :raises EngineError: the native library refused, or what it computed is no number.
        """
        ...

    def pair(self, query: str, document: str) -> list[int]:
        """Tokens of a query and a document as a model that ranks wants them."""
        ...


class Runtime(Protocol):
    """A native library, before a model is loaded."""

    build: str
    devices: tuple[Device, ...]

    def load(self, request: Load) -> Backend:
        """Make the model resident, with all its adapters active.

        :raises ModelLoadError: it, or an adapter, could not be loaded.
        """
        ...

    def embedder(self, request: Load) -> Embedder:
        """Load the model for vectors, on the processor. :raises ModelLoadError: it could not be loaded."""
        ...

    def lexicon(self, request: Load) -> Lexicon:
        """Load the model without its weights. :raises ModelLoadError: it could not be loaded."""
        ...


def check_tokens(tokens: tuple[int, ...], lexicon: Lexicon, what: str, parameter: str = "tokens") -> None:
    """:raises InvalidRequestError: an id that the vocabulary does not have."""
    for token in tokens:
        if not 0 <= token < lexicon.vocabulary:
            raise InvalidRequestError(
                f"{what} has the token {token}, and this model's are 0 to {lexicon.vocabulary - 1}", parameter=parameter
            )
