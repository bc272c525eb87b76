"""From the keys of a `config.json` to facts: what the families share, in the schemas of transformers 4 and 5
alike.

Every key that changes meaning is read or refused; nothing is guessed from a size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from oneroof.config import Rope
from oneroof.errors import UserError

Keys = Mapping[str, object]

DTYPES = ("float32", "bfloat16", "float16")
ROPE_KINDS = ("default", "linear", "dynamic", "yarn")


def integer(hf: Keys, *names: str, default: int | None = None, least: int = 0) -> int:
    """The first of `names` that is set, an integer from `least` on; UserError if not, or if none is."""
    value = _first(hf, names, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(
            f"config.json says {names[0]} = {value!r}; whole numbers from {least} on are allowed; mend it"
        )
    return value


def size(hf: Keys, *names: str, default: int | None = None) -> int:
    """The same for what there must be at least one of: widths, heads, layers."""
    return integer(hf, *names, default=default, least=1)


def number(hf: Keys, *names: str, default: float | None = None) -> float:
    """The first of `names` that is set, as a finite number."""
    value = _first(hf, names, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"config.json says {names[0]} = {value!r}; a finite number is allowed; mend the file")
    return float(value)


def positive(hf: Keys, *names: str, default: float | None = None) -> float:
    """The same for what must be above zero."""
    value = number(hf, *names, default=default)
    if value <= 0:
        raise UserError(
            f"config.json says {names[0]} = {value!r}; a number above 0 is allowed; mend the file"
        )
    return value


def flag(hf: Keys, name: str, default: bool) -> bool:
    """The switch `name`; `default` where the file is silent, as the family's own code has it."""
    value = hf.get(name)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"config.json says {name} = {value!r}; true or false is allowed; mend the file")
    return default if value is None else value


def integers(hf: Keys, name: str) -> tuple[int, ...]:
    """A number, a list of numbers, or nothing."""
    value = hf.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise UserError(
            f"config.json says {name} = {value!r}; a number or a list of numbers is allowed; mend the file"
        )
    return tuple(v for v in values if isinstance(v, int))


def token(hf: Keys, name: str) -> int | None:
    """A token id, or None where the file has none (or -1)."""
    ids = integers(hf, name)
    return ids[0] if ids and ids[0] >= 0 else None


def dtype(hf: Keys) -> str:
    """The checkpoint's dtype: `dtype` (transformers 5), `torch_dtype` (4) or Qwen-1's switches.

    Where none is set, as in the published Qwen-1 files, the answer is `stored`: as the tensors are.
    """
    named = hf.get("dtype") or hf.get("torch_dtype")
    if named is None:
        switches = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
        named = next((word for switch, word in switches.items() if hf.get(switch) is True), "stored")
    word = str(named).removeprefix("torch.")
    if word not in (*DTYPES, "stored"):
        raise UserError(
            f"config.json says dtype {word!r}; {', '.join(DTYPES)} are allowed; convert the checkpoint"
        )
    return word


def activation(hf: Keys) -> None:
    """Refuse any activation but SiLU: every family here gates with it."""
    act = hf.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise UserError(
            f"config.json says hidden_act {act!r}; only silu is allowed in these families; see docs/models.md"
        )


def head_dim(hf: Keys, dim: int, heads: int) -> int:
    """Width of a head: stated, or the model's width shared out evenly; it must be even for rope to pair
    coordinates.
    """
    stated = hf.get("head_dim") or hf.get("kv_channels")
    if stated is None and dim % heads:
        raise UserError(
            f"{heads} heads do not divide a width of {dim}; allowed are divisors of it, or a stated head_dim"
        )
    width = integer({"head_dim": stated}, "head_dim") if stated is not None else dim // heads
    if width == 0 or width % 2:
        raise UserError(f"config.json gives heads of width {width}; rope needs an even width; mend head_dim")
    return width


def kv_heads(hf: Keys, heads: int) -> int:
    """Key and value heads; they divide the query heads."""
    count = integer(hf, "num_key_value_heads", default=heads)
    if count == 0 or heads % count:
        raise UserError(
            f"{count} key-value heads do not divide {heads} heads; its divisors are allowed; mend the file"
        )
    return count


def rope(hf: Keys, *, theta: float, interleaved: bool, positions: int) -> tuple[Rope, int]:
    """The rope and how far it reaches (positions), from `rope_parameters` (5) or `rope_theta` and
    `rope_scaling` (4).
    """
    told = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(told, Mapping):
        raise UserError(f"config.json says rope parameters {told!r}; an object is allowed; mend the file")
    kind = str(told.get("rope_type") or told.get("type") or "default")
    if kind not in ROPE_KINDS:
        raise UserError(
            f"config.json says rope type {kind!r}; {', '.join(ROPE_KINDS)} are allowed; see docs/models.md"
        )
    if float(number(told, "partial_rotary_factor", default=1.0)) != 1.0:
        raise UserError(
            "config.json says partial_rotary_factor; only whole heads are rotated in these families; mend it"
        )
    base = positive(told, "rope_theta", default=positive(hf, "rope_theta", default=theta))
    if kind == "default":
        return Rope(kind=kind, theta=base, interleaved=interleaved), positions
    original = positions
    if kind == "yarn":
        original = size(told, "original_max_position_embeddings", default=positions)
    factor = number(told, "factor", default=positions / original if kind == "yarn" else None)
    if factor < 1:
        raise UserError(f"config.json says rope factor {factor}; at least 1 is allowed; mend the file")
    reach = max(positions, round(original * factor)) if kind == "yarn" else round(positions * factor)
    made = Rope(
        kind=kind,
        theta=base,
        interleaved=interleaved,
        factor=factor,
        original_positions=original,
        beta_fast=number(told, "beta_fast", default=32.0),
        beta_slow=number(told, "beta_slow", default=1.0),
        attention_factor=_attention_factor(told, factor) if kind == "yarn" else 1.0,
        truncate=flag(told, "truncate", True),
    )
    return made, reach


def windows(hf: Keys, depth: int, sliding: tuple[bool, ...]) -> tuple[int, ...]:
    """Keys a query sees, a layer: `layer_types` where the file lists them, else `sliding` with
    `use_sliding_window`.
    """
    listed = hf.get("layer_types")
    if isinstance(listed, list):
        unknown = sorted({str(t) for t in listed} - {"full_attention", "sliding_attention"})
        if unknown or len(listed) < depth:
            raise UserError(
                f"config.json lists {len(listed)} layer_types with {unknown or 'no'} unknown kinds; "
                f"full_attention and sliding_attention for {depth} layers are allowed; mend the file"
            )
        sliding = tuple(t == "sliding_attention" for t in listed[:depth])
        if any(sliding) and not flag(hf, "use_sliding_window", False):
            raise UserError(
                "config.json lists sliding_attention layers and says use_sliding_window = false; one of "
                "the two is allowed; mend the file"
            )
    if not flag(hf, "use_sliding_window", False) or not any(sliding):
        return (0,) * depth
    width = size(hf, "sliding_window")
    return tuple(width if slides else 0 for slides in sliding)


def _attention_factor(told: Keys, factor: float) -> float:
    """YaRN's temperature on cos and sin: stated, or ``0.1 ln(factor) + 1`` (arXiv:2309.00071, eq. 22)."""
    if told.get("attention_factor") is not None:
        return number(told, "attention_factor")
    if told.get("mscale") and told.get("mscale_all_dim"):
        return _mscale(factor, number(told, "mscale")) / _mscale(factor, number(told, "mscale_all_dim"))
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _first(hf: Keys, names: tuple[str, ...], default: object) -> object:
    for name in names:
        if hf.get(name) is not None:
            return hf[name]
    if default is None:
        raise UserError(
            f"config.json has no {' or '.join(names)}; every model of this architecture has; mend it"
        )
    return default
