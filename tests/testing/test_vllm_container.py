"""Hazard: a container that does not get ready hangs a test run, or is left behind."""

import asyncio
import json
import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

import pytest

from modeld import BackendUnavailableError
from modeld.testing import setup_vllm_local_instance

pytestmark = pytest.mark.anyio

MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"


class FakeContainer:
    """As ``testcontainers``' own, with a little server of its own instead of vLLM.

    :cvar last: the one that was made last. :cvar failing: method that raises.
    """

    last: ClassVar[Self]
    failing: ClassVar[frozenset[str]] = frozenset()
    unhealthy: ClassVar[int] = 2
    unlisted: ClassVar[int] = 2
    status: ClassVar[str] = "running"

    def __init__(self, image: str) -> None:
        type(self).last = self
        self.image = image
        self.ports: list[int] = []
        self.env: dict[str, str] = {}
        self.command: list[str] = []
        self.calls: list[str] = []
        self.paths: list[str] = []
        self.threads: set[int] = {threading.get_ident()}
        self._server: ThreadingHTTPServer | None = None

    def with_exposed_ports(self, *ports: int) -> Self:
        self.ports.extend(ports)
        return self

    def with_env(self, key: str, value: str) -> Self:
        self.env[key] = value
        return self

    def with_command(self, command: list[str]) -> Self:
        self.command = command
        return self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        if name in self.failing:
            raise RuntimeError(f"docker failed to {name}")

    def start(self) -> Self:
        container = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                container.paths.append(self.path)
                status, body = container.answer(self.path)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self._call("start")
        return self

    def answer(self, path: str) -> tuple[int, bytes]:
        if path == "/health":
            return (200 if self.paths.count(path) > self.unhealthy else 503), b""
        listed = [{"id": MODEL}] if self.paths.count(path) > self.unlisted else []
        return 200, json.dumps({"object": "list", "data": listed}).encode()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._call("stop")

    def get_container_host_ip(self) -> str:
        return "127.0.0.1"

    def get_exposed_port(self, port: int) -> int:
        assert port == 8000
        assert self._server is not None
        return int(self._server.server_address[1])

    def get_wrapped_container(self) -> Any:
        return self

    def reload(self) -> None:
        self._call("reload")

    def get_logs(self) -> tuple[bytes, bytes]:
        return b"x" * 5000 + b"loading\n", b"out of memory\n"


def setup(container_class: type[FakeContainer], **options: Any) -> Any:
    return setup_vllm_local_instance(container_class=container_class, **{"poll": 0.01, "ready_within": 30.0, **options})


async def test_a_server_is_given_when_it_lists_its_model_and_removed_after() -> None:
    async with setup(FakeContainer, tag="0.20.1") as (url, container):
        assert container is FakeContainer.last
        assert url == f"http://127.0.0.1:{container.get_exposed_port(8000)}"
        assert container.paths == ["/health"] * 3 + ["/v1/models"] * 3
        assert container.image == "openeuler/vllm-cpu:0.20.1"
        assert container.ports == [8000]
        assert container.env == {"VLLM_CPU_KVCACHE_SPACE": "1"}
        assert container.command == [
            *("--model", MODEL),
            *("--max-model-len", "4096"),
            *("--max-num-seqs", "1"),
            *("--gpu-memory-utilization", "0.3"),
            "--enforce-eager",
        ]
        assert "stop" not in container.calls
    assert container.calls.count("stop") == 1
    assert threading.get_ident() not in container.threads


@pytest.mark.parametrize(("parser", "flags"), [("", []), ("none", []), ("hermes", ["--tool-call-parser", "hermes"])])
async def test_tools_are_on_with_a_parser(parser: str, flags: list[str]) -> None:
    async with setup(FakeContainer, tool_parser=parser, model=MODEL) as (_, container):
        assert container.command[-2:] == (flags or ["0.3", "--enforce-eager"])
        assert ("--enable-auto-tool-choice" in container.command) == bool(flags)


async def test_an_error_within_the_block_removes_the_container() -> None:
    with pytest.raises(ZeroDivisionError):
        async with setup(FakeContainer):
            raise ZeroDivisionError
    assert FakeContainer.last.calls[-1] == "stop"


async def test_a_server_that_does_not_get_healthy_is_removed_and_quoted() -> None:
    class Sick(FakeContainer):
        unhealthy = 10**9

    with pytest.raises(BackendUnavailableError, match=r"healthy in 0\.1 s") as caught:
        async with setup(Sick, ready_within=0.1):
            pytest.fail("it is not ready")
    assert str(caught.value).endswith("loading\nout of memory")
    assert len(str(caught.value)) < 2200
    assert Sick.last.calls[-1] == "stop"


async def test_a_server_without_its_model_is_not_ready() -> None:
    class Empty(FakeContainer):
        unlisted = 10**9

    with pytest.raises(BackendUnavailableError, match="does not list"):
        async with setup(Empty, poll=0.2):
            pytest.fail("it is not ready")
    # 16 fit into the time when each is answered at once.
    assert 10 <= Empty.last.paths.count("/v1/models") <= 16
    assert Empty.last.calls[-1] == "stop"


async def test_a_container_that_ended_is_not_waited_for() -> None:
    class Ended(FakeContainer):
        unhealthy = 10**9
        status = "exited"

    with pytest.raises(BackendUnavailableError, match="ended; its last words"):
        async with setup(Ended, ready_within=600.0, poll=300.0):
            pytest.fail("it is not ready")
    assert Ended.last.calls[-1] == "stop"


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"data": 5}', b'{"data": [{}]}'])
async def test_what_is_no_list_of_models_is_not_ready(body: bytes) -> None:
    class Odd(FakeContainer):
        def answer(self, path: str) -> tuple[int, bytes]:
            return 200, body

    with pytest.raises(BackendUnavailableError, match="does not list"):
        async with setup(Odd):
            pytest.fail("it is not ready")


async def test_a_failed_start_is_cleaned_up() -> None:
    class Broken(FakeContainer):
        failing = frozenset({"start"})

    with pytest.raises(RuntimeError, match="failed to start"):
        async with setup(Broken):
            pytest.fail("it did not start")
    assert Broken.last.calls == ["start", "stop"]


async def test_a_failed_clean_up_does_not_hide_why() -> None:
    class Stuck(FakeContainer):
        failing = frozenset({"start", "stop"})

    with pytest.raises(RuntimeError, match="failed to start") as caught:
        async with setup(Stuck):
            pytest.fail("it did not start")
    assert caught.value.__notes__ == ["the container could not be removed: docker failed to stop"]


async def enter(container_class: type[FakeContainer]) -> None:
    async with setup(container_class):
        pytest.fail("it is not ready")


async def test_a_cancelled_wait_removes_the_container() -> None:
    class Sick(FakeContainer):
        unhealthy = 10**9

    task = asyncio.create_task(enter(Sick))
    async with asyncio.timeout(10):
        while not (hasattr(Sick, "last") and type(Sick.last) is Sick and Sick.last.paths):
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Sick.last.calls[-1] == "stop"


@pytest.mark.parametrize("fails", [False, True])
async def test_a_start_that_is_cancelled_is_waited_for_and_undone(fails: bool) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(FakeContainer):
        failing = frozenset({"start"} if fails else ())

        def start(self) -> Self:
            started.set()
            assert go_on.wait(10)
            return super().start()

    task = asyncio.create_task(enter(Slow))
    await asyncio.to_thread(started.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Slow.last.calls == ["start", "stop"]


def has_docker() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, timeout=20).returncode == 0


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    os.environ.get("MODELD_VLLM_CONTAINER") != "1" or not has_docker(),
    reason="vLLM's container is really run with MODELD_VLLM_CONTAINER=1 and a Docker daemon: it pulls some gigabytes",
)
async def test_the_real_container_serves_the_model() -> None:
    from modeld import Message
    from modeld.repository import BackendSpec, new_catalog_provider

    async with setup_vllm_local_instance() as (url, _):
        catalog = new_catalog_provider(BackendSpec("vllm", url))
        (model,) = await catalog.list_models()
        assert model.name == MODEL
        assert model.context_length == 4096
        client = await catalog.provider_for(model).chat_client()
        assert (await client.chat([Message("user", "Say hello.")], max_tokens=8)).text
        await catalog.aclose()
