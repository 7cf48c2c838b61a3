"""llama.cpp through the low-level binding: devices, loading, and what went wrong while loading."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modeld.engine.protocol import Device, Load
from modeld.errors import CapacityError, MissingDependencyError, ModelLoadError

if TYPE_CHECKING:
    from modeld.engine.llama.backend import LlamaBackend
    from modeld.engine.llama.embedder import LlamaEmbedder
    from modeld.engine.llama.lexicon import LlamaLexicon

KV_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}
"""ggml_type numbers (ggml.h)."""

_DEVICE_KINDS = {1: "gpu", 2: "igpu"}
"""enum ggml_backend_dev_type (ggml-backend.h): 0 is the processor, 3 a library such as BLAS that has no memory."""

_LOG_ERROR = 4
"""GGML_LOG_LEVEL_ERROR (ggml.h)."""


class LlamaRuntime:
    """The native library in this process. There is one; it is never unloaded."""

    # The library goes on logging when this object is gone: what it calls must live as long as the process.
    _callbacks: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        try:
            import llama_cpp
            from llama_cpp import _ggml
            from llama_cpp import llama_cpp as native
        except ImportError as error:
            raise MissingDependencyError(
                f"the llama engine is not installed ({error}): pip install llama-cpp-python jinja2, or install modeld "
                "with its extra llama",
                extra="llama",
            ) from error
        self.native: Any = native
        self._log: deque[str] = deque(maxlen=20)
        self._flash = ""
        callback = native.llama_log_callback(self._take_log)
        self._callbacks.append(callback)
        native.llama_log_set(callback, None)
        native.llama_backend_init()
        info = hashlib.sha256(native.llama_print_system_info()).hexdigest()[:12]
        self.build = f"llama-cpp-python {llama_cpp.__version__} {info}"
        self.devices = tuple(_devices(_ggml.libggml))

    def load(self, request: Load) -> LlamaBackend:
        """Load weights and make a context.

        :raises ModelLoadError: llama.cpp refused; the message holds its own last words.
        """
        from modeld.engine.llama.backend import LlamaBackend, guarded_window

        native = self.native
        self._log.clear()
        self._flash = ""
        model_params = native.llama_model_default_params()
        model_params.n_gpu_layers = 0 if request.gpu_layers == 0 else 0x7FFFFFFF
        model = native.llama_model_load_from_file(os.fsencode(request.path), model_params)
        if not model:
            raise ModelLoadError(f"llama.cpp cannot load {request.name}: {self.last_words()}", path=request.path)
        if not native.llama_model_has_decoder(model) or not native.llama_vocab_n_tokens(
            native.llama_model_get_vocab(model)
        ):
            native.llama_model_free(model)
            raise ModelLoadError(f"{request.name} cannot generate text: it has no decoder or no vocabulary")
        # Beside the sessions' own: one through which state is saved and restored, and guards of windowed layers.
        ids = request.sequences * (2 if guarded_window(native, model) else 1) + 1
        if ids > (most := native.llama_max_parallel_sequences()):
            native.llama_model_free(model)
            raise CapacityError(
                f"{request.sequences} sequences of {request.name} need {ids} ids and llama.cpp has {most}; "
                f"{(most - 1) // 2} sequences would do with any model",
                sequences=request.sequences,
            )
        # Before the context: it makes room for what they add to the graph.
        adapters = self._adapters(model, request)
        context = native.llama_init_from_model(model, self._context_params(request, ids))
        if not context:
            native.llama_model_free(model)
            raise CapacityError(
                f"llama.cpp cannot make a context of {request.cells} cells for {request.name}: {self.last_words()}; "
                "try a smaller context or kv_type q8_0",
                cells=request.cells,
                kv_type=request.kv_type,
            )
        self._activate(context, model, adapters, request)
        return LlamaBackend(native, model, context, request, self._kv_layout())

    def _adapters(self, model: Any, request: Load) -> list[Any]:
        """The request's adapters, read. They belong to the model and are freed with it."""
        native = self.native
        found = []
        for adapter in request.adapters:
            loaded = native.llama_adapter_lora_init(model, os.fsencode(adapter.path))
            if not loaded:
                native.llama_model_free(model)
                raise ModelLoadError(
                    f"llama.cpp cannot load the adapter {adapter.name} for {request.name}: {self.last_words()}",
                    path=adapter.path,
                )
            found.append(loaded)
        return found

    def _activate(self, context: Any, model: Any, adapters: list[Any], request: Load) -> None:
        """Make the whole set active in one call: each call replaces the set of the one before."""
        native, count = self.native, len(adapters)
        scales = (ctypes.c_float * count)(*(adapter.scale for adapter in request.adapters))
        pointers = (native.llama_adapter_lora_p_ctypes * count)(
            *(ctypes.cast(a, native.llama_adapter_lora_p_ctypes) for a in adapters)
        )
        if count and native.llama_set_adapters_lora(context, pointers, count, scales):
            native.llama_free(context)
            native.llama_model_free(model)
            raise ModelLoadError(
                f"llama.cpp cannot make {count} adapters active on {request.name}: {self.last_words()}"
            )

    def embedder(self, request: Load) -> LlamaEmbedder:
        """Load weights and make a context for vectors, on the processor whatever devices there are.

        :raises ModelLoadError: llama.cpp refused; the message holds its own last words.
        """
        from modeld.engine.llama.embedder import LlamaEmbedder

        native = self.native
        model = self._open(request, vocabulary_only=False)
        params = self._vector_params(request)
        context = native.llama_init_from_model(model, params)
        source: Literal["model", "default"] = "model"
        if context and native.llama_pooling_type(context) == native.LLAMA_POOLING_TYPE_NONE:
            native.llama_free(context)
            params.pooling_type, source = native.LLAMA_POOLING_TYPE_MEAN, "default"
            context = native.llama_init_from_model(model, params)
        if not context:
            native.llama_model_free(model)
            raise CapacityError(
                f"llama.cpp cannot make a context for vectors of {request.window} tokens for {request.name}: "
                f"{self.last_words()}; try a smaller context",
                context=request.window,
            )
        return LlamaEmbedder(native, model, context, request.window, request.sequences, source)

    def lexicon(self, request: Load) -> LlamaLexicon:
        """Load the model without its weights. :raises ModelLoadError: it has no vocabulary, or llama.cpp refused."""
        from modeld.engine.llama.lexicon import LlamaLexicon

        return LlamaLexicon(self.native, self._open(request, vocabulary_only=True))

    def _open(self, request: Load, *, vocabulary_only: bool) -> Any:
        """The model, none of it on an accelerator."""
        native = self.native
        self._log.clear()
        params = native.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocabulary_only
        # A list of devices that holds none. Without it large products would go to one all the same.
        devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(devices, ctypes.c_void_p)
        model = native.llama_model_load_from_file(os.fsencode(request.path), params)
        if not model:
            raise ModelLoadError(f"llama.cpp cannot load {request.name}: {self.last_words()}", path=request.path)
        if not native.llama_vocab_n_tokens(native.llama_model_get_vocab(model)):
            native.llama_model_free(model)
            raise ModelLoadError(f"{request.name} has no vocabulary: no text can be given to it", path=request.path)
        return model

    def _vector_params(self, request: Load) -> Any:
        from modeld.engine.llama.embedder import EXACT_TOKENS

        params = self.native.llama_context_default_params()
        # The vectors of an input are pooled within one piece of a batch, so the longest must be one. A size that is no
        # multiple of the sequences ends the process (GGML_ASSERT in build_pooling): cells are padded.
        params.n_ctx = params.n_batch = params.n_ubatch = request.cells
        params.n_seq_max = request.sequences
        params.n_threads = params.n_threads_batch = request.threads or default_threads()
        params.embeddings = True
        params.kv_unified = True
        params.offload_kqv = params.op_offload = False
        if request.window <= EXACT_TOKENS:
            params.flash_attn_type = self.native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return params

    def _context_params(self, request: Load, ids: int) -> Any:
        params = self.native.llama_context_default_params()
        params.n_ctx = request.cells
        params.n_batch = params.n_ubatch = request.batch
        params.n_seq_max = ids
        # Logits are wanted for one token of a sequence at most; the default keeps a row for each token of a batch,
        # which is 311 MB at a vocabulary of 152,000.
        params.n_outputs_max = params.n_seq_max
        params.n_threads = params.n_threads_batch = request.threads or default_threads()
        params.type_k = params.type_v = KV_TYPES[request.kv_type]
        # One cache for all sequences, so that a prefix can be shared (seq_cp) without copying it.
        params.kv_unified = True
        # The plan counts full KV for windowed layers, and a cut in the middle needs all cells (see Cells).
        params.swa_full = True
        return params

    def _kv_layout(self) -> str:
        """Whether llama.cpp chose flash attention (it transposes V without it) is to be had from its log alone."""
        return f"{self._flash or 'flash attention: auto'}; one stream; all cells of windowed layers"

    def last_words(self) -> str:
        """What the library logged last as errors."""
        return "; ".join(self._log) or "it gave no reason"

    def _take_log(self, level: int, text: bytes, _: Any) -> None:
        if b"Flash Attention" in text:
            self._flash = text.decode("utf-8", "replace").rpartition(": ")[2].strip()[:100]
        if level == _LOG_ERROR:
            self._log.append(text.decode("utf-8", "replace").strip()[:300])


def default_threads() -> int:
    """Physical cores that this process may use: a second thread on a core slows matrix products down."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def _devices(library: ctypes.CDLL) -> list[Device]:
    count = library.ggml_backend_dev_count
    count.restype = ctypes.c_size_t
    get = library.ggml_backend_dev_get
    get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
    kind = library.ggml_backend_dev_type
    kind.argtypes, kind.restype = [ctypes.c_void_p], ctypes.c_int
    memory = library.ggml_backend_dev_memory
    memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    memory.restype = None
    texts = []
    for function in (library.ggml_backend_dev_name, library.ggml_backend_dev_description):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
        texts.append(function)
    found = []
    for index in range(count()):
        device = get(index)
        if (name := _DEVICE_KINDS.get(kind(device))) is None:
            continue
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        memory(device, ctypes.byref(free), ctypes.byref(total))
        label, description = ((text(device) or b"").decode("utf-8", "replace") for text in texts)
        found.append(Device(label, name, description, free.value, total.value))
    return found
