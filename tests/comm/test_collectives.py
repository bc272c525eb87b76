"""Collectives against what one process makes of all ranks' parts, forwards and backwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oneroof.comm.collectives import copied, exchanged, gathered, total

PROGRAM = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from oneroof.comm.collectives import copied, exchanged, gathered, total
from oneroof.comm.mesh import Mesh, leave, meet

rank, ranks = int(sys.argv[2]), int(sys.argv[3])
meet(rank, ranks, torch.device("cpu"), file=Path(sys.argv[1]))
mesh = Mesh(rank, ranks, 1, torch.device("cpu"))
group = mesh.devices.get_group("tp")


def parts(rows=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=generator).requires_grad_() for _ in range(ranks)]


def near(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


weights = [p.detach() for p in parts(seed=1)]

# a sum, which every rank goes on with: its own loss is weighed alike
mine, all_ = parts(), parts()
near(total(mine[rank], group), sum(all_))
(total(mine[rank], group) * weights[0]).sum().backward()
(sum(all_) * weights[0]).sum().backward()
near(mine[rank].grad, all_[rank].grad)

# what every rank has, and uses for a part of its own
x, y = parts()[0], parts()[0]
(copied(x, group) * weights[rank]).sum().backward()
sum((y * w).sum() for w in weights).backward()
near(x.grad, y.grad)

# columns side by side
mine, all_ = parts(), parts()
wide = torch.cat([w for w in weights], dim=-1)
near(gathered(mine[rank], group), torch.cat(all_, dim=-1))
(gathered(mine[rank], group) * wide).sum().backward()
(torch.cat(all_, dim=-1) * wide).sum().backward()
near(mine[rank].grad, all_[rank].grad)

# rows for every rank, unequal ones and none
counts = [[(3 * i + j) % 4 for j in range(ranks)] for i in range(ranks)]  # from i to j
rows = [sum(row) for row in counts]
mine = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in rows]
received = [counts[i][rank] for i in range(ranks)]
found = exchanged(mine[rank], counts[rank], received, group)
wanted = torch.cat([mine[i].split(counts[i])[rank] for i in range(ranks)])
near(found, wanted)
(found * (rank + 1)).sum().backward()
scale = torch.cat([torch.full((n, 3), float(j + 1)) for j, n in enumerate(counts[rank])])
near(mine[rank].grad, scale)

assert mesh.least(10 - rank) == 10 - (ranks - 1)
assert mesh.one_machine()
for size in (0, 5, 4088, 4089, 100000):
    if rank == mesh.driver:
        mesh.tell(b"a" * size)
    else:
        assert mesh.hear() == b"a" * size
whole, each = 4 * ranks - 1, 4
full = torch.arange(3.0 * whole).view(3, whole)
columns = full[:, rank * each : (rank + 1) * each]
beside = mesh.side_by_side(columns, whole, each, wanted=rank == 0)
assert torch.equal(beside, full if rank == 0 else columns)

# bits do not depend on the shape
torch.manual_seed(rank)
x = torch.randn(64, 33)
assert torch.equal(mesh.total(x)[7:8], mesh.total(x[7:8]))

mine_alone = {
    str(link.readlink()).strip("socket:[]") for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
}
listening = [
    line.split()[1].split(":")[0]
    for name in ("tcp", "tcp6")
    for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
    if line.split()[3] == "0A" and line.split()[9] in mine_alone
]
assert listening and all(address.endswith("0100007F") for address in listening), listening
leave()
import os
assert "GLOO_SOCKET_IFNAME" not in os.environ  # else every process that we start would have it
print("done")
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_with_one_process(ranks: int, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "meet")]
    running = [
        subprocess.Popen([*words, str(rank), str(ranks)], stdout=pipe, stderr=pipe, text=True)
        for rank in range(ranks)
    ]
    ended = [job.communicate(timeout=120) for job in running]
    assert [out for out, _ in ended] == ["done\n"] * ranks, ended


def test_over_one_rank_they_do_nothing() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert total(x, None) is copied(x, None) is gathered(x, None) is exchanged(x, [3], [3], None) is x
