"""The models that a node can name: the bundled one, those below the data root, and any GGUF or IR folder by path.

Names never become paths: a name is looked up among the names of the files that are there.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, structs

from modeld.errors import (
    BackendMismatchError,
    DigestMismatchError,
    InvalidModelError,
    InvalidRequestError,
    ModelError,
    ModelNotFoundError,
)
from modeld.node.gguf import GGUFHeader, read_adapter_header, read_header
from modeld.node.ir import GRAPH, IRHeader, folder_of, ir_files, is_ir, read_ir
from modeld.session.adapters import Adapter
from modeld.session.values import InstalledModel, ModelRef

BUNDLED_NAME: Final = "tiny"
BUNDLED_FILE: Final = "tiny-q8_0.gguf"

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_REMEMBERED: Final = 256  # Digests and headers kept; one entry is a few hundred bytes on disk.
_SETTLED_SECONDS: Final = 2.0  # A younger file may change again within the resolution of its time stamp.


_K = TypeVar("_K")
_V = TypeVar("_V")


class ResolvedModel(Struct, frozen=True, kw_only=True):
    """A model found and checked.

    :param path: of its first shard, or of its folder; empty for a virtual model. :param size: bytes of all files.
    :param digest: SHA-256 of the file; of a model that is split, SHA-256 of its shards' hex digests in order; of a
        folder, SHA-256 of the names and hex digests of the files that decide its output.
    :param header: with the tensors of all shards; ``None`` for a virtual model.
    """

    name: str
    type: str
    path: str
    size: int
    digest: str
    header: GGUFHeader | IRHeader | None

    @property
    def ref(self) -> ModelRef:
        """The reference that finds exactly this model again."""
        return ModelRef(name=self.name, type=self.type, digest=self.digest, path=self.path)


class _Stamp(Struct, frozen=True, array_like=True):
    """What changes when a file is written or replaced."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class _Digest(Struct, frozen=True, array_like=True):
    stamp: _Stamp
    digest: str


class ModelStore:
    """Finds models and proves which they are. Safe to use from several threads.

    Everything here blocks on the disk, and the first digest of a file reads all of it: call from a thread.

    :param allow_fake: resolve names that begin with ``fake`` to virtual models without a file; for tests.
    """

    def __init__(self, data_root: Path, *, allow_fake: bool = False) -> None:
        self._models = data_root / "models"
        self._cache_path = data_root / "digests.json"
        self._allow_fake = allow_fake
        self._lock = threading.Lock()
        self._digests: dict[str, _Digest] | None = None  # None: not read from disk yet
        self._headers: dict[tuple[str, _Stamp], GGUFHeader] = {}
        self._folders: dict[tuple[tuple[str, _Stamp], ...], IRHeader] = {}

    def list(self) -> list[InstalledModel]:
        """The bundled model, then the installed ones by name. A file that cannot be served has an ``error``.

        Reads headers, not whole files.

        :raises ModelError: the folder of models cannot be read.
        """
        found = [self._installed(BUNDLED_NAME, bundled_path(), bundled=True)]
        taken = {BUNDLED_NAME}
        for name, path in self._scan():
            model = self._installed(name, path)
            if name in taken:
                error = f"The name {name} belongs to another model; rename {path}."
                model = structs.replace(model, error=error)
            taken.add(name)
            found.append(model)
        return found

    def resolve(self, ref: ModelRef) -> ResolvedModel:
        """Find the model, check its header and compute its digest.

        ``ref.path`` is a hint: where it is no file and ``ref`` has a name, the installed model of that name is taken.

        :raises BackendMismatchError: ``ref.type``, or the type that the files at ``ref.path`` are of, is not served
            here. No file was read.
        :raises ModelNotFoundError: no such model or file.
        :raises InvalidModelError: the file is not a model that can be read safely, or it changed meanwhile.
        :raises DigestMismatchError: the file is not the one that ``ref`` names.
        :raises InvalidRequestError: a name that is no name, or a relative path.
        """
        served = ["llama", *(["openvino"] if serves_openvino() else []), *(["fake"] if self._allow_fake else [])]
        wanted = ref.type if ref.type not in ("", "local", *served) else _path_type(ref)
        if wanted and (wanted not in served or ref.type not in ("", wanted)):
            message = f"This node serves models of type {' and '.join(served)}, not {wanted}."
            raise BackendMismatchError(message, wanted=wanted, served=served)
        fake = self._allow_fake and ref.type in ("", "fake") and ref.name.startswith("fake") and not ref.path
        if ref.type == "fake" and not fake:
            raise self._not_found("A fake model has no path and a name that begins with fake.", ref.name)
        model = _virtual(ref.name) if fake else self._resolve_file(ref)
        if ref.type not in ("", "local", model.type):
            message = f"{model.name} is a model of type {model.type}, not {ref.type}."
            raise BackendMismatchError(message, wanted=ref.type, served=[model.type])
        _require_digest(model.name, ref.digest, model.digest)
        return model

    def adapter(self, adapter: Adapter, type_: str) -> tuple[str, str, str, GGUFHeader | None]:
        """Name, path, digest and header of an adapter for a model of type ``type_``. What is in it is not checked.

        Found as a model is; for a virtual model there are virtual ones.

        :raises ModelNotFoundError: no such file. :raises DigestMismatchError: it is not the one that is named.
        :raises InvalidModelError: it is no GGUF file, or it changed meanwhile.
        """
        path, header = "", None
        if type_ == "fake":
            if adapter.path or not adapter.name.startswith("fake"):
                raise self._not_found("An adapter of a fake model has no path and a name that begins with fake.", "")
            name, digest = adapter.name, _virtual(adapter.name).digest
        else:
            name, file = self._locate(ModelRef(adapter.name, path=adapter.path))
            digest, header, path = self._digest(file), read_adapter_header(file), str(file)
            if self._digest(file) != digest:
                raise _invalid(file, "it changed while it was read")
        _require_digest(name, adapter.digest, digest)
        return name, path, digest, header

    def _resolve_file(self, ref: ModelRef) -> ResolvedModel:
        name, path = self._locate(ref)
        if is_ir(path):
            return self._resolve_folder(name, folder_of(path))
        shards, header = self._read(path)
        before = [_stamp(shard) for shard in shards]
        digests = [self._digest(shard) for shard in shards]
        # Reading again is free where the stamps are the same, and finds a header that is older than the digest.
        if self._read(path) != (shards, header) or [_stamp(shard) for shard in shards] != before:
            raise _invalid(path, "it changed while it was read")
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return ResolvedModel(
            name=name, type="llama", path=str(path), size=header.file_size, digest=digest, header=header
        )

    def _resolve_folder(self, name: str, folder: Path) -> ResolvedModel:
        header = self._read_folder(folder)
        before = [(file, _stamp(file)) for file in ir_files(folder)]
        sha = hashlib.sha256()
        for file, _ in before:
            sha.update(f"{file.relative_to(folder)} {self._digest(file)}\n".encode())
        if self._read_folder(folder) != header or [(file, _stamp(file)) for file in ir_files(folder)] != before:
            raise _invalid(folder, "it changed while it was read")
        return ResolvedModel(
            name=name, type="openvino", path=str(folder), size=header.file_size, digest=sha.hexdigest(), header=header
        )

    def _read_folder(self, folder: Path) -> IRHeader:
        try:
            key = tuple((str(file), _stamp(file)) for file in ir_files(folder))
        except OSError as error:
            raise _invalid(folder, error.strerror or "it cannot be read") from error
        with self._lock:
            known = self._folders.get(key)
        if known is None:
            known = read_ir(folder)
            with self._lock:
                _remember(self._folders, key, known)
        return known

    def _locate(self, ref: ModelRef) -> tuple[str, Path]:
        name = checked_name(ref.name) if ref.name else ""
        if ref.path:
            path = Path(ref.path)
            if not path.is_absolute():
                raise InvalidRequestError(f"A model's path must be absolute, not {ref.path!r}.", parameter="path")
            if os.path.isfile(path) or is_ir(path):
                return name or checked_name(_stem(path)), path
            if not name and path.is_dir():
                hint = "`modeld import` makes a model of a Hugging Face one"
                raise self._not_found(f"{path} is a folder without openvino_model.xml; {hint}.", ref.path)
            if not name:
                raise self._not_found(f"There is no model file {path}.", ref.path)
        if name == BUNDLED_NAME and ref.type != "openvino":
            return name, bundled_path()
        for found, path in self._scan():
            if found == name and ref.type in ("", "local", "openvino" if is_ir(path) else "llama"):
                return name, path
        raise self._not_found(f"No model named {name} is installed.", name)

    def _not_found(self, what: str, name: str) -> ModelNotFoundError:
        installed = sorted({BUNDLED_NAME, *(found for found, _ in self._scan())})
        return ModelNotFoundError(f"{what} Installed: {', '.join(installed)}.", name=name, installed=installed)

    def _scan(self) -> Iterator[tuple[str, Path]]:
        """Names and files below the models folder, in order of name; of one name a file comes first, IR last."""
        try:
            entries = list(os.scandir(self._models))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise ModelError(f"The folder of models {self._models} cannot be read: {error.strerror}.") from error
        found = []
        for entry in map(Path, entries):
            if os.path.isdir(entry):
                files = [entry / "model.gguf", *sorted(entry.glob("model-00001-of-?????.gguf"))]
                found += [(entry.name, 1, file) for file in files if os.path.isfile(file)][:1]
                found += [(entry.name, 2, entry)] if is_ir(entry) else []
            elif entry.name.endswith(".gguf") and os.path.isfile(entry):
                shard = _SHARD.fullmatch(entry.name)
                if not shard or int(shard["number"]) == 1:
                    found.append((_stem(entry), 0, entry))
        for name, _, path in sorted(found):
            if _is_name(name):
                yield name, path

    def _installed(self, name: str, path: Path, *, bundled: bool = False) -> InstalledModel:
        folder = is_ir(path)
        type_ = "openvino" if folder else "llama"
        model = InstalledModel(name=name, type=type_, path=str(path), size=0, bundled=bundled)
        try:
            info = (path / GRAPH if folder else path).stat()
            model = structs.replace(model, size=info.st_size, modified=info.st_mtime)
            if folder:
                return structs.replace(model, size=self._read_folder(path).file_size)
            return structs.replace(model, size=self._read(path)[1].file_size)
        except (InvalidModelError, OSError) as error:
            return structs.replace(model, error=str(error))

    def _read(self, path: Path) -> tuple[tuple[Path, ...], GGUFHeader]:
        """All shards of a model, and its header with the tensors of all of them."""
        first = self._header(path)
        if first.architecture == "clip":
            raise _invalid(path, "it turns pictures into what another model reads, and does nothing alone")
        if first.split_no:
            raise _invalid(path, f"it is shard {first.split_no + 1} of {first.split_count}; name the first one")
        if not first.is_split:
            return (path,), first
        shard = _SHARD.fullmatch(path.name)
        if not shard or int(shard["number"]) != 1 or int(shard["count"]) != first.split_count:
            raise _invalid(path, f"the first of {first.split_count} shards is named like model-00001-of-00003.gguf")
        shards = tuple(
            path.with_name(f"{shard['stem']}-{number:05d}-of-{first.split_count:05d}.gguf")
            for number in range(1, first.split_count + 1)
        )
        headers = [first, *(self._header(p) for p in shards[1:])]
        for number, header in enumerate(headers):
            if (header.split_no, header.split_count) != (number, first.split_count):
                raise _invalid(shards[number], f"it is not shard {number + 1} of {first.split_count}")
        tensors = tuple(tensor for header in headers for tensor in header.tensors)
        if not tensors or len({tensor.name for tensor in tensors}) < len(tensors):
            raise _invalid(path, "its shards hold no tensors, or one of them twice")
        return shards, structs.replace(first, tensors=tensors, file_size=sum(h.file_size for h in headers))

    def _header(self, path: Path) -> GGUFHeader:
        try:
            key = (str(path), _stamp(path))
        except OSError as error:
            raise _invalid(path, error.strerror or "it is not there") from error
        with self._lock:
            known = self._headers.get(key)
        if known is not None:
            return known
        header = read_header(path)
        with self._lock:
            _remember(self._headers, key, header)
        return header

    def _digest(self, path: Path) -> str:
        try:
            stamp = _stamp(path)
            with self._lock:
                if self._digests is None:
                    self._digests = _load(self._cache_path)
                known = self._digests.get(str(path))
            if known is not None and known.stamp == stamp:
                return known.digest
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if _stamp(path) != stamp:
                raise _invalid(path, "it changed while it was read")
        except OSError as error:
            raise _invalid(path, error.strerror or "it cannot be read") from error
        if abs(time.time() - stamp.mtime_ns / 1e9) > _SETTLED_SECONDS:
            with self._lock:
                _remember(self._digests, str(path), _Digest(stamp, digest))
                _save(self._cache_path, self._digests)
        return digest


def serves_openvino() -> bool:
    """Whether the packages of that engine are installed; none of them is imported."""
    return find_spec("openvino_genai") is not None


def _path_type(ref: ModelRef) -> str:
    """The type of the model at a path where that is plain: OpenVINO's is a folder with ``openvino_model.xml``."""
    return "openvino" if ref.path and is_ir(Path(ref.path)) else ""


def bundled_path() -> Path:
    """The file of the model that comes with the package."""
    return Path(str(resources.files("modeld.data") / BUNDLED_FILE))


def _virtual(name: str) -> ResolvedModel:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ResolvedModel(name=name, type="fake", path="", size=0, digest=digest, header=None)


def _require_digest(name: str, expected: str, actual: str) -> None:
    if expected and expected.lower() != actual:
        raise DigestMismatchError(
            f"{name} has the digest {actual}, not {expected}: it is another version of it.",
            expected=expected,
            actual=actual,
        )


def _invalid(path: Path, reason: str) -> InvalidModelError:
    return InvalidModelError(f"{path} cannot be used as a model: {reason}.", path=str(path), reason=reason)


def _is_utf8(text: str) -> bool:
    """False for the name of a file that is not UTF-8: no wire could carry it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_name(name: str) -> bool:
    shaped = name and name[0] != "." and not any(c in "/\\\x7f" or c < " " for c in name)
    return bool(shaped) and _is_utf8(name) and len(name.encode()) <= 200


def checked_name(name: str) -> str:
    """``name``. :raises InvalidRequestError: it can be no model's."""
    if not _is_name(name):
        raise InvalidRequestError(
            f"A model's name is 1 to 200 bytes without slashes, controls or a leading dot, not {name[:40]!r}.",
            parameter="name",
        )
    return name


def _stem(path: Path) -> str:
    """The file's name without its ending, and without the number of a shard; that of its folder for ``model.gguf``."""
    if is_ir(path):
        return folder_of(path).name
    shard = _SHARD.fullmatch(path.name)
    stem = shard["stem"] if shard else path.name.removesuffix(".gguf")
    return path.parent.name if stem == "model" and path.parent.name != "models" else stem


def _stamp(path: Path) -> _Stamp:
    info = path.stat()
    return _Stamp(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def _remember(cache: dict[_K, _V], key: _K, value: _V) -> None:
    cache.pop(key, None)
    cache[key] = value
    while len(cache) > _REMEMBERED:
        del cache[next(iter(cache))]


def _load(path: Path) -> dict[str, _Digest]:
    """What another run remembered; nothing where that cannot be read: it is only a cache."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Digest])
    except (OSError, ValueError, msgspec.MsgspecError):
        return {}


def _save(path: Path, digests: dict[str, _Digest]) -> None:
    """Replace the file in one step. A failure costs the next run a reading of the models, nothing else."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".digests-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(digests))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        pass
