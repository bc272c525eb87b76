"""What ranks do over memory that they share: sums and columns against torch's, words, and a death."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch
from native_kernels import with_kernels

from oneroof.ops.cpu.board import Board, can_share, new_file

pytestmark = with_kernels

PROGRAM = """
import sys
from pathlib import Path
import torch
from oneroof.ops.cpu import backend
from oneroof.ops.cpu.board import Board

path, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
backend.install()
backend.set_threads(2)
board = Board(path, rank, ranks)


def drawn(of, shape, dtype):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(of)).to(dtype)
    if shape[0] > 2 and shape[1] > 2:
        made[1, 1] = torch.nan if of == 0 else 1.0
        made[2, 0] = torch.inf
    return made


for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for shape in ((0, 8), (1, 1), (1, 7), (3, 16), (5, 33), (64, 100), (300, 1024), (700, 1000)):
        parts = [drawn(of, shape, dtype) for of in range(ranks)]
        wanted = parts[0].float()
        for part in parts[1:]:
            wanted = wanted + part.float()
        found = board.total(parts[rank], dtype)
        assert torch.equal(found.nan_to_num(9.0), wanted.to(dtype).nan_to_num(9.0)), (dtype, shape)
        wide = board.total(parts[rank].float(), dtype)
        assert torch.equal(wide.nan_to_num(9.0), found.nan_to_num(9.0))
        spread = torch.cat([parts[rank], parts[rank]], dim=1)[:, : shape[1]]
        assert torch.equal(board.total(spread, dtype).nan_to_num(9.0), found.nan_to_num(9.0))
for rows, whole in ((0, 10), (1, 10), (3, 1001), (40, 50000), (2, ranks * 16)):
    each = -(-whole // ranks)
    full = drawn(7, (rows, whole), torch.float32).nan_to_num(3.0)
    mine = full[:, rank * each : min(whole, (rank + 1) * each)]
    for speaker in range(2):
        found = board.side_by_side(mine, whole, each, wanted=rank == speaker)
        assert rank != speaker or torch.equal(found, full), (rows, whole)
for size in (0, 1, 1000, 1 << 20, 3000001):
    said = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    if rank == 0:
        board.tell(said)
    else:
        assert board.hear(0) == said
assert not board.ended
print("done")
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_with_torch(ranks: int) -> None:
    path = new_file(ranks)
    try:
        words = [sys.executable, "-c", PROGRAM, str(path)]
        pipe = subprocess.PIPE
        running = [
            subprocess.Popen([*words, str(rank), str(ranks)], stdout=pipe, stderr=pipe, text=True)
            for rank in range(ranks)
        ]
        ended = [job.communicate(timeout=120) for job in running]
    finally:
        path.unlink()
    assert [(out, err) for out, err in ended] == [("done\n", "")] * ranks


def test_nobody_waits_for_the_dead() -> None:
    path = new_file(2)
    board = Board(path, 0, 2)
    path.unlink()
    timer = threading.Timer(0.3, board.end)
    timer.start()
    began = time.monotonic()
    board.total(torch.ones(2, 4), torch.float32)
    assert board.ended and time.monotonic() - began < 2
    assert board.hear(1) is None
    board.tell(b"to nobody")
    timer.join()


def test_others_cannot_read_it() -> None:
    path = new_file(2)
    try:
        assert path.stat().st_mode & 0o077 == 0
    finally:
        path.unlink()


def test_a_board_has_two_ranks_or_more() -> None:
    assert can_share(2)
    assert not can_share(1)
    assert not can_share(1000)
