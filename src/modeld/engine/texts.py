"""Counting between two steps: text to tokens, tokens to text, and conversations as the model would see them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from modeld.engine.backend import Lexicon, check_tokens
from modeld.engine.prompts import Prompts
from modeld.engine.protocol import (
    Detokenize,
    Done,
    Failed,
    Render,
    Reply,
    TextRequest,
    Tokenize,
    encode_result,
    request_size,
)
from modeld.errors import InvalidRequestError, ModeldError
from modeld.session.text_values import RenderedPrompt, TokenList


class Texts:
    """Answers one request at a time, so that streams wait for one at most. Belongs to the loop that owns the lexicon.

    :param model: its name, for the answers. :param limit: bytes of a request. Who has more asks an engine without
        streams.
    """

    def __init__(
        self, lexicon: Lexicon, prompts: Prompts, model: str, send: Callable[[Reply], None], *, limit: int
    ) -> None:
        self._lexicon = lexicon
        self._prompts = prompts
        self._model = model
        self._send = send
        self._limit = limit
        self._asked: deque[TextRequest] = deque()

    @property
    def ready(self) -> bool:
        """Somebody waits."""
        return bool(self._asked)

    def add(self, request: TextRequest) -> None:
        """Answer it when its turn comes."""
        self._asked.append(request)

    def drop(self, id_: int) -> None:
        """Nobody waits for it any more."""
        self._asked = deque(request for request in self._asked if request.id != id_)

    def step(self) -> None:
        """Answer the oldest, if there is one."""
        if not self._asked:
            return
        request = self._asked.popleft()
        try:
            result = encode_result(self._answer(request))
        except ModeldError as error:
            self._send(Failed(request.id, 0, error.code, error.message, error.details))
        else:
            self._send(Done(request.id, 0, result))

    def _answer(self, request: TextRequest) -> TokenList | RenderedPrompt | bytes:
        if (size := request_size(request)) > self._limit:
            raise InvalidRequestError(
                f"{size} bytes are too much to count beside streams: {self._limit} at most",
                size=size,
                limit=self._limit,
            )
        match request:
            case Tokenize(text=text, add_special=special):
                ids = self._lexicon.tokenize(text.encode("utf-8", "replace"), add_special=special)
                return TokenList(model=self._model, tokens=tuple(ids))
            case Detokenize(tokens=tokens):
                check_tokens(tokens, self._lexicon, "tokens")
                return b"".join(map(self._lexicon.piece, tokens))
            case Render(messages=messages, tools=tools, think=think, generate=generate):
                prompt = self._prompts.render(messages, tools, think, generate=generate)
                text = prompt.text.decode("utf-8", "replace")
                return RenderedPrompt(model=self._model, text=text, tokens=tuple(prompt.ids), template=self._template)

    @property
    def _template(self) -> Literal["model", "default"]:
        return "model" if self._lexicon.template_source else "default"
