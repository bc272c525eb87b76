"""Collectives with gradients; over one rank they do nothing. Plain tensors go over the wire, nothing pickled.

`group` is a process group of torch, or None for one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Group = dist.ProcessGroup


def size_of(group: Group | None) -> int:
    """Ranks of a group."""
    return 1 if group is None else group.size()


def total(x: Tensor, group: Group | None) -> Tensor:
    """The sum of all ranks' x. The gradient of x is that of the sum, which every rank has."""
    return x if size_of(group) == 1 else _call(_Total, x, group)


def copied(x: Tensor, group: Group | None) -> Tensor:
    """x, which every rank has and each uses for a part of its own: its gradient is the sum of theirs."""
    return x if size_of(group) == 1 else _call(_Copied, x, group)


def gathered(x: Tensor, group: Group | None) -> Tensor:
    """All ranks' x, one after the other along the last axis; they are of one shape."""
    return x if size_of(group) == 1 else _call(_Gathered, x, group)


def exchanged(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Group | None) -> Tensor:
    """Rows for every rank: the first ``sent[0]`` go to rank 0, and so on; rank r sends ``received[r]``."""
    return x if size_of(group) == 1 else _call(_Exchanged, x, list(sent), list(received), group)


def sum_over(x: Tensor, group: Group) -> Tensor:
    """A new tensor with the sum; on a CPU in the order of ranks, whatever the shape, so that it is exact."""
    if x.device.type != "cpu" or group.size() == 2:  # of two addends the order does not matter
        out = x.contiguous().clone()
        dist.all_reduce(out, group=group)
        return out
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    out = parts[0].float()
    for part in parts[1:]:
        out += part
    return out.to(x.dtype)


def _call(function: type[Function], *given: object) -> Tensor:
    return cast(Tensor, function.apply(*given))


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return sum_over(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Copied(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum_over(gradients[0], ctx.group), None


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.width = group, x.shape[-1]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rank = dist.get_rank(ctx.group)
        return gradients[0].narrow(-1, rank * ctx.width, ctx.width), None


class _Exchanged(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return _exchange(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(gradients[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out
