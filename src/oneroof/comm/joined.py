"""The place of a process among ranks that `torchrun`, or what works as it does, has started."""

from __future__ import annotations

import os
from dataclasses import dataclass

from oneroof.errors import UserError


@dataclass(frozen=True)
class Joined:
    """What `torchrun`, or what works as it does, has put into the environment."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int


def joined() -> Joined | None:
    """The place of this process among ranks that somebody else has started; None where it stands alone."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if any(name not in os.environ for name in names):
        return None
    try:
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    except ValueError as error:
        raise UserError(
            f"this rank's environment: {error}; whole numbers are allowed; use torchrun"
        ) from None
    return Joined(rank, ranks, *local)
