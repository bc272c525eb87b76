"""The table in docs/parallel.md: every model and size of two published matrices, cut for ranks on paper.

`python scripts/parallel_page.py` reads the matrices and the real `config.json` files of ../shared where that
lies beside the project, and writes the table between its two marks. A cell is green when each rank has a
share whose tensors have the shapes that the layout says, and all shares together are the model, replicas
counted once.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from oneroof.config import ModelConfig
from oneroof.errors import UserError
from oneroof.layout import ALONE, Cut, Grid, Share, check, cut_of, share_of
from oneroof.models import read_config, read_facts
from oneroof.models.decoder import Decoder
from oneroof.models.sizes import parameters, sizes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "parallel.md"
SHARED = ROOT.parent / "shared"
BEGIN, END = "<!-- the table, by scripts/parallel_page.py -->", "<!-- the table ends -->"
MATRICES = ("003", "004")  # readmes of ../shared/facts
_FOLDERS = {  # where a matrix and a hub call a model differently
    "QWen-72B": "Qwen-72B",
    "gte-Qwen2-7B": "gte-Qwen2-7B-instruct",
    "QwenCode2.5-7B": "Qwen2.5-Coder-7B",
    "ERNIE-4.5-21B-A3B": "ERNIE-4.5-21B-A3B-PT",
    "ERNIE-4.5-300B-A47B": "ERNIE-4.5-300B-A47B-PT",
}

# Published facts of models whose config.json is not in ../shared: hidden size, layers, heads, key-value
# heads, width of the MLP, vocabulary, tied head. They are those of the models' own config.json, and were
# compared on 2026-11-27 with launch scripts in the public repositories that are named last (tied heads and
# some vocabularies are not in those).
_PAI = "alibaba/Pai-Megatron-Patch"
_LINK = "aeeeeeep/ModelLink"
_SPEED = "Ascend/MindSpeed-LLM"
FACTS: dict[str, tuple[int, int, int, int, int, int, bool, str]] = {
    "Qwen-14B": (5120, 40, 40, 40, 13696, 152064, False, _PAI),
    "Qwen-72B": (8192, 80, 64, 64, 24576, 152064, False, _LINK),
    "Qwen1.5-0.5B": (1024, 24, 16, 16, 2816, 151936, True, _PAI),
    "Qwen1.5-1.8B": (2048, 24, 16, 16, 5504, 151936, False, _PAI),
    "Qwen1.5-4B": (2560, 40, 20, 20, 6912, 151936, False, _PAI),
    "Qwen1.5-14B": (5120, 40, 40, 40, 13696, 152064, False, _PAI),
    "Qwen1.5-32B": (5120, 64, 40, 8, 27392, 152064, False, _PAI),
    "Qwen1.5-72B": (8192, 80, 64, 64, 24576, 152064, False, _PAI),
    "Qwen1.5-110B": (8192, 80, 64, 8, 49152, 152064, False, _LINK),
    "Qwen2-0.5B": (896, 24, 14, 2, 4864, 151936, True, "as Qwen2.5-0.5B"),
    "Qwen2-1.5B": (1536, 28, 12, 2, 8960, 151936, True, "as Qwen2.5-1.5B"),
    "Qwen2-72B": (8192, 80, 64, 8, 29568, 152064, False, _SPEED),
    "Qwen2.5-14B": (5120, 48, 40, 8, 13824, 152064, False, _PAI),
}


@dataclass(frozen=True)
class Row:
    """A line of a matrix: its model, and the world sizes of either device."""

    model: str
    large: tuple[int, ...]  # 800I A2
    small: tuple[int, ...]  # 300I DUO

    @property
    def sizes(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(sorted({*self.large, *self.small}))


def rows(shared: Path = SHARED) -> list[Row]:
    """The lines of both matrices."""
    found: list[Row] = []
    for number in MATRICES:
        (page,) = (shared / "facts" / "readmes").glob(f"{number}_*")
        for line in page.read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) > 4 and "world size" in cells[2] + cells[3]:
                found.append(Row(cells[1], _sizes(cells[2]), _sizes(cells[3])))
    return found


def config_of(model: str, shared: Path = SHARED) -> tuple[ModelConfig, str]:
    """Its facts, and where they come from."""
    name = _FOLDERS.get(model, model)
    folder = shared / "data" / "configs" / name
    if folder.is_dir():
        return read_config(folder), "config.json"
    dim, depth, heads, kv_heads, width, vocabulary, tied, source = FACTS[name]
    hf: dict[str, object] = {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
    if name.startswith("Qwen-"):
        first = {"architectures": ["QWenLMHeadModel"], "intermediate_size": 2 * width, "seq_length": 8192}
        return read_facts(hf | first | {"layer_norm_epsilon": 1e-6, "kv_channels": dim // heads}), source
    return read_facts(hf | {"architectures": ["Qwen2ForCausalLM"]}), source


def check_cut(config: ModelConfig, grid: Grid) -> None:
    """AssertionError where shares and tensors do not fit together; UserError where there is no such grid.

    Layers of a kind are alike, so that decoders have one of each kind; the others are counted.
    """
    shares = [share_of(config, grid, rank) for rank in range(grid.ranks)]
    counted = sum(_stage(config, grid, shares[s * grid.tp : (s + 1) * grid.tp]) for s in range(grid.pp))
    twice = config.vocabulary * config.dim * (config.tied_head and grid.pp > 1)  # both ends have the table
    assert counted == sizes(config).parameters + twice, (counted, sizes(config).parameters)


def _stage(config: ModelConfig, grid: Grid, shares: list[Share]) -> int:
    """Check the ranks of one stage; the parameters that they have together, replicas once."""
    first = shares[0].layers.start
    sparse = config.sparse_layers[first : shares[0].layers.stop]
    kinds = {kind: first + sparse.index(kind) for kind in dict.fromkeys(sparse)}
    small = replace(
        config,
        depth=len(kinds),
        windows=tuple(config.windows[i] for i in kinds.values()),
        sparse_layers=tuple(kinds),
    )
    here = replace(ALONE, tp=grid.tp, ep=grid.ep)
    ends = {"first": shares[0].first, "last": shares[0].last}
    cut = [replace(share_of(small, here, lane), **ends) for lane in range(grid.tp)]  # type: ignore[arg-type]
    for share, mine in zip(shares, cut, strict=True):
        held = Decoder(small, device="meta", share=mine).tensors()
        _check_shapes(small, mine, {name: tuple(t.shape) for name, t in held.items()})
        assert sum(math.prod(t.shape) for t in held.values()) == parameters(small, mine)
        assert len(share.heads) % max(1, len(share.kv_heads)) == 0
    total = 0
    for name, shape in _whole(small).items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        alike = sparse.count(small.sparse_layers[int(layer[1])]) if layer else 1
        total += alike * _covered(name, shape, [cut_of(small, share, name) for share in cut])
    return total


def _check_shapes(config: ModelConfig, share: Share, held: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in _whole(config).items():
        found = cut_of(config, share, name)
        assert (found is None) == (name not in held), (name, share.rank)
        assert found is None or held[name] == found.shape(shape), (name, held[name], found, shape)
    assert held.keys() <= _whole(config).keys() | {"model.embed_tokens.weight"}


def _covered(name: str, shape: tuple[int, ...], cuts: list[Cut | None]) -> int:
    """How many of a tensor's numbers the cuts hold: all, and none overlaps another in part."""
    held = sorted({(cut.start, cut.stop, cut.axis) for cut in cuts if cut is not None})
    count = math.prod(shape)
    if not held:
        return 0  # another stage has it
    if held[0][2] < 0:
        assert len(held) == 1, name
        return count
    end = 0
    for start, stop, axis in held:
        assert axis == held[0][2] and start == end and stop > start, (name, held)
        end = stop
    assert end == shape[held[0][2]], (name, held, shape)
    return count


_known: dict[ModelConfig, dict[str, tuple[int, ...]]] = {}


def _whole(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    if config not in _known:
        tensors = Decoder(config, device="meta").tensors()
        _known[config] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return _known[config]


def table(shared: Path = SHARED) -> str:
    """The rows of the page's table, in Markdown."""
    lines = [
        "| model | 800I A2 | 300I DUO | query / key-value heads | query heads of a rank "
        "| GB of a rank, bfloat16 | can be, to 16 | facts from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(shared):
        config, source = config_of(row.model, shared)
        most = max(row.sizes)
        shares = [share_of(config, Grid(tp=most), rank) for rank in range(most)]
        heads = sorted({len(share.heads) for share in shares})
        size = max(parameters(config, share) for share in shares) * 2 / 1e9
        cells = [
            row.model,
            _cells(config, row.large),
            _cells(config, row.small),
            f"{config.heads} / {config.kv_heads}",
            f"{' or '.join(map(str, heads))} at {most}",
            f"{size:.3g} at {most}",
            _ranges([n for n in range(1, 17) if _can(config, n)]),
            source,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(config: ModelConfig, wanted: tuple[int, ...]) -> str:
    return " ".join(f"{_mark(config, size)} {size}" for size in wanted) or "-"


def _mark(config: ModelConfig, size: int) -> str:
    try:
        check_cut(config, Grid(tp=size))
    except (AssertionError, UserError):
        return "🔴"
    return "🟢"


def _can(config: ModelConfig, size: int) -> bool:
    try:
        check(config, Grid(tp=size))
    except UserError:
        return False
    return True


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 5 as `1-3, 5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def _sizes(cell: str) -> tuple[int, ...]:
    found = re.search(r"world size ([\d,]+)", cell)
    return tuple(map(int, found[1].split(","))) if found else ()


def written(page: str, shared: Path = SHARED) -> str:
    """`page` with the table of today."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(shared)}\n{END}{tail}"


def main() -> int:
    """Write the page; status 2 where ../shared is not there."""
    if not SHARED.is_dir():
        print(f"{SHARED} is not there; the table of {PAGE.name} is left as it is", file=sys.stderr)
        return 2
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
