"""The command `shard`: a checkpoint cut for ranks, by `oneroof.export.ranks`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal


@dataclass(frozen=True)
class Shard:
    """Cut a checkpoint for several ranks, each of which then reads its own file; or cut it in another way."""

    model: str
    """A folder in Hugging Face layout, a sharded one, a hub id, or demo."""

    out: str
    """The folder to write: new, empty, or begun by the same command, which then goes on."""

    _: KW_ONLY

    tp: int = 1
    """Tensor parallel ranks: each has some of the heads and some of every width."""

    pp: int = 1
    """Pipeline stages: each has some of the layers."""

    ep: int = 1
    """Groups of ranks that share out the experts; alone it implies as many tensor parallel ranks."""

    standalone: bool = False
    """Give each rank all that it needs, so that its folder alone can be copied to another machine."""

    revision: str = "main"
    """Branch, tag or commit, where MODEL is a hub id."""

    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked for; modelscope needs the package of that name."""

    def run(self) -> int:
        """Cut; what a killed run has written is kept. Status 0, also where nothing was left to do."""
        from pathlib import Path

        from oneroof import log
        from oneroof.cli.interruption import check_interrupted
        from oneroof.errors import UserError
        from oneroof.export.ranks import shard
        from oneroof.hub import locate
        from oneroof.layout import Grid

        check_interrupted()
        for name, size in (("tp", self.tp), ("pp", self.pp), ("ep", self.ep)):
            if size < 1:
                raise UserError(f"--{name} is {size}; 1 or more is allowed; leave it out for 1")
        grid = Grid.of(self.tp, self.pp, self.ep)
        if grid.ranks == 1:
            raise UserError("one rank was asked for; 2 or more are allowed; give --tp, --pp or --ep")
        try:
            written = shard(
                locate(self.model, revision=self.revision, hub=self.hub),
                Path(self.out),
                grid,
                standalone=self.standalone,
                report=log.progress("shard"),
            )
        except KeyboardInterrupt:
            log.info("what is written stays; the same command goes on with it")
            raise
        if not written:
            log.info(f"{self.out} is complete already, of the same source and layout")
        return 0
