"""`load()`: from the name of a model to a model that runs. Every command begins here.

It checks before it reads: facts, devices and files are looked at before the first byte of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from oneroof import device as devices
from oneroof import log
from oneroof.batch import Batch, pack
from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.hub import locate
from oneroof.jsonfile import read_object
from oneroof.layout import ALONE, Grid, Share, cut_of, share_of
from oneroof.models import family_of, read_facts, read_keys
from oneroof.models.decoder import Decoder
from oneroof.models.init import initialize
from oneroof.models.sizes import parameters
from oneroof.names import Ignored
from oneroof.ops.cpu import backend
from oneroof.quant.packed import PackedFile
from oneroof.quant.schemes import SCHEMES, Scheme, apply
from oneroof.text.chat import ChatTemplate, load_template
from oneroof.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from oneroof.weights.load import fill
from oneroof.weights.names import Names
from oneroof.weights.settle import HEAD, settle
from oneroof.weights.sharded import open_weights
from oneroof.weights.stored import Weights


@dataclass(frozen=True)
class Front:
    """What turns words into tokens for a model and back, without its weights."""

    config: ModelConfig
    tokenizer: Tokenizer | None  # None where the folder has none, which only token ids can do without
    template: ChatTemplate | None
    generation: dict[str, object]  # generation_config.json, or nothing
    folder: Path

    def text(self) -> Tokenizer:
        """The tokenizer; UserError where the folder has none."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.folder} has no tokenizer; prompts of token ids are allowed; copy the tokenizer files"
            )
        return self.tokenizer

    def spelled(self, token: int) -> str:
        """A token by itself, special ones too; nothing where there is no tokenizer."""
        return "" if self.tokenizer is None else self.tokenizer.decode([token], skip_special=False)


@dataclass(frozen=True)
class Loaded(Front):
    """A model ready to run, with what belongs to it."""

    model: Decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.model.dtype

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Whole sequences for one uncached forward of this model."""
        alphas = [self.model.ntk_alpha(len(s)) for s in sequences]
        stretched = alphas if any(a != 1.0 for a in alphas) else None
        return pack(sequences, alphas=stretched, device=self.device)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
        """Logits at every position: a list of [T, vocabulary] float32, one a sequence, uncached."""
        check_tokens(sequences, self.config)
        batch = self.batch(sequences)
        return list(self.model.logits(self.model(batch)).split(batch.counts))


def check_tokens(sequences: Sequence[Sequence[int]], config: ModelConfig) -> None:
    """UserError for an empty sequence, one beyond the context, or an id outside the vocabulary."""
    for index, ids in enumerate(sequences):
        if not 0 < len(ids) <= config.max_positions:
            raise UserError(
                f"sequence {index} has {len(ids)} tokens; 1 to {config.max_positions} are allowed; cut it"
            )
        low, high = min(ids), max(ids)
        if low < 0 or high >= config.vocabulary:
            raise UserError(
                f"sequence {index} has token {low if low < 0 else high}; "
                f"0 to {config.vocabulary - 1} are allowed; use this model's own tokenizer"
            )


def load(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    random_weights: bool = False,
    layers: int | None = None,
    quantization: str | None = None,
    plain: bool = False,
    packed_cache: bool = False,
    seed: int = 0,
    revision: str = "main",
    hub: str = "huggingface",
    grid: Grid = ALONE,
    rank: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Load `model`: a folder in Hugging Face layout, a hub id, or `demo`.

    `random_weights` needs `config.json` alone; `layers` keeps the first so many. `quantization` is a word of
    `SCHEMES`; weights are rounded while they are read. `plain` keeps every weight a tensor in the
    checkpoint's order, for whoever reads or trains it: the native CPU kernels want their own;
    `packed_cache` keeps that beside the checkpoint, and maps it at the next start. Of a `grid` of several
    ranks, `rank`'s share is read, and no collective hangs in the model yet. `progress(done, all)` is
    called with bytes while weights are read. Raises UserError for whatever the user can mend.
    """
    scheme = _scheme(quantization, plain)
    folder = locate(model, revision=revision, hub=hub)
    front, family = read_front(folder), family_of(read_keys(folder))
    config = front.config
    dropped: tuple[Ignored, ...] = ()
    if layers is not None:
        config, dropped = _first_layers(config, layers)
    stored = None if random_weights else open_weights(folder)
    names = Names(family.renames, (*family.ignored, *dropped))
    if stored is not None:
        config = _settled(config, stored, names)
    head = stored is None or config.tied_head or HEAD in stored.specs
    place = devices.resolve(device)
    native = place.type == "cpu" and not plain and backend.install()
    held = "float32" if config.dtype == "stored" else config.dtype
    if native:
        backend.take_threads()
    number = devices.resolve_dtype(dtype, held, place, native=native)
    share = share_of(config, grid, rank, group=scheme.linear.group)
    _check_memory(config, share, number, place, head, scheme)
    quantized = scheme != SCHEMES["none"]
    decoder = Decoder(config, dtype=number, device="cpu" if quantized else place, head=head, share=share)
    apply(decoder, scheme, layout="panels" if native else "rows", device=place)
    decoder.to(place)
    if stored is None:
        initialize(decoder, seed)
    else:
        packed = None
        if packed_cache and native:
            form = {"scheme": quantization or "none", "dtype": str(number), "layers": config.depth}
            if grid.ranks > 1:
                form |= {"grid": str(grid).replace(" ", ""), "rank": rank}
            packed = PackedFile(folder, (folder / "config.json", *stored.paths), form)
        if packed is None or not packed.restore(decoder):
            cut = partial(cut_of, config, share)
            fill(decoder.tensors(), stored, names, tied=config.tied_head, cut=cut, report=progress)
            if packed is not None:
                packed.save(decoder, progress)
    decoder.eval().requires_grad_(False)
    return Loaded(config, front.tokenizer, front.template, front.generation, folder, decoder)


def read_front(folder: Path) -> Front:
    """What the folder says of its model, its tokenizer and its template; no weights."""
    config = read_facts(read_keys(folder))
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    template = load_template(folder, tokenizer) if tokenizer is not None else None
    return Front(config, tokenizer, template, read_object(folder / "generation_config.json"), folder)


def _settled(config: ModelConfig, stored: Weights, names: Names) -> ModelConfig:
    """The config with what the tensors tell, and a word about what the user may not expect."""
    settled = settle(config, stored, names)
    if settled.tied_head != config.tied_head:
        log.warning(f"{stored.folder} says that its head is tied and stores another; the stored one is used")
    if not settled.tied_head and HEAD not in stored.specs:
        log.warning(f"{stored.folder} has no {HEAD}: it gives embeddings, no text")
    return settled


def _scheme(quantization: str | None, plain: bool) -> Scheme:
    word = quantization or "none"
    if word not in SCHEMES:
        raise UserError(
            f"quantization {word} is unknown; {', '.join(SCHEMES)} are allowed; leave it out for none"
        )
    if plain and word != "none":
        raise UserError(
            f"quantization {word} was asked of plain weights; none is allowed; leave one of them out"
        )
    return SCHEMES[word]


def _check_memory(
    config: ModelConfig, share: Share, dtype: torch.dtype, place: torch.device, head: bool, scheme: Scheme
) -> None:
    counted = parameters(config, share, head=head)
    need, free = counted * scheme.linear.bits(dtype, config.dim) / 8, devices.memory(place).free
    if need > free:
        kind = scheme.linear.kind if scheme != SCHEMES["none"] else str(dtype).removeprefix("torch.")
        raise UserError(
            f"the weights take {need / 1e9:.1f} GB in {kind}; "
            f"{free / 1e9:.1f} GB are free on {place}; try a smaller dtype, --layers or another device"
        )


def _first_layers(config: ModelConfig, layers: int) -> tuple[ModelConfig, tuple[Ignored, ...]]:
    if not 0 < layers <= config.depth:
        raise UserError(f"layers {layers} was asked; 1 to {config.depth} are allowed; leave it out for all")
    cut = replace(
        config, depth=layers, windows=config.windows[:layers], sparse_layers=config.sparse_layers[:layers]
    )
    numbers = "|".join(str(i) for i in range(layers, config.depth))
    return cut, (
        Ignored(rf"(.*\.)?(layers|h)\.({numbers})\..*", f"only the first {layers} layers were asked for"),
    )
