"""An engine over one rank or many: from what is to be loaded to what runs.

The ranks of this machine are started here, unless `torchrun` has started them already, on one machine or
several; then those that do not lead follow until the end of the run, and their program ends with it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from oneroof import device as devices
from oneroof import log
from oneroof.comm.crew import Crew, Starter, summoned
from oneroof.comm.joined import Joined, joined
from oneroof.comm.mesh import Mesh, leave, meet
from oneroof.engine.admission import context_of
from oneroof.engine.capacity import Capacity, room_of
from oneroof.engine.engine import Engine
from oneroof.engine.team import Team
from oneroof.engine.wire import Load
from oneroof.errors import RankLost, UserError
from oneroof.hub import locate
from oneroof.layout import Grid, check
from oneroof.load import Loaded, load
from oneroof.models import read_config
from oneroof.ops.cpu import backend
from oneroof.parallel.joint import Joint

MODULE = "oneroof.engine.ranks"
_READY, _MEET, _STAY = b"ready", b"meet", b"stay"
_REFUSED = b"refused "

Progress = Callable[[int, int], None]


class Seat(msgspec.Struct, frozen=True):
    """A rank's place, as its starter tells it: the first message."""

    rank: int
    file: str  # where the ranks meet
    load: Load


@dataclass
class Assembled:
    """An engine, and the ranks behind it. Whoever has it closes it."""

    engine: Engine
    team: Team | None = None
    crew: Crew | None = None
    lent: bool = False  # the crew is somebody else's, who has more for it to do

    def close(self) -> None:
        """Let the other ranks end; twice is not an error."""
        if self.team is None:
            return
        team, self.team = self.team, None
        if self.crew is not None and not self.lent:
            self.crew.close()  # which ends them wherever they are
        else:
            team.end()
        leave()


def grid_of(order: Load) -> Grid:
    """How the model of `order` is cut. UserError for what cannot be, before a weight is read."""
    return Grid.of(order.tp, order.pp, order.ep)


def assemble_engine(order: Load, progress: Progress | None = None, crew: Crew | None = None) -> Assembled:
    """Load this rank's share, with the others', and make the engine. SystemExit where this one follows.

    `crew`: processes that have served before and wait for more, instead of new ones. Raises UserError for
    what the user can mend, RankLost where a rank died on the way.
    """
    grid, place = grid_of(order), joined()
    folder = locate(order.model, revision=order.revision, hub=order.hub)
    config = read_config(folder)
    check(config, grid)
    context_of(config, order.options.max_model_len)  # refused before the weights are read
    order = msgspec.structs.replace(order, model=str(folder))
    if place is not None and place.ranks > 1:
        return _among(order, grid, place, progress)
    if grid.ranks == 1:
        loaded = _loaded(order, grid, 0, _sit(order, 0, 1), progress)
        room = room_of(loaded, order.options, neighbours=order.engines)
        return Assembled(Engine(loaded, order.options, room=room))
    return _with_crew(order, grid, progress, crew)


def main(words: list[str]) -> int:
    """A rank that was started by `assemble_engine`; the word is the number of its socket."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):  # its starter decides
        signal.signal(number, signal.SIG_IGN)
    starter = Starter(int(words[0]))
    status = 0
    while status == 0:  # one model after the other; the starter's end is ours
        message = starter.receive()
        if message != _STAY:
            status = _serve(starter, msgspec.msgpack.decode(message, type=Seat))
    return status


def _serve(starter: Starter, seat: Seat) -> int:
    order, grid = seat.load, grid_of(seat.load)
    if order.log_dir is not None:
        log.to_file(Path(order.log_dir) / f"rank{seat.rank}.log")
    try:
        device = _sit(order, seat.rank, grid.ranks)
        loaded = _loaded(order, grid, seat.rank, device, None)
        room = room_of(loaded, order.options, neighbours=grid.ranks * order.engines)
    except UserError as error:
        starter.send(_REFUSED + f"rank {seat.rank}: {error}".encode())
        return 0
    starter.send(_READY)
    if starter.receive() != _MEET:
        return 0
    team = _team(loaded, order, grid, seat.rank, room, Path(seat.file))
    try:
        team.follow()
    except RankLost as error:
        print(error, flush=True)
        return 1
    leave()
    return 0


def _with_crew(order: Load, grid: Grid, progress: Progress | None, lent: Crew | None) -> Assembled:
    """All ranks are on this machine; this process is the one that leads."""
    folder = Path(tempfile.mkdtemp(prefix="oneroof-ranks-"))
    joint: list[Joint] = []
    seats = {
        rank: msgspec.msgpack.encode(Seat(rank, str(folder / "meet"), order))
        for rank in range(grid.ranks)
        if rank != grid.driver
    }

    def ended() -> None:
        for one in joint:
            one.end()

    crew, heard = lent or summoned(MODULE), False
    try:
        crew.seat(seats, ended)
        device = _sit(order, grid.driver, grid.ranks)
        loaded = _loaded(order, grid, grid.driver, device, progress)
        room = room_of(loaded, order.options, neighbours=grid.ranks * order.engines)
        answers, heard = crew.hear(), True
        for said in answers.values():
            if said.startswith(_REFUSED):
                raise UserError(said.removeprefix(_REFUSED).decode())
        crew.say(_MEET)
        team = _team(loaded, order, grid, grid.driver, room, folder / "meet")
        shutil.rmtree(folder, ignore_errors=True)  # all are there
        joint.append(team.joint)
        team.fate = crew.await_loss
        if crew.lost is not None:
            raise RankLost(crew.lost)
        engine = Engine(loaded, order.options, team=team, room=team.room)
    except BaseException as error:
        told = crew.await_loss() if isinstance(error, RankLost) else None
        if lent is None or not isinstance(error, UserError):
            crew.close()
        else:
            if not heard:
                crew.hear()
            crew.say(_STAY)
        leave()
        shutil.rmtree(folder, ignore_errors=True)
        if told is not None:
            raise RankLost(told) from error
        raise
    return Assembled(engine, team, crew, lent is not None)


def _among(order: Load, grid: Grid, place: Joined, progress: Progress | None) -> Assembled:
    """Ranks that somebody else has started, on one machine or several."""
    if place.ranks != grid.ranks:
        raise UserError(
            f"{place.ranks} ranks were started; {grid.ranks} are wanted by tp {grid.tp} and pp {grid.pp}; "
            "start as many"
        )
    leads = place.rank == grid.driver
    if not leads:
        log.hush()
    device = _sit(order, place.local_rank, place.local_ranks)
    meet(place.rank, place.ranks, torch.device(device if device != "auto" else "cpu"))
    loaded = _loaded(order, grid, place.rank, device, progress if leads else None)
    room = room_of(loaded, order.options, neighbours=place.local_ranks)
    team = _team(loaded, order, grid, place.rank, room, None)
    if leads:
        return Assembled(Engine(loaded, order.options, team=team, room=team.room), team)
    team.follow()
    leave()
    raise SystemExit(0)


def _sit(order: Load, local_rank: int, local_ranks: int) -> str:
    """Take this rank's cores and threads, and its device, whose name this is; alone, all there is."""
    if local_ranks * order.engines == 1:
        return order.device
    first = order.engine * local_ranks
    cores = devices.cores_of_rank(first + local_rank, local_ranks * order.engines)
    threads = len(cores) or 1 if order.threads == "auto" else order.threads
    devices.use_threads(threads)
    backend.set_threads(threads)
    if order.bind_cpu and cores:
        log.debug(devices.bind_to(cores))
    name = devices.resolve(order.device).type
    return name if name == "cpu" else f"{name}:{first + local_rank}"


def _loaded(order: Load, grid: Grid, rank: int, device: str, progress: Progress | None) -> Loaded:
    return load(
        order.model,
        device=device,
        dtype=order.dtype,
        random_weights=order.random_weights,
        layers=order.layers,
        quantization=order.quantization,
        packed_cache=order.packed_cache,
        seed=order.seed,
        revision=order.revision,
        hub=order.hub,
        grid=grid,
        rank=rank,
        progress=progress,
    )


def _team(loaded: Loaded, order: Load, grid: Grid, rank: int, room: Capacity, file: Path | None) -> Team:
    if file is not None:
        meet(rank, grid.ranks, loaded.device, file=file)
    mesh = Mesh(rank, grid.tp, grid.pp, loaded.device)
    return Team(loaded, Joint(mesh, loaded.device), room, order.options)
