"""The device lease: one residency per physical accelerator, among all nodes of a user, whatever their data roots.

What it does **not** guarantee:

* **It is for one user.** The locks lie in the per-user runtime directory: nodes of two users, or of one user with two
  values of ``XDG_RUNTIME_DIR``, do not see each other, nor do other programs that use the accelerator.
* **A name is not a device.** Where the driver gives no id, the device is known by the library's name for it, and with
  two values of ``CUDA_VISIBLE_DEVICES`` the name ``CUDA0`` means two devices.
* **It does not survive somebody unlinking the lock file**, as a cleaner of temporary files may: the next node locks a
  new file of that name and loads beside the old one. The capacity plan then still counts what memory is free.
* **It does not end a stopped holder.** A node under SIGSTOP keeps the device until it is ended, by hand or by a
  contender for its own data root.
* **A record is a hint**, and the kernel lock the only authority: the record of a dead holder stays until the next.

The node holds the lock from before its engine loads until after the engine process has ended. Where the node was killed
its lock is free at once, but its engine, which the kernel kills with it, needs some milliseconds more to give the
memory back: the next holder finds the engine in the record that was left and waits for it to be gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from modeld.engine.protocol import Device
from modeld.errors import DeviceBusyError, NodeError
from modeld.node.eviction import wait_gone
from modeld.node.lockfile import is_held, lock, unlock, write_atomic
from modeld.node.record import boot_id, process_start_time, runtime_folder

SIMULATED = "MODELD_SIMULATED_DEVICE"
"""A seam for tests: an environment variable that makes a node take the lease of an accelerator of that name, besides
those that the engine has. Nothing is loaded onto it."""

ENGINE_SECONDS = 10.0
"""How long to wait for the engine of a dead holder, which the kernel killed with its node."""

_SLUG = 48


class DeviceRecord(Struct, frozen=True, kw_only=True):
    """What the holder of a device says about itself.

    :param device: the library's name for it. :param id: the driver's, or ``""``. :param pid: of the node.
    :param engine_pid: of the process whose memory is on the device. :param since: Unix seconds, for people.
    """

    device: str
    kind: str
    id: str
    pid: int
    start_time: int | float | None
    engine_pid: int
    engine_start_time: int | float | None
    boot_id: str
    data_root: str
    instance_id: str
    epoch: int
    since: float


class DeviceLease:
    """The right to load onto one device. Made by :meth:`acquire`; the methods block on storage."""

    def __init__(self, path: Path, fd: int, record: DeviceRecord) -> None:
        """For :meth:`acquire` only: ``fd`` holds the lock ``path``."""
        self._path = path
        self._fd: int | None = fd
        self.record = record

    @classmethod
    def acquire(
        cls, device: Device, *, data_root: Path, instance_id: str = "", epoch: int = 0, engine_pid: int
    ) -> DeviceLease:
        """Take the device, at once or not at all.

        :param engine_pid: the process that will load. :raises DeviceBusyError: names the holder, pid 0 when it cannot.
        :raises NodeError: the runtime directory cannot be used.
        """
        pid = os.getpid()
        record = DeviceRecord(
            device=device.name,
            kind=device.kind,
            id=device.id,
            pid=pid,
            start_time=process_start_time(pid),
            engine_pid=engine_pid,
            engine_start_time=process_start_time(engine_pid),
            boot_id=boot_id(),
            data_root=str(data_root),
            instance_id=instance_id,
            epoch=epoch,
            since=time.time(),
        )
        try:
            path = runtime_folder("devices") / f"{lease_name(device)}.lock"
            if (fd := lock(path)) is None:
                raise _busy(device, _read(path))
            try:
                _await_engine_before(device, _read(path))
                write_atomic(path.parent, _record_path(path).name, msgspec.json.encode(record), uuid.uuid4().hex)
            except BaseException:
                unlock(fd)
                raise
        except OSError as error:
            raise NodeError(f"cannot take the lease of {device.name}: {error}; mend that and try again") from error
        return cls(path, fd, record)

    def release(self) -> None:
        """Give the device back. Can be called again. Storage errors are ignored: the lock is freed all the same."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with suppress(OSError):
            _record_path(self._path).unlink(missing_ok=True)
        unlock(fd)


class DeviceKeeper:
    """The device leases of one node, each from before a load until its engine has ended. Belongs to the event loop."""

    def __init__(self, data_root: Path, instance_id: str, epoch: int) -> None:
        self._data_root = data_root
        self._instance_id = instance_id
        self._epoch = epoch
        self._holding: set[asyncio.Task[None]] = set()

    async def take(self, devices: Sequence[Device], engine_pid: int, gone: asyncio.Event) -> None:
        """Have the leases of ``devices``, all or none, until ``gone`` is set.

        Waits first until those of the node's engine before are given back, which must be ending.

        :raises DeviceBusyError: another node has one of them. :raises NodeError: see :meth:`DeviceLease.acquire`.
        """
        await self.released()
        name = os.environ.get(SIMULATED)
        wanted = (*devices, Device(name, "simulated")) if name else tuple(devices)
        if not wanted:
            return
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # In a task of its own: a caller that is cancelled meanwhile leaves no lock behind that nobody frees.
        task = asyncio.ensure_future(self._hold(wanted, engine_pid, gone, taken))
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)
        await taken

    async def released(self) -> None:
        """Wait until all is given back; the engines must be ending."""
        await asyncio.gather(*self._holding, return_exceptions=True)

    async def _hold(
        self, devices: Sequence[Device], engine_pid: int, gone: asyncio.Event, taken: asyncio.Future[None]
    ) -> None:
        try:
            leases = await asyncio.to_thread(self._acquire, devices, engine_pid)
        except Exception as error:
            if not taken.done():
                taken.set_exception(error)
            return
        if not taken.done():
            taken.set_result(None)
        try:
            await gone.wait()
        finally:
            await asyncio.to_thread(_release, leases)

    def _acquire(self, devices: Sequence[Device], engine_pid: int) -> list[DeviceLease]:
        leases: list[DeviceLease] = []
        try:
            for device in devices:
                leases.append(
                    DeviceLease.acquire(
                        device,
                        data_root=self._data_root,
                        instance_id=self._instance_id,
                        epoch=self._epoch,
                        engine_pid=engine_pid,
                    )
                )
        except BaseException:
            _release(leases)
            raise
        return leases


def device_holders() -> tuple[DeviceRecord, ...]:
    """Who holds which device, by name. One whose holder has not written its record yet is missing.

    Creates the (empty) folder of the locks where there is none. Blocks on storage.

    :raises NodeError: the runtime directory cannot be used.
    """
    try:
        paths = sorted(runtime_folder("devices").glob("*.lock"))
        records = [_read(path) for path in paths if is_held(path)]
    except OSError as error:
        raise NodeError(f"cannot tell who holds the devices: {error}") from error
    return tuple(record for record in records if record is not None)


def lease_name(device: Device) -> str:
    """Name of the device's lock file: readable, and unique by a hash of what it is made from."""
    kind, name = device.kind.strip().lower(), device.id or device.name
    digest = hashlib.sha256(f"{kind}\0{name}".encode()).hexdigest()[:12]
    return f"{_slug(kind)}-{_slug(name)}-{digest}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")[:_SLUG] or "unknown"


def _record_path(lock_path: Path) -> Path:
    return lock_path.with_suffix(".json")


def _read(lock_path: Path) -> DeviceRecord | None:
    try:
        return msgspec.json.decode(_record_path(lock_path).read_bytes(), type=DeviceRecord)
    except (FileNotFoundError, ValueError):
        return None


def _await_engine_before(device: Device, left: DeviceRecord | None) -> None:
    """``left`` is the record of a holder that died: its engine may have the memory still. The lock is held."""
    if left is None or left.boot_id != boot_id() or left.engine_start_time is None:
        return
    if not wait_gone(left.engine_pid, left.engine_start_time, ENGINE_SECONDS):
        raise DeviceBusyError(
            f"{device.name} was held by the node of {left.data_root!r}, which died, and its engine (process "
            f"{left.engine_pid}) still runs after {ENGINE_SECONDS:.0f} s; end that process and try again",
            device=device.name,
            pid=left.engine_pid,
            data_root=left.data_root,
        )


def _busy(device: Device, holder: DeviceRecord | None) -> DeviceBusyError:
    who = f"process {holder.pid}, the node of {holder.data_root!r}," if holder else "a node that is just loading"
    return DeviceBusyError(
        f"{device.name} is held by {who}: unload the model there with `modeld unload`, or use that node",
        device=device.name,
        pid=holder.pid if holder else 0,
        data_root=holder.data_root if holder else "",
    )


def _release(leases: Sequence[DeviceLease]) -> None:
    for lease in leases:
        lease.release()
