"""``llama`` (alias ``local``): GGUF models, executed by the node of this machine.

``base_url`` is a folder with ``NAME.gguf`` and ``NAME/model.gguf``; ``""`` is the node's own list. Nothing is executed
here, and no model file is read: what a model is tells the node. Without one the models are listed all the same, and
cannot be used.
"""

from __future__ import annotations

import asyncio
import os
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from msgspec import structs

from modeld import client
from modeld.errors import (
    BackendMismatchError,
    InvalidModelError,
    InvalidRequestError,
    ModeldError,
    ModelError,
    ModelNotFoundError,
    NodeError,
)
from modeld.providers.node_wire import NodeWire, listed
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, CapabilityConfig, ObservedModel
from modeld.session.conversations import Tapes
from modeld.session.values import InstalledModel, ModelRef

if TYPE_CHECKING:
    from modeld.repository.catalog import CatalogOptions
    from modeld.session.contract import ModelService

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Found = tuple[str, Path, list[Path]]
"""Name, the path that the node is given, and all files of it."""


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """See :func:`modeld.repository.new_catalog_provider`."""
    return WireCatalog(LlamaWire(spec, options))


class LocalWire(NodeWire):
    """Models in a folder, executed by the node of the data root, or by the one that the options hand in.

    The flags are read from the owner's record at each access, and dial nobody. A node that is handed in serves what it
    serves: its flags are true, and it refuses models of another type itself.

    :raises InvalidRequestError: ``base_url`` is an address and no folder.
    """

    extra: ClassVar[str]
    """Of the package: with it installed a node serves the type."""

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        if "://" in spec.base_url or "\0" in spec.base_url:
            text = f"base_url of {self.type} is a folder of models, or empty for the node's own, not an address"
            raise InvalidRequestError(text, parameter="base_url")
        self.tapes = Tapes()
        self._folder = Path(spec.base_url).expanduser().absolute() if spec.base_url else None

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """The folder; the engine's name for the node's own models."""
        return (self.spec.base_url or self.type,)

    @abstractmethod
    def find(self, folder: Path) -> Iterator[Found]:
        """The models in ``folder``, in any order; of a name that comes twice, the first counts."""

    def bundled(self) -> tuple[Found, ...]:
        """What a node serves without any folder."""
        return ()

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[ModelService, None]:
        """See :meth:`NodeWire.service`. The connection is the one of :func:`modeld.open_session`."""
        yield await (self.options.service or client.shared_client)()

    def model(self, name: str) -> ObservedModel:
        """See :meth:`NodeWire.model`. :raises InvalidRequestError: it is no name of a model."""
        return super().model(checked_name(name))

    def capabilities(self, model: ObservedModel) -> CapabilityConfig:
        """All flags are false where no node serves the type now."""
        here = self._absent() is None
        fine = here and (model.capabilities.can_chat or "can_chat" not in model.evidence)
        return structs.replace(
            model.capabilities,
            can_chat=fine,
            can_stream=fine,
            can_prompt=fine,
            can_embed=here and (model.capabilities.can_embed or "can_embed" not in model.evidence),
            can_think=fine and model.capabilities.can_think,
            can_vision=False,
        )

    def unavailable(self, model: ObservedModel, feature: str) -> ModeldError | None:
        """See :meth:`NodeWire.unavailable`: no node, one that died, or one that does not serve the type."""
        return super().unavailable(model, feature) or self._absent()

    async def list_models(self) -> list[ObservedModel]:
        """What is there, by name; with what the node says of it where one serves the type."""
        try:
            models = await self._described() if self._absent() is None else None
        except NodeError:
            models = None  # it ended meanwhile
        if models is None:
            models = [listed(model, error=model.error) for model in await asyncio.to_thread(self._installed)]
        return [structs.replace(model, capabilities=self.capabilities(model)) for model in models]

    async def ref(self, model: ObservedModel) -> ModelRef:
        """See :meth:`NodeWire.ref`. :raises ModelNotFoundError: no such model in the folder."""
        name = checked_name(model.name)
        if self._folder is None:
            return ModelRef(name=name, type=self.type, digest=model.digest)
        path = await asyncio.to_thread(self._path, self._folder, name)
        # Without the name: a node that does not see the path would take a model of its own of that name.
        return ModelRef(type=self.type, digest=model.digest, path=path)

    async def aclose(self) -> None:
        """Nothing to close: the connection is the process's."""

    def _absent(self) -> NodeError | None:
        """Why no node serves the type now, from the owner's record alone; ``None``: one does."""
        if self.options.service is not None:
            return None
        try:
            serves = client.owner().serves
        except NodeError as error:
            return error
        if self.type in serves:
            return None
        return BackendMismatchError(
            f"the node serves {' and '.join(serves) or 'nothing'}, not {self.type}; install what is missing there: "
            f"pip install 'modeld[{self.extra}]', then start it again",
            wanted=self.type,
            served=list(serves),
        )

    async def _described(self) -> list[ObservedModel]:
        async with self.service() as service:
            if self._folder is None:
                models = {model.name: model for model in reversed(await service.models()) if model.type == self.type}
                found = [(model, ModelRef(name=name, type=self.type)) for name, model in sorted(models.items())]
            else:
                here = await asyncio.to_thread(self._installed)
                found = [(model, ModelRef(type=self.type, path=model.path)) for model in here]
            return [await self.observed(service, model, ref) for model, ref in found]

    def _path(self, folder: Path, name: str) -> str:
        names = []
        for model in self._scan(folder):
            if model.name == name and model.error:
                raise InvalidModelError(f"{model.path} is not used: {model.error}", path=model.path)
            if model.name == name:
                return model.path
            names.append(model.name)
        text = f"there is no model {name} in {folder}; there are {', '.join(names) or 'none'}"
        raise ModelNotFoundError(text, name=name, installed=names)

    def _installed(self) -> list[InstalledModel]:
        """What lies on the disk, by name; for the node's own list that of the data root, which need not be there."""
        if self._folder is not None:
            return self._scan(self._folder)
        own = client.data_root() / "models"
        bundled = [self._seen(*found, found[1].parent) for found in self.bundled()]
        taken = {model.name for model in bundled}
        more = [model for model in (self._scan(own) if own.is_dir() else ()) if model.name not in taken]
        return sorted([*bundled, *more], key=lambda model: model.name)

    def _scan(self, folder: Path) -> list[InstalledModel]:
        models: dict[str, InstalledModel] = {}
        try:
            for name, path, files in self.find(folder):
                if is_name(name) and name not in models:
                    models[name] = self._seen(name, path, files, folder)
        except OSError as error:
            raise ModelError(f"the folder of models {folder} cannot be read: {error.strerror}") from error
        return [models[name] for name in sorted(models)]

    def _seen(self, name: str, path: Path, files: list[Path], folder: Path) -> InstalledModel:
        model = InstalledModel(name=name, type=self.type, path=str(path), size=0)
        root = Path(os.path.realpath(folder))
        size, modified = 0, 0.0
        for file in files:
            if not Path(os.path.realpath(file)).is_relative_to(root):
                return structs.replace(model, error="it links to a place outside of its folder of models")
            try:
                info = file.stat()
            except OSError as error:
                return structs.replace(model, error=f"{file.name}: {error.strerror}")
            size, modified = size + info.st_size, max(modified, info.st_mtime)
        return structs.replace(model, size=size, modified=modified)


class LlamaWire(LocalWire):
    """GGUF files."""

    type = "llama"
    extra = "llama"

    def find(self, folder: Path) -> Iterator[Found]:
        """``NAME.gguf``, then ``NAME/model.gguf``. Of a model that is split the first file stands for all."""
        entries = sorted(folder.iterdir())
        for file in entries:
            if file.suffix == ".gguf" and file.is_file() and (pieces := _pieces(file)):
                yield _stem(file), file, pieces
        for inner in filter(Path.is_dir, entries):
            for file in (inner / "model.gguf", *sorted(inner.glob("model-00001-of-?????.gguf"))):
                if file.is_file():
                    yield inner.name, file, _pieces(file)

    def bundled(self) -> tuple[Found, ...]:
        """``tiny`` comes with the package."""
        path = Path(str(resources.files("modeld.data") / "tiny-q8_0.gguf"))
        return (("tiny", path, [path]),)


def _stem(file: Path) -> str:
    shard = _SHARD.fullmatch(file.name)
    return shard["stem"] if shard else file.name.removesuffix(".gguf")


def _pieces(file: Path) -> list[Path]:
    """All files of the model that ``file`` begins; none where it begins none."""
    shard = _SHARD.fullmatch(file.name)
    if shard is None:
        return [file]
    last = int(shard["count"]) if int(shard["number"]) == 1 else 0
    return [file.with_name(f"{shard['stem']}-{piece:05d}-of-{shard['count']}.gguf") for piece in range(1, last + 1)]


def is_name(name: str) -> bool:
    """Whether a node would take it as a model's name: 1 to 200 bytes, no slashes, controls or leading dot."""
    shaped = name and name[0] != "." and not any(c in "/\\\x7f" or c < " " or 0xD800 <= ord(c) < 0xE000 for c in name)
    return bool(shaped) and len(name.encode()) <= 200


def checked_name(name: str) -> str:
    """``name``. :raises InvalidRequestError: it is no name of a model."""
    if not is_name(name):
        text = f"a model's name is 1 to 200 bytes without slashes, controls or a leading dot, not {name[:40]!r}"
        raise InvalidRequestError(text, parameter="model")
    return name
