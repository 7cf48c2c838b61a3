"""A vLLM server in a container, on the processor: slow, small and real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.request import ProxyHandler, build_opener

from modeld.errors import BackendUnavailableError
from modeld.repository.connections import require

IMAGE: Final = "openeuler/vllm-cpu"
"""Its entry point is the server: a command is the server's flags (https://hub.docker.com/r/openeuler/vllm-cpu)."""

PORT: Final = 8000
FLAGS: Final = (
    "--max-model-len", "4096",
    "--max-num-seqs", "1",
    "--gpu-memory-utilization", "0.3",
    "--enforce-eager",
)  # fmt: skip
HEALTH_TIMEOUT: Final = 480.0
"""Seconds until ``/health`` answers: the model is downloaded in them."""

POLL: Final = 10.0
MODEL_POLLS: Final = 15
ANSWER_TIMEOUT: Final = 5.0
LAST_WORDS: Final = 2000

T = TypeVar("T")


@asynccontextmanager
async def setup_vllm_local_instance(
    model: str = "HuggingFaceTB/SmolLM2-360M-Instruct",
    tag: str = "latest",
    tool_parser: str = "",
    *,
    container_class: Callable[[str], Any] | None = None,
    ready_within: float = HEALTH_TIMEOUT,
    poll: float = POLL,
) -> AsyncIterator[tuple[str, Any]]:
    """Start vLLM with ``model``; give its URL, without ``/v1``, and the container when it lists the model.

    The container is removed when the block ends, and also when it does not get ready or the task is cancelled: then
    after what Docker is doing at that moment, such as pulling the image, has ended.

    :param tool_parser: vLLM's parser of tool calls, such as ``hermes``; ``""`` or ``none``: tools are off.
    :param container_class: made with the name of the image; ``None``: ``testcontainers``' own.
    :param ready_within: seconds until the server is healthy. :param poll: seconds between two looks.
    :raises BackendUnavailableError: it did not get ready; the message has its last words.
    :raises MissingDependencyError: the extra ``testing`` is not installed.
    """
    container = await _finished(lambda: _container(model, f"{IMAGE}:{tag}", tool_parser, container_class))
    try:
        await _finished(container.start)
        url = await _finished(lambda: f"http://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}")
        await _wait_for(
            container, lambda: _is_healthy(url), ready_within, poll, f"did not get healthy in {ready_within:g} s"
        )
        text = f"is healthy and does not list {model}"
        await _wait_for(container, lambda: _lists(url, model), MODEL_POLLS * poll, poll, text)
        yield url, container
    except BaseException as error:
        try:
            await _finished(container.stop)
        except Exception as second:
            error.add_note(f"the container could not be removed: {second}")
        raise
    await _finished(container.stop)


def _container(model: str, image: str, tool_parser: str, container_class: Callable[[str], Any] | None) -> Any:
    if container_class is None:
        container_class = require("testcontainers.core.container", "testing").DockerContainer
    command = ["--model", model, *FLAGS]
    if tool_parser not in ("", "none"):
        command += ["--enable-auto-tool-choice", "--tool-call-parser", tool_parser]
    container = container_class(image)
    container.with_exposed_ports(PORT).with_env("VLLM_CPU_KVCACHE_SPACE", "1").with_command(command)
    return container


async def _finished(call: Callable[[], T]) -> T:
    """``call`` in a thread. Cancelled, it waits for the thread: a container that is being made has to be removed."""
    task = asyncio.ensure_future(asyncio.to_thread(call))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Fetched, so that nobody reports it as lost.
        failed = task.exception()
        raise cancelled from failed
    return task.result()


async def _wait_for(container: Any, ready: Callable[[], bool], within: float, poll: float, otherwise: str) -> None:
    clock = asyncio.get_running_loop().time
    deadline = clock() + within
    while not await asyncio.to_thread(ready):
        ended = await asyncio.to_thread(_has_ended, container)
        if ended or clock() + poll > deadline:
            words = await asyncio.to_thread(_last_words, container)
            raise BackendUnavailableError(
                f"vLLM in its container {'ended' if ended else otherwise}; its last words: {words}",
                backend="vllm",
                status=0,
                retry_after=None,
            )
        await asyncio.sleep(poll)


def _has_ended(container: Any) -> bool:
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    return wrapped.status in ("exited", "dead")


def _last_words(container: Any) -> str:
    return b"".join(container.get_logs()).decode(errors="replace").strip()[-LAST_WORDS:] or "none"


def _get(url: str) -> bytes | None:
    """The body of a good answer. A proxy of the environment is not for a container on this machine."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=ANSWER_TIMEOUT) as response:
            body: bytes = response.read()
            return body
    except (OSError, HTTPException):
        return None


def _is_healthy(url: str) -> bool:
    return _get(f"{url}/health") is not None


def _lists(url: str, model: str) -> bool:
    body = _get(f"{url}/v1/models")
    try:
        return body is not None and model in [entry["id"] for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        return False
