"""OpenVINO through its public Python packages: devices, loading, and what went wrong while loading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modeld.engine.llama.runtime import default_threads
from modeld.engine.protocol import Device, Load
from modeld.errors import MissingDependencyError, ModelLoadError, NotSupportedError

if TYPE_CHECKING:
    from modeld.engine.backend import Backend, Embedder
    from modeld.engine.openvino.lexicon import OpenvinoLexicon

DEVICE: Final = "MODELD_OPENVINO_DEVICE"
"""Environment variable: AUTO (a discrete GPU, an integrated one, the processor), CPU, GPU, or GPU.0 and so on."""


class OpenvinoRuntime:
    """The native library in this process.

    :raises MissingDependencyError: its packages are not installed.
    :raises NotSupportedError: the device that is asked for cannot be used.
    """

    def __init__(self) -> None:
        try:
            import openvino
            import openvino_genai
            import openvino_tokenizers
        except ImportError as error:
            raise MissingDependencyError(
                f"the openvino engine is not installed ({error}): pip install openvino openvino-genai "
                "openvino-tokenizers jinja2, or install modeld with its extra openvino",
                extra="openvino",
            ) from error
        versions = (openvino.__version__, openvino_genai.__version__, openvino_tokenizers.__version__)
        self.build = "openvino {}, genai {}, tokenizers {}".format(*(version.split("-")[0] for version in versions))
        self._core: Any = openvino.Core()
        self.devices = _devices(self._core, os.environ.get(DEVICE, "AUTO").upper())

    def load(self, request: Load) -> Backend:
        """Read the graph and compile it for its device.

        :raises ModelLoadError: OpenVINO refused. :raises NotSupportedError: the graph or the KV type.
        """
        from modeld.engine.openvino.backend import KINDS, OpenvinoBackend
        from modeld.engine.openvino.graph import read_graph
        from modeld.engine.openvino.lexicon import first_line

        if request.kv_type not in KINDS:
            raise NotSupportedError(
                f"OpenVINO keeps KV exactly as {' or '.join(KINDS)}, not {request.kv_type}: a quantised state changes "
                "each time it is copied",
                feature=f"kv_type_{request.kv_type}",
            )
        graph = read_graph(self._core, Path(request.path) / "openvino_model.xml", request.name)
        device = "CPU" if request.gpu_layers == 0 or not self.devices else _best(self.devices).name
        properties = _properties(device, request)

        def compiled() -> Any:
            try:
                return self._core.compile_model(graph.model, device, properties)
            except RuntimeError as error:
                raise ModelLoadError(f"OpenVINO cannot compile {request.name}: {first_line(error)}") from error

        return OpenvinoBackend(compiled, graph, request, device)

    def embedder(self, request: Load) -> Embedder:
        """:raises NotSupportedError: always; vectors are made by llama.cpp."""
        raise NotSupportedError(f"{request.name} is an OpenVINO model, which makes no vectors here", feature="embed")

    def lexicon(self, request: Load) -> OpenvinoLexicon:
        """Read the tokeniser alone. :raises ModelLoadError: it cannot be read."""
        from modeld.engine.openvino.lexicon import OpenvinoLexicon

        return OpenvinoLexicon(Path(request.path), request.name)


def _properties(device: str, request: Load) -> dict[str, Any]:
    """Nothing approximate: by default the processor computes in bf16 where it can, keeps KV as u8 and quantises what
    goes into products with 8 and 4 bit weights."""
    common = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "KV_CACHE_PRECISION": request.kv_type}
    if device != "CPU":
        return common
    return {
        **common,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": request.threads or default_threads(),
        # Others use the machine as well: a pinned thread waits for its core.
        "ENABLE_CPU_PINNING": False,
    }


def _devices(core: Any, wanted: str) -> tuple[Device, ...]:
    """The accelerators that may be used, none where the processor is asked for."""
    if wanted.startswith("NPU"):
        raise NotSupportedError(
            f"{DEVICE}={wanted}: an NPU compiles graphs of fixed shapes, and KV that grows with each token has none; "
            "use AUTO, GPU or CPU",
            feature="openvino_npu",
        )
    if wanted == "CPU":
        return ()
    found = tuple(_device(core, name) for name in core.available_devices if name.startswith("GPU"))
    # Without telemetry of its memory nothing can be planned for it, and it is none of Intel's.
    usable = tuple(device for device in found if device.total)
    if wanted == "AUTO":
        # The node takes the one with the most free memory, and an integrated one counts the machine's.
        return tuple(device for device in usable if device.kind == "gpu") or usable
    chosen = tuple(device for device in usable if wanted in ("GPU", device.name))
    if not chosen:
        there = ", ".join(["CPU", *(device.name for device in usable)])
        raise NotSupportedError(
            f"{DEVICE}={wanted}: this machine has no such device, only {there}; start the node again with AUTO "
            "or one of these",
            feature="device",
        )
    return chosen


def _device(core: Any, name: str) -> Device:
    def ask(key: str) -> Any:
        try:
            return core.get_property(name, key)
        except RuntimeError:
            return None

    import psutil

    kind = "gpu" if "discrete" in str(ask("DEVICE_TYPE")).lower() else "igpu"
    # What others use of it nobody says; an integrated one has the machine's memory.
    total = free = int(ask("GPU_DEVICE_TOTAL_MEM_SIZE") or 0)
    if kind == "igpu":
        free = min(free, psutil.virtual_memory().available)
    return Device(name, kind, str(ask("FULL_DEVICE_NAME") or ""), free, total, str(ask("DEVICE_UUID") or ""))


def _best(devices: tuple[Device, ...]) -> Device:
    """As the node plans: the one with the most free memory."""
    return max(devices, key=lambda device: device.free)
