"""The operations of the house: `from oneroof.ops import rms_norm`. Each has one reference and any number of
backends.
"""

from oneroof.ops.attention import attention
from oneroof.ops.dispatch import Recorder, Recording, recorder, served, use
from oneroof.ops.linear import linear
from oneroof.ops.matmul import gated_matmul, lookup, matmul, mix
from oneroof.ops.mixture import mixture, route
from oneroof.ops.noise import draw
from oneroof.ops.norm import add_rms_norm, rms_norm
from oneroof.ops.pointwise import blend, likeliest, swiglu
from oneroof.ops.rotary import qk_norm_rope, rotate, waves

__all__ = [
    "Recorder",
    "Recording",
    "add_rms_norm",
    "attention",
    "blend",
    "draw",
    "gated_matmul",
    "likeliest",
    "linear",
    "lookup",
    "matmul",
    "mix",
    "mixture",
    "qk_norm_rope",
    "recorder",
    "rms_norm",
    "rotate",
    "route",
    "served",
    "swiglu",
    "use",
    "waves",
]
