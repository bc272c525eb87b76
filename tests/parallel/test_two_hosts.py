"""Two hosts, for real: network namespaces with a cable between them, two ranks in each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_PORT = "29617"


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    names = [f"oneroof-{os.getpid()}-{i}" for i in range(2)]
    try:
        try:
            for name in names:
                _ip(f"netns add {name}")
            _ip(f"link add veth0 netns {names[0]} type veth peer name veth1 netns {names[1]}")
            for i, name in enumerate(names):
                _ip(f"-n {name} addr add 10.77.0.{i + 1}/24 dev veth{i}")
                _ip(f"-n {name} link set veth{i} up")
                _ip(f"-n {name} link set lo up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode().strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.parametrize(
    "layout",
    [pytest.param(["--tp", "4"], marks=pytest.mark.slow), ["--tp", "2", "--pp", "2"]],
    ids=" ".join,
)
def test_two_ranks_on_each_of_two_hosts(
    hosts: list[str], checkpoint: Callable[..., Path], layout: list[str]
) -> None:
    program = ["-m", "oneroof", "generate", str(checkpoint("qwen2")), "--prompt", "a b", "--max-tokens", "8"]
    words = [*program, "--temperature", "0", "--dtype", "float32", "--no-bind-cpu", "--max-model-len", "64"]
    alone = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout
    running = []
    for i, host in enumerate(hosts):
        start = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(i)]
        start += ["--nproc-per-node", "2", "--master-addr", "10.77.0.1", "--master-port", _PORT]
        line = ["ip", "netns", "exec", host, sys.executable, *start, *words, *layout]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True))
    try:
        said = [job.communicate(timeout=120) for job in running]
    except subprocess.TimeoutExpired:
        for job in running:
            job.kill()
        pytest.fail(f"they do not end: {[job.communicate() for job in running]}")
    assert [job.returncode for job in running] == [0, 0], "\n".join(err for _, err in said)
    assert "".join(out for out, _ in said) == alone
