"""``modeld serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modeld.cli.errors import usage
from modeld.cli.options import DataRootOption, parse_address, parse_duration, root_of
from modeld.cli.output import say

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord


def serve(
    data_root: DataRootOption = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT|off", help="Serve gRPC over TCP too, on a loopback address.")
    ] = "off",
    idle_ttl: Annotated[
        str, typer.Option(metavar="DURATION", help="Unused for this long, the engine exits: 300, 5m, 2h or off.")
    ] = "5m",
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="Threads of the engine; 0: its own choice.")] = 0,
    allow_fake: Annotated[bool, typer.Option(hidden=True, help="Serve fake models, for tests.")] = False,
) -> int:
    """Serve models from the foreground, until ctrl-C or SIGTERM.

    One node owns a data root: where another one does already, this says which, and exits 3. A node that loses its lease
    stops serving and exits 4.
    """
    with usage():
        address, idle_seconds = parse_address(listen), parse_duration(idle_ttl)
    import asyncio
    import logging

    from modeld.node.node import NodeConfig
    from modeld.transport import host

    root = root_of(data_root)

    def ready(record: OwnerRecord) -> None:
        endpoints = " and ".join(record.endpoints)
        say(f"ready: process {record.pid}, data root {root}, {endpoints}, epoch {record.epoch}")

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("modeld").setLevel(logging.INFO)
    node = NodeConfig(data_root=root, idle_ttl=idle_seconds, threads=threads, allow_fake=allow_fake)
    asyncio.run(host.serve(host.HostConfig(node=node, listen=address), ready))
    return 0
