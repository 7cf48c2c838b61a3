"""``modeld serve``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from msgspec import structs

from modeld.cli.errors import usage
from modeld.cli.options import DataRootOption, parse_address, parse_duration, parse_size, root_of
from modeld.cli.output import say
from modeld.errors import InvalidRequestError

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord
    from modeld.transport.host import Door, HostConfig


DEFAULT_HTTP: Final = "127.0.0.1:11535"


def serve(
    data_root: DataRootOption = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT|off", help="Serve gRPC over TCP too, to callers with the token.")
    ] = "off",
    http: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT|off",
            envvar="MODELD_HTTP",
            help="Serve HTTP here, to callers with the token. Default: 127.0.0.1:11535, or none where that is taken.",
            show_default=False,
        ),
    ] = "",
    http_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin call over HTTP, such as https://chat.example."),
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--no-tls",
            help="TLS for TCP and HTTP, with a self-made certificate. Default: beyond loopback, where it must be.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use this certificate: PEM, with its chain.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key: PEM, without password.")] = None,
    idle_ttl: Annotated[
        str, typer.Option(metavar="DURATION", help="Unused for this long, the engine exits: 300, 5m, 2h or off.")
    ] = "5m",
    ram: Annotated[
        str, typer.Option(metavar="SIZE|auto|off", help="Main memory for KV that leaves the engine: 512MiB, 4GiB.")
    ] = "auto",
    disk: Annotated[
        str, typer.Option(metavar="SIZE|auto|off", help="Files for KV that outlives the engine; none without --ram.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option(min=0, max=512, metavar="N", help="Threads of the engine; 0: its own choice.")
    ] = 0,
    allow_fake: Annotated[bool, typer.Option(hidden=True, help="Serve fake models, for tests.")] = False,
) -> int:
    """Serve models from the foreground, until ctrl-C or SIGTERM.

    One node owns a data root: where another one does already, this says which, and exits 3. A node that loses its lease
    stops serving and exits 4.
    """
    with usage():
        address, idle_seconds = parse_address(listen), parse_duration(idle_ttl)
        parse_address(http or DEFAULT_HTTP)
        ram_bytes, disk_bytes = parse_size(ram), parse_size(disk)
        _check_budgets(ram_bytes, disk_bytes)
    import asyncio
    import logging

    from modeld.node.config import NodeConfig
    from modeld.transport import host

    root = root_of(data_root)

    def ready(record: OwnerRecord) -> None:
        endpoints = " and ".join(record.endpoints)
        say(f"ready: process {record.pid}, data root {root}, {endpoints}, epoch {record.epoch}")
        if line := _invitation(record, root, tls_cert):
            say("for another machine (it asks for the token, which `modeld token --show` shows here):")
            print(line, file=sys.stderr, flush=True)

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("modeld").setLevel(logging.INFO)
    node = NodeConfig(
        data_root=root, idle_ttl=idle_seconds, threads=threads, ram=ram_bytes, disk=disk_bytes, allow_fake=allow_fake
    )
    config = host.HostConfig(node=node, listen=address, tls=tls, tls_cert=tls_cert, tls_key=tls_key)
    asyncio.run(host.serve(config, ready, _door(http, config, tuple(http_origin or ()))))
    return 0


def _door(http: str, config: HostConfig, origins: tuple[str, ...]) -> Door | None:
    """The way in over HTTP. The default one is on loopback, whatever TLS was asked for elsewhere."""
    from modeld.http.door import HttpConfig, HttpDoor

    address = parse_address(http or DEFAULT_HTTP)
    if address is None:
        return None
    door = HttpConfig(data_root=config.node.data_root, host=address[0], port=address[1], origins=origins)
    if http:
        door = structs.replace(door, required=True, tls=config.tls, tls_cert=config.tls_cert, tls_key=config.tls_key)
    return HttpDoor(door)


def _check_budgets(ram: int | None, disk: int | None) -> None:
    import psutil

    if ram == 0 and disk:
        raise InvalidRequestError("KV gets to files by way of main memory: --disk needs --ram")
    if ram and ram > (total := psutil.virtual_memory().total):
        raise InvalidRequestError(f"--ram is {ram:,} bytes, and this machine has {total:,} in all")


def _invitation(record: OwnerRecord, root: Path, certificate: Path | None) -> str:
    """The command that registers this node elsewhere; ``""`` without TLS. It holds no secret, so logs may keep it."""
    import re
    import socket

    from modeld.transport.security import TLS_SCHEME, own_pin

    urls = [endpoint for endpoint in record.endpoints if endpoint.startswith(TLS_SCHEME)]
    if not urls:
        return ""
    host, _, port = urls[0].removeprefix(TLS_SCHEME).rpartition(":")
    name = socket.gethostname()
    host = name if host in ("0.0.0.0", "[::]") else host
    name = re.sub(r"[^A-Za-z0-9._-]", "", name)[:64].lstrip("._-") or "node"
    where = f"--url {TLS_SCHEME}{host}:{port} --pin {own_pin(root, certificate)}"
    return f"modeld backends add {name} --type modeld {where} --token-file -"
