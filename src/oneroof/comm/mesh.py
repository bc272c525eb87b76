"""Ranks in a mesh of stages and lanes: who is in whose group, and plain messages among all of them.

Rank = stage * tp + lane. The backend of a device's tensors is the device's own (gloo, NCCL, HCCL); what is
told to all goes over gloo.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import DeviceMesh

from oneroof import log
from oneroof.comm.collectives import sum_over
from oneroof.errors import RankLost, UserError

_BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl"}
_SIOCGIFADDR = 0x8915  # linux/sockios.h
_MEETING = 60.0  # seconds that ranks wait for each other
_STEP = 600.0  # ... in a step
_IDLE = timedelta(days=365)  # ... for the next order
_ROOM = 4096  # bytes of an order that are sent at once


def meet(rank: int, ranks: int, device: torch.device, *, file: Path | None = None) -> None:
    """Wait until all ranks are there: at `file` on this machine, else where the environment says.

    Raises UserError where they are not within a minute, or ONEROOF_MEETING seconds.
    """
    seconds = float(os.environ.get("ONEROOF_MEETING", _MEETING))
    limit = timedelta(seconds=seconds)
    _through[:] = [name] if (name := _interface("127.0.0.1" if file else _master()[0])) else []
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{_BACKENDS[device.type]}"
    if file is None and rank > 0:
        _await_master(rank, ranks, seconds)
    try:
        with _interface_chosen():
            if file is not None:
                store = FileStore(str(file), ranks)
                dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=limit)
            else:
                dist.init_process_group(backend, rank=rank, world_size=ranks, timeout=limit)
    except (RuntimeError, ValueError) as error:  # dist's own errors are among them
        said = " ".join(str(error).split())[:160]
        raise _nobody(rank, ranks, seconds, said, here=file is not None) from None
    log.debug(f"rank {rank} of {ranks} has met the others, over {backend}")


_through: list[str] = []  # the interface over which this process has met the others


@contextlib.contextmanager
def _interface_chosen() -> Iterator[None]:
    """Gloo takes it, not what the host's name happens to mean; processes that we start hear nothing of it."""
    if "GLOO_SOCKET_IFNAME" in os.environ or not _through:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = _through[0]
    try:
        yield
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME", None)


def _await_master(rank: int, ranks: int, seconds: float) -> None:
    """Until the address of the others answers; torch's own waiting ends in a page of C++."""
    address, until = _master(), time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=max(0.1, until - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise _nobody(rank, ranks, seconds, error.strerror or str(error), here=False) from None
            time.sleep(0.1)


def _master() -> tuple[str, int]:
    name, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdecimal():
        raise UserError(f"MASTER_PORT is {port!r}; a number is allowed; use torchrun")
    return name, int(port)


def _nobody(rank: int, ranks: int, seconds: float, said: str, *, here: bool) -> UserError:
    where = "here" if here else "{}:{}".format(*_master())
    return UserError(
        f"rank {rank} of {ranks} met no others at {where} in {seconds:g} s ({said}); "
        "check that all ranks run and reach that address"
    )


class Mesh:
    """This rank's groups, and what goes through them. Made by all ranks at once, after `meet`."""

    def __init__(self, rank: int, tp: int, pp: int, device: torch.device) -> None:
        self.rank, self.tp, self.pp = rank, tp, pp
        self.stage, self.lane = divmod(rank, tp)
        self.driver = (pp - 1) * tp  # who schedules: where logits arise
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        step = timedelta(seconds=_STEP)
        table = torch.arange(pp * tp).view(pp, tp)
        with lost(), _interface_chosen():
            self._orders = dist.new_group(backend="gloo", timeout=step)
            stages = [dist.new_group(row.tolist(), timeout=step) for row in table]
            lanes = [dist.new_group(column.tolist(), timeout=step) for column in table.t()]
            self._lanes, self._rows = stages[self.stage], lanes[self.lane]
            self.devices = DeviceMesh.from_group(
                [self._rows, self._lanes], device.type, mesh=table, mesh_dim_names=("pp", "tp")
            )

    def total(self, x: Tensor) -> Tensor:
        """The sum over the ranks of this stage."""
        with lost():
            return sum_over(x, self._lanes)

    def side_by_side(self, x_RN: Tensor, whole: int, each: int, *, wanted: bool) -> Tensor:
        """The columns of the ranks of this stage, `each` of one but the last; where not `wanted`, x."""
        padded = x_RN.new_zeros(x_RN.shape[0], each)
        padded[:, : x_RN.shape[1]] = x_RN
        parts = [torch.empty_like(padded) for _ in range(self.tp)] if wanted else None
        with lost():
            dist.gather(padded, parts, dst=self.stage * self.tp, group=self._lanes)
        return x_RN if parts is None else torch.cat(parts, dim=-1)[:, :whole]

    def tell(self, said: bytes) -> None:
        """From the driver to all ranks: one broadcast, or two where it is long."""
        head = torch.zeros(_ROOM, dtype=torch.uint8)
        head[:8] = torch.frombuffer(bytearray(len(said).to_bytes(8, "little")), dtype=torch.uint8)
        body = torch.frombuffer(bytearray(said or b"\0"), dtype=torch.uint8)
        head[8 : 8 + len(said)] = body[: min(len(said), _ROOM - 8)]
        with lost():
            self._broadcast(head)
            if len(said) > _ROOM - 8:
                self._broadcast(body[_ROOM - 8 :].contiguous())

    def hear(self) -> bytes:
        """What the driver tells, waiting for it however long."""
        head = torch.empty(_ROOM, dtype=torch.uint8)
        with lost():
            self._broadcast(head)
            size = int.from_bytes(head[:8].numpy().tobytes(), "little")
            said = head[8 : 8 + min(size, _ROOM - 8)].numpy().tobytes()
            if size > _ROOM - 8:
                rest = torch.empty(size - (_ROOM - 8), dtype=torch.uint8)
                self._broadcast(rest)
                said += rest.numpy().tobytes()
        return said

    def _broadcast(self, x: Tensor) -> None:
        """From the driver; those who wait for it do so as long as it has nothing to say."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = self.driver, 0
        options.timeout = _IDLE
        work = self._orders.broadcast([x], options)
        work.wait()

    def send(self, x: Tensor) -> None:
        """To the same lane of the next stage, which need not wait for it yet; some may be on their way."""
        with lost():
            if len(self._sent) > self.pp:
                self._sent.popleft()[0].wait()
            kept = x.contiguous()
            work = dist.isend(kept, self.rank + self.tp, group=self._rows)
            assert work is not None
            self._sent.append((work, kept))

    def receive(self, out: Tensor) -> Tensor:
        """`out`, filled by the same lane of the stage before."""
        with lost():
            dist.recv(out, self.rank - self.tp, group=self._rows)
        return out

    def least(self, count: int) -> int:
        """The smallest of all ranks' counts."""
        found = torch.tensor(count)
        with lost():
            dist.all_reduce(found, dist.ReduceOp.MIN, group=self._orders)
        return int(found)

    def one_machine(self) -> bool:
        """Whether the ranks of every stage are on one machine, as far as the system tells."""
        here = _machine() or self.rank
        return self.least(here) == -self.least(-here)

    def path(self, mine: str) -> str:
        """The words of lane 0 of this stage, at most 255 bytes."""
        words = torch.zeros(256, dtype=torch.uint8)
        data = mine.encode()
        words[: len(data)] = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)[: len(data)]
        with lost():
            dist.broadcast(words, self.stage * self.tp, group=self._lanes)
        return words.numpy().tobytes().rstrip(b"\0").decode()


def leave() -> None:
    """Be nobody's rank any more."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


@contextlib.contextmanager
def lost() -> Iterator[None]:
    """A collective that fails inside is a `RankLost`."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(f"ranks do not hear each other: {' '.join(str(error).split())[:200]}") from error


def _machine() -> int:
    """A number of this boot and of what a container has of its own; 0 where the system does not tell."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        own = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in ("net", "mnt", "ipc")]
        return zlib.crc32(f"{boot.read_text()} {own}".encode())
    except OSError:
        return 0


def _interface(address: str) -> str | None:
    """The network interface from which this machine reaches `address`; None where that cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.connect((address, 9))  # sends nothing
            ours = line.getsockname()[0]
            for _, name in socket.if_nameindex():
                asked = struct.pack("256s", name.encode()[:15])
                try:
                    found = fcntl.ioctl(line.fileno(), _SIOCGIFADDR, asked)[20:24]
                except OSError:
                    continue  # it has no address of this kind
                if socket.inet_ntoa(found) == ours:
                    return name
    except OSError:
        return None
    return None
