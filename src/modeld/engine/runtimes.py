"""Which engines there are."""

from __future__ import annotations

from modeld.engine.backend import Runtime
from modeld.errors import NotSupportedError


def load_runtime(name: str) -> Runtime:
    """The runtime of a backend by name. Importing it is what makes the process native.

    :raises NotSupportedError: no such backend.
    :raises MissingDependencyError: its packages are not installed.
    """
    if name == "fake":
        from modeld.engine.fake.backend import FakeRuntime

        return FakeRuntime()
    if name == "llama":
        from modeld.engine.llama.runtime import LlamaRuntime

        return LlamaRuntime()
    if name == "openvino":
        from modeld.engine.openvino.runtime import OpenvinoRuntime

        return OpenvinoRuntime()
    raise NotSupportedError(f"there is no engine {name!r}; there are llama, openvino and fake", feature=name)
