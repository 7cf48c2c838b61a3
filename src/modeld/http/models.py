"""Model ids, and what executes them: an installed model by its name, or ``backend:model``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Final

from msgspec import Struct

from modeld.errors import (
    BackendUnavailableError,
    InvalidRequestError,
    ModeldError,
    ModelError,
    ModelNotFoundError,
    NotSupportedError,
)
from modeld.http.metrics import TRACE, Parts
from modeld.http.sessions import Naming
from modeld.node.gateway import RepositoryService
from modeld.repository.tracker import NoopTracker, Tracker, config_attributes, record_end
from modeld.repository.values import EmbedResult
from modeld.session.contract import ModelService, PartStream
from modeld.session.conversations import Tapes, one_turn, opened_for_call
from modeld.session.headers import without_headers
from modeld.session.values import ModelRef
from modeld.types import ChatConfig, DecodeOptions, Message

LISTING_SECONDS: Final = 5.0
"""A backend that has not listed its models by then is left out, and named as failed."""
MAX_ID: Final = 300
"""Characters of a model id."""

log = logging.getLogger(__name__)


class Target(Struct, frozen=True):
    """What a model id means. ``backend`` is empty for a model of this node. :param kind: type of the backend."""

    model: str
    backend: str = ""
    kind: str = "modeld"

    @property
    def ref(self) -> ModelRef:
        """The model of this node, by name: an id never becomes a path."""
        return ModelRef(name=self.model)


class Listed(Struct, frozen=True):
    """A model as it is listed. ``created``: seconds since 1970, 0 where nobody knows."""

    id: str
    created: int
    owner: str


class Models:
    """Finds what a model id means and lets it answer."""

    def __init__(self, service: ModelService, gateway: RepositoryService, tracker: Tracker | None = None) -> None:
        self.service = service
        self._tracker = tracker or NoopTracker()
        self._gateway = gateway
        self._tapes = Tapes()

    async def find(self, id: str) -> Target:
        """What ``id`` means. An installed model comes before a backend of that name.

        :raises ModelNotFoundError: neither. :raises ModelError: the installed file cannot be served.
        """
        if not 0 < len(id) <= MAX_ID:
            raise _not_found(id)
        for model in await self.service.models():
            if model.name == id:
                if model.error:
                    raise ModelError(model.error, name=id)
                return Target(id)
        backend, mark, name = id.partition(":")
        for known in await self._gateway.list_backends() if mark and name else ():
            if known.name == backend:
                return Target(name, backend, known.type)
        try:
            # Virtual models are not listed; whether there is one the node knows.
            return Target((await self.service.describe(ModelRef(name=id))).name)
        except (ModelNotFoundError, InvalidRequestError):
            raise _not_found(id) from None

    async def local(self, id: str, feature: str) -> Target:
        """As :meth:`find`. :raises NotSupportedError: it is a backend's."""
        target = await self.find(id)
        if target.backend:
            raise NotSupportedError(f"{feature} is for models of this node, and {id} is a backend's", feature="model")
        return target

    @asynccontextmanager
    async def answer(
        self, target: Target, messages: Sequence[Message], config: ChatConfig, naming: Naming
    ) -> AsyncIterator[Parts]:
        """The answer, part by part. Leaving the block before its end cancels it."""
        asked = config_attributes(config)
        with (
            TRACE.get().answering() as trace,
            self._tracker.start("stream", target.kind, target.model, **asked) as span,
        ):
            ended = partial(record_end, span)
            if target.backend:
                stream = await self._gateway.stream(target.backend, target.model, messages, config)
                async with stream as parts, trace.follow(aiter(parts), ended) as seen:
                    yield seen
                return
            async with (
                self._turn(target.ref, messages, config, naming) as turn,
                trace.follow(aiter(turn), ended, turn) as seen,
            ):
                yield seen

    @asynccontextmanager
    async def _turn(
        self, ref: ModelRef, messages: Sequence[Message], config: ChatConfig, naming: Naming
    ) -> AsyncIterator[PartStream]:
        """On the session that was named, or the one that is found."""
        named = naming.named()
        if named is not None:
            async with one_turn(self.service, ref, named, messages, config) as parts:
                yield parts
            return
        known = without_headers(messages)
        if known is not messages:
            text = "the system prompt of %s begins with a header that changes at every call: turn it off in the agent"
            log.info(text + " (Claude Code: CLAUDE_CODE_ATTRIBUTION_HEADER=0)", ref.name)
        with self._tapes.take(ref, known, f"{naming.user}\0{naming.key}") as name:
            async with one_turn(self.service, ref, naming.chosen(name), messages, config) as parts:
                yield parts

    @asynccontextmanager
    async def complete(
        self, target: Target, prompt: str | Sequence[int], options: DecodeOptions, naming: Naming
    ) -> AsyncIterator[Parts]:
        """What follows a text, part by part, by a model of this node. Leaving the block before its end cancels it.

        Without a name any session will do that nobody uses: beginnings are found whoever holds them.
        """
        with ExitStack() as taken:
            session = naming.named()
            if session is None:
                session = naming.chosen(taken.enter_context(self._tapes.take(target.ref, (), f"{naming.user}\0raw")))
            async with (
                opened_for_call(self.service, target.ref, session) as opened,
                opened.complete(prompt, options=options) as parts,
            ):
                yield aiter(parts)

    async def embed(self, target: Target, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """A backend's vectors of ``texts``."""
        return await self._gateway.embed(target.backend, target.model, texts, dimensions=dimensions)

    async def all(self) -> tuple[list[Listed], dict[str, str]]:
        """All models, and by backend why one could not list its own."""
        installed = await self.service.models()
        found = [Listed(model.name, int(model.modified), "modeld") for model in installed if not model.error]
        backends = [backend.name for backend in await self._gateway.list_backends()]
        answers = await asyncio.gather(*map(self._of_backend, backends), return_exceptions=True)
        failed: dict[str, str] = {}
        for name, answer in zip(backends, answers, strict=True):
            if isinstance(answer, ModeldError):
                failed[name] = answer.message
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += answer
        return found, failed

    async def one(self, id: str) -> Listed:
        """As it is listed. :raises ModelNotFoundError: it is not. :raises ModeldError: its backend does not list."""
        target = await self.find(id)
        if not target.backend:
            modified = {model.name: int(model.modified) for model in await self.service.models()}
            return Listed(id, modified.get(id, 0), "modeld")
        for model in await self._of_backend(target.backend):
            if model.id == id:
                return model
        raise _not_found(id)

    async def _of_backend(self, name: str) -> list[Listed]:
        try:
            async with asyncio.timeout(LISTING_SECONDS):
                models = await self._gateway.list_models(name)
        except TimeoutError:
            text = f"backend {name} did not list its models within {LISTING_SECONDS:g} seconds"
            raise BackendUnavailableError(text, backend=name) from None
        created = ((model, int(model.modified_at.timestamp()) if model.modified_at else 0) for model in models)
        return [Listed(f"{name}:{model.name}", when, name) for model, when in created]


def _not_found(id: str) -> ModelNotFoundError:
    text = f"there is no model {id[:100]!r}; GET /v1/models lists all"
    return ModelNotFoundError(text, name=id[:100], parameter="model")
