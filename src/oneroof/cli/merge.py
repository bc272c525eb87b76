"""The command `merge`: a sharded folder joined again, by `oneroof.export.ranks`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class Merge:
    """Join a sharded folder into one checkpoint of whole tensors, byte for byte those that were cut."""

    model: str
    """A folder that `shard` wrote."""

    out: str
    """The folder to write: new, empty, or begun by the same command, which then goes on."""

    _: KW_ONLY

    max_shard_size: float = 5.0
    """Largest file of weights, in GB (10^9 bytes)."""

    def run(self) -> int:
        """Join; what a killed run has written is kept. Status 0, also where nothing was left to do."""
        from pathlib import Path

        from oneroof import log
        from oneroof.cli.interruption import check_interrupted
        from oneroof.errors import UserError
        from oneroof.export.ranks import merge
        from oneroof.hub import locate

        check_interrupted()
        if not self.max_shard_size > 0:
            raise UserError(
                f"--max-shard-size is {self.max_shard_size}; more than 0 GB is allowed; leave it out for 5"
            )
        limit = int(self.max_shard_size * 1e9)
        try:
            written = merge(locate(self.model), Path(self.out), limit=limit, report=log.progress("merge"))
        except KeyboardInterrupt:
            log.info("what is written stays; the same command goes on with it")
            raise
        if not written:
            log.info(f"{self.out} is complete already, of the same source")
        return 0
