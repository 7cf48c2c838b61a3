"""The registry of backend types: built-in ones by name, those of others by entry point or by call.

A third party's package declares::

    [project.entry-points."modeld.providers"]
    mytype = "mypackage.module:make_catalog"

where ``make_catalog(spec, options)`` returns a :class:`~modeld.repository.CatalogProvider`.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import Struct, field, structs

from modeld.errors import InvalidRequestError
from modeld.repository.contract import CatalogProvider
from modeld.repository.retry import RetryPolicy
from modeld.repository.tracker import NoopTracker, Tracker
from modeld.repository.values import BackendSpec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from modeld.session.contract import ModelService

ENTRY_POINTS: Final = "modeld.providers"

BUILT_IN: Final = {
    "anthropic": "modeld.providers.anthropic",
    "gemini": "modeld.providers.gemini",
    "llama": "modeld.providers.llama",
    "modeld": "modeld.providers.modeld",
    "ollama": "modeld.providers.ollama",
    "openai": "modeld.providers.openai",
    "openvino": "modeld.providers.openvino",
    "vertex-google": "modeld.providers.vertex",
    "vllm": "modeld.providers.vllm",
}
"""Modules with a ``make_catalog``. They are loaded by name, at the first backend of their type."""

COMPATIBLE: Final = "modeld.providers.compatible"
"""The same for all types that are a row of its ``VENDORS``."""

_ALIASES: Final = {"local": "llama", "vertex": "vertex-google"}


class CatalogOptions(Struct, frozen=True, kw_only=True):
    """What a backend is built with.

    :param name: what the backend was registered as; errors say it where it is not the type.
    :param http_client: for listing and execution alike; of the library the vendor's SDK is built on (``httpx2`` for
        ``openai``, ``anthropic`` and ``google-genai``, ``httpx`` for ``ollama``). It stays the caller's: it is not
        closed.
    :param service: opens the node that executes ``llama`` and ``openvino`` models; ``None``: the data root's.
    """

    name: str = ""
    http_client: Any = None
    tracker: Tracker = field(default_factory=NoopTracker)
    retry: RetryPolicy = RetryPolicy()
    service: Callable[[], Awaitable[ModelService]] | None = None


Constructor = Callable[[BackendSpec, CatalogOptions], CatalogProvider]


def canonical_backend_type(name: str) -> str:
    """``name`` in lower case, without blanks around it; ``local`` is ``llama``, ``vertex`` is ``vertex-google``.

    Others stay as they are, unknown ones too.
    """
    name = name.strip().lower()
    return _ALIASES.get(name, name)


def built_in_types() -> list[str]:
    """The types that need nobody to register them, sorted."""
    return sorted({*BUILT_IN, *import_module(COMPATIBLE).VENDORS})


class Registry:
    """Backend types by name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._constructors: dict[str, Constructor] = {}

    def register(self, backend_type: str, constructor: Constructor) -> None:
        """See :func:`register_catalog_provider`."""
        name = canonical_backend_type(backend_type)
        if not name:
            raise InvalidRequestError("a backend type needs a name", parameter="type")
        if not callable(constructor):
            raise InvalidRequestError(f"the constructor of {name!r} is not callable", parameter="constructor")
        with self._lock:
            if name in built_in_types() or name in self._constructors:
                raise InvalidRequestError(f"there is a backend type {name!r} already", parameter="type")
            self._constructors[name] = constructor

    def types(self) -> list[str]:
        """All names, sorted; entry points included."""
        with self._lock:
            registered = set(self._constructors)
        return sorted({*built_in_types(), *registered, *(canonical_backend_type(point.name) for point in _points())})

    def constructor(self, backend_type: str) -> Constructor:
        """:raises InvalidRequestError: nobody registered that type."""
        name = canonical_backend_type(backend_type)
        if not name:
            raise InvalidRequestError("a backend needs a type", parameter="type")
        if name in built_in_types():
            return cast("Constructor", import_module(BUILT_IN.get(name, COMPATIBLE)).make_catalog)
        with self._lock:
            found = self._constructors.get(name)
        if found is not None:
            return found
        for point in _points():
            if canonical_backend_type(point.name) == name:
                return cast("Constructor", point.load())
        known = ", ".join(self.types())
        raise InvalidRequestError(f"no backend type is called {backend_type!r}; there are {known}", parameter="type")

    def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
        """See :func:`new_catalog_provider`."""
        constructor = self.constructor(spec.type)
        spec = structs.replace(spec, type=canonical_backend_type(spec.type))
        return constructor(spec, options or CatalogOptions())


def _points() -> tuple[EntryPoint, ...]:
    # Here, because it takes longer to import than everything else of this room.
    from importlib.metadata import entry_points

    return tuple(entry_points(group=ENTRY_POINTS))


_registry: Final = Registry()


def register_catalog_provider(backend_type: str, constructor: Constructor) -> None:
    """Make ``backend_type`` known to this process; ``constructor(spec, options)`` gives a catalog.

    :raises InvalidRequestError: no name, no callable, or the type is there already.
    """
    _registry.register(backend_type, constructor)


def default_catalog_factory() -> Registry:
    """The process's registry: what :class:`~modeld.repository.Daemon` uses where it is given none."""
    return _registry


def new_catalog_provider(spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
    """The catalog of one backend. No network and no SDK; imports the type's module.

    :raises InvalidRequestError: nobody registered the type, or the spec cannot be used.
    """
    return _registry.new_catalog_provider(spec, options)
