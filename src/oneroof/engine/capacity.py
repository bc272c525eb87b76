"""How many pages the cache gets: what can be of use, within what the memory allows."""

from __future__ import annotations

from dataclasses import dataclass

from oneroof import log
from oneroof.device import memory
from oneroof.engine.admission import context_of
from oneroof.engine.options import EngineOptions
from oneroof.errors import UserError
from oneroof.load import Loaded
from oneroof.pages import KVCache, allocate, bytes_per_token

_SHARE = {"cpu": 0.5}  # of free memory: a host has other things to do
_DEVICE_SHARE = 0.9  # the rest is for activations


@dataclass(frozen=True)
class Capacity:
    """Pages that sequences can have, the null page not among them, and tokens that one sequence can have."""

    pages: int
    context: int


def capacity(loaded: Loaded, options: EngineOptions, *, neighbours: int = 1) -> Capacity:
    """Pages for this machine, of which `neighbours` ranks in all have a cache in the same memory.

    Raises UserError where the memory that may be used does not hold what was asked for.
    """
    config, size = loaded.config, options.page_size
    context = context_of(config, options.max_model_len)
    share = loaded.model.share
    each = size * bytes_per_token(
        depth=len(share.layers),
        kv_heads=len(share.kv_heads),
        head_dim=config.head_dim,
        dtype=loaded.dtype,
        kind=options.kv,
    )
    room, found = _room(loaded, options, neighbours)
    useful = options.max_batch * -(-context // size)
    pages = min(useful, int(room // each) - 1)
    least = -(-(context if options.max_model_len is not None else 2) // size)
    if pages < least:
        raise UserError(
            f"{found} for the cache; {(least + 1) * each / 1e9:.3g} GB are needed for {least * size} tokens; "
            "allow more, or lower max_model_len"
        )
    if pages * size < context:
        log.info(f"the cache holds {pages * size} tokens of the model's {context}: {found}")
    return Capacity(pages, min(context, pages * size))


def room_of(loaded: Loaded, options: EngineOptions, *, neighbours: int = 1) -> Capacity:
    """The same; a model that sees in both directions keeps nothing."""
    if loaded.config.causal:
        return capacity(loaded, options, neighbours=neighbours)
    return Capacity(0, context_of(loaded.config, options.max_model_len))


def cache_of(loaded: Loaded, options: EngineOptions, pages: int) -> KVCache:
    """A cache of so many pages, and the null page, for the layers and heads that are here."""
    share = loaded.model.share
    return allocate(
        depth=len(share.layers),
        pages=pages + 1,
        page_size=options.page_size,
        kv_heads=len(share.kv_heads),
        head_dim=loaded.config.head_dim,
        dtype=loaded.dtype,
        device=loaded.device,
        kind=options.kv,
    )


def _room(loaded: Loaded, options: EngineOptions, neighbours: int) -> tuple[float, str]:
    """Bytes for the cache, and why so many."""
    neighbours = neighbours if loaded.device.type == "cpu" else 1  # a device is a rank's alone
    if options.kv_memory is not None:
        return options.kv_memory * 1e9, f"kv_memory is {options.kv_memory:g} GB"
    place = loaded.device
    free = memory(place).free
    share = _SHARE.get(place.type, _DEVICE_SHARE)
    kept = options.reserve_memory
    room = (free * share if kept is None else free - kept * 1e9) / neighbours
    why = f"{free / 1e9:.3g} GB are free on {place}, of which {max(room, 0) / 1e9:.3g} GB may be used"
    if options.device_memory is not None:
        weights = sum(t.nbytes for t in loaded.model.tensors().values())
        left = options.device_memory * 1e9 / neighbours - weights
        if left < room:
            room = left
            why = f"device_memory is {options.device_memory:g} GB, {max(left, 0) / 1e9:.3g} GB of it are left"
    return room, why
