"""The ranks that share out one model: the one that leads runs the engine, the others do as they are told.

Whoever fails where all have to go on together is lost to the others, and ends the run: a rank that does not
take part in a sum leaves all of them waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import torch
from torch import Tensor

from oneroof.batch import Batch
from oneroof.engine.capacity import Capacity, cache_of
from oneroof.engine.options import EngineOptions
from oneroof.engine.orders import End, Order, Rows, StepOrder, TextsOrder, pack, unpack
from oneroof.engine.scheduler import POISON
from oneroof.errors import RankLost
from oneroof.load import Loaded
from oneroof.pages import KVCache
from oneroof.parallel.decoder import Stage, hang
from oneroof.parallel.joint import Joint

Model = Callable[[Batch, KVCache | None], Tensor]


class Team:
    """This rank among those of its engine. Made by all of them at once."""

    def __init__(self, loaded: Loaded, joint: Joint, room: Capacity, options: EngineOptions) -> None:
        """`room` is what this rank's memory holds; that of the team is the least of all ranks'."""
        pages = joint.mesh.least(room.pages)
        context = joint.mesh.least(room.context)
        if loaded.config.causal:
            context = min(context, pages * options.page_size)
        self.room = Capacity(pages, context)
        self.joint = joint
        self.whole = True  # nobody was lost
        self.fate: Callable[[], str | None] = lambda: None  # of the rank that died first, where that is known
        self._loaded = loaded
        self._options = options
        hang(loaded.model, joint, loaded.config.vocabulary)
        self.model: Model = loaded.model if joint.mesh.pp == 1 else Stage(loaded.model, joint)

    @property
    def stages(self) -> int:
        """How many there are in a row: so many batches may be in flight."""
        return self.joint.mesh.pp

    @contextmanager
    def together(self) -> Iterator[None]:
        """What happens inside happens on all ranks; whatever fails there is a `RankLost`."""
        clean, self.whole = self.whole, False
        try:
            self.joint.check()
            yield
            self.joint.check()
        except RankLost as error:
            told = self.fate()
            if told is None:
                raise
            raise RankLost(told) from error
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise RankLost(f"rank {self.joint.mesh.rank} failed in a step: {what}") from error
        self.whole = clean

    def tell(self, order: Order) -> None:
        """To all others, which do it at once."""
        self.joint.tell(pack(order))

    def end(self) -> None:
        """Let the others go, where they can still be told."""
        if self.whole:
            self.whole = False
            self.tell(End())

    @torch.inference_mode()
    def follow(self) -> None:
        """Do as told until the end. Raises RankLost."""
        cache = cache_of(self._loaded, self._options, self.room.pages)
        for order in self._orders():
            with self.together():
                self._obey(order, cache)

    def _orders(self) -> Iterator[Order]:
        """Until the end. Where there are stages, orders are heard while the one before is obeyed."""
        if self.stages == 1:
            while not isinstance(order := unpack(self.joint.hear()), End):
                yield order
            return
        heard: SimpleQueue[Order | RankLost] = SimpleQueue()

        def listen() -> None:
            try:
                while True:
                    order = unpack(self.joint.hear())
                    heard.put(order)
                    if isinstance(order, End):
                        return
            except RankLost as error:
                heard.put(error)

        threading.Thread(target=listen, name="orders", daemon=True).start()
        while not isinstance(found := heard.get(), End):
            if isinstance(found, RankLost):
                raise found
            yield found

    def _obey(self, order: Order, cache: KVCache) -> None:
        rows: Rows = []
        hidden: Tensor | None = None
        if isinstance(order, StepOrder):
            do_chores(cache, order.chores)
            sheet = order.placed()
            if sheet is not None:
                batch = sheet.batch(page_size=cache.page_size, device=self._loaded.device)
                hidden, rows = self.model(batch, cache), order.rows
        elif isinstance(order, TextsOrder):
            hidden, rows = self.model(self._loaded.batch(order.texts), None), order.rows
        if hidden is not None and self._loaded.model.share.last:
            for some in rows:
                self._loaded.model.logits(hidden[some])


def do_chores(cache: KVCache, chores: Sequence[tuple[int, int]]) -> None:
    """Copy pages, or make them unreadable."""
    for source, target in chores:
        if source == POISON:
            cache.fill(target, torch.nan)
        else:
            cache.copy(source, target)
