"""The structures of abi.h, field by field: what a call hands to the native kernels.

Addresses are plain integers (0: none), so that filling one in costs no objects. Nothing here keeps a tensor
alive: who fills a structure does, until the call is over.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}  # enum Kind of tensors
INT4 = 4


class Weight(Structure):
    """A weight in panels of 16 outputs."""

    _fields_ = [  # as ctypes wants it
        ("data", c_void_p),
        ("scale", c_void_p),
        ("zero", c_void_p),
        ("kind", c_int32),
        ("group", c_int32),
        ("rows", c_int64),
        ("dim", c_int64),
        ("experts", c_int64),
    ]


class Product(Structure):
    """A product of tokens with a weight."""

    _fields_ = [
        ("weight", c_void_p),
        ("x", c_void_p),
        ("y", c_void_p),
        ("bias", c_void_p),
        ("tokens", c_int64),
        ("x_stride", c_int64),
        ("y_stride", c_int64),
        ("x_type", c_int32),
        ("y_type", c_int32),
        ("input", c_int32),
        ("input_scale", c_float),
    ]


class Mixture(Structure):
    """Tokens, the experts they chose, and their weights."""

    _fields_ = [
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("x", c_void_p),
        ("y", c_void_p),
        ("weights", c_void_p),
        ("chosen", c_void_p),
        ("first", c_int64),
        ("tokens", c_int64),
        ("k", c_int64),
        ("x_stride", c_int64),
        ("y_stride", c_int64),
        ("x_type", c_int32),
        ("y_type", c_int32),
        ("input", c_int32),
        ("input_scale", c_float),
        ("hidden_scale", c_float),
    ]


class Attention(Structure):
    """Queries, new keys and values, and where older ones lie."""

    _fields_ = [
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("out", c_void_p),
        ("q_stride", c_int64),
        ("k_stride", c_int64),
        ("v_stride", c_int64),
        ("tokens", c_int64),
        ("sequences", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("bounds", c_void_p),
        ("lengths", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("table", c_void_p),
        ("table_width", c_int64),
        ("page_size", c_int64),
        ("key_pool", c_void_p),
        ("value_pool", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("window", c_int64),
        ("type", c_int32),
        ("pool_type", c_int32),
        ("causal", c_int32),
        ("scale", c_float),
    ]


class Norm(Structure):
    """Rows to be normed, with or without a residual."""

    _fields_ = [
        ("x", c_void_p),
        ("residual", c_void_p),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("total", c_void_p),
        ("tokens", c_int64),
        ("dim", c_int64),
        ("x_stride", c_int64),
        ("residual_stride", c_int64),
        ("type", c_int32),
        ("eps", c_float),
    ]


class Heads(Structure):
    """Fused rows of queries, keys and values to be normed and turned in place."""

    _fields_ = [
        ("qkv", c_void_p),
        ("tokens", c_int64),
        ("stride", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("dim", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("query_scale", c_void_p),
        ("type", c_int32),
        ("interleaved", c_int32),
        ("eps", c_float),
    ]


class Swiglu(Structure):
    """Rows of two halves."""

    _fields_ = [
        ("gate_up", c_void_p),
        ("y", c_void_p),
        ("tokens", c_int64),
        ("width", c_int64),
        ("stride", c_int64),
        ("type", c_int32),
    ]


class Routing(Structure):
    """Scores of experts, and what follows from them."""

    _fields_ = [
        ("scores", c_void_p),
        ("bias", c_void_p),
        ("probabilities", c_void_p),
        ("weights", c_void_p),
        ("chosen", c_void_p),
        ("tokens", c_int64),
        ("experts", c_int64),
        ("k", c_int64),
        ("stride", c_int64),
        ("type", c_int32),
        ("normalize", c_int32),
        ("floor", c_float),
    ]


class Waves(Structure):
    """Angles, and their cosines and sines as a rotation wants them."""

    _fields_ = [
        ("turns", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("tokens", c_int64),
        ("half", c_int64),
        ("interleaved", c_int32),
        ("factor", c_float),
    ]


class Likeliest(Structure):
    """Rows of logits, and where the largest of each is."""

    _fields_ = [
        ("x", c_void_p),
        ("chosen", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("stride", c_int64),
        ("otherwise", c_int64),
    ]


class Drawing(Structure):
    """Rows of logits, how they are drawn from, and what is drawn."""

    _fields_ = [
        ("x", c_void_p),
        ("temperature", c_void_p),
        ("seeds", c_void_p),
        ("positions", c_void_p),
        ("chosen", c_void_p),
        ("rows", c_int64),
        ("width", c_int64),
        ("stride", c_int64),
    ]


class Blend(Structure):
    """Two addends, the second with a gate or none."""

    _fields_ = [
        ("x", c_void_p),
        ("y", c_void_p),
        ("gate", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("dim", c_int64),
        ("x_stride", c_int64),
        ("y_stride", c_int64),
        ("gate_stride", c_int64),
        ("type", c_int32),
    ]


class Board(Structure):
    """A rank's view of the memory that it shares with others: board.h."""

    _fields_ = [
        ("memory", c_void_p),
        ("rank", c_int64),
        ("ranks", c_int64),
        ("slot", c_int64),
        ("turn", c_int64),
    ]


class Total(Structure):
    """Rows whose sum over the ranks is wanted."""

    _fields_ = [
        ("board", c_void_p),
        ("x", c_void_p),
        ("out", c_void_p),
        ("tokens", c_int64),
        ("dim", c_int64),
        ("x_type", c_int32),
        ("out_type", c_int32),
    ]


class Columns(Structure):
    """Rows of which every rank has some columns."""

    _fields_ = [
        ("board", c_void_p),
        ("x", c_void_p),
        ("out", c_void_p),
        ("rows", c_int64),
        ("each", c_int64),
        ("whole", c_int64),
    ]


class Command(Structure):
    """A kernel of those that take one structure, and its structure."""

    _fields_ = [("kernel", c_void_p), ("structure", c_void_p)]


class Patch(Structure):
    """A place of a structure that is written anew before each run."""

    _fields_ = [("field", c_void_p), ("value", c_int64), ("offset", c_int64)]
