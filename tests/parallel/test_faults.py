"""Ranks that die, or do not find each other: everybody hears of it, and nobody stays."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch.distributed.distributed_c10d as c10d
from checkpoints import make
from rank_engines import assembled, intake_of, served

from oneroof import LLM, SamplingParams
from oneroof.comm.crew import Crew
from oneroof.engine import ranks
from oneroof.engine.blocking import BlockingEngine
from oneroof.engine.options import EngineOptions
from oneroof.engine.remote import EngineDied
from oneroof.engine.request import Output
from oneroof.engine.wire import Load
from oneroof.errors import RankLost, UserError

LONG = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
SECONDS = 5.0  # within which everybody has heard


def gone(pids: list[int]) -> bool:
    """Ended, or ended and not yet asked for by its parent."""
    for pid in pids:
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
            return False
    return True


def llm_of(folder: Path, **options: object) -> LLM:
    facts: dict[str, object] = {"dtype": "float32", "device": "cpu", "bind_cpu": False, "max_model_len": 96}
    return LLM(folder, **(facts | options))  # type: ignore[arg-type]


def pids_of(llm: LLM) -> list[int]:
    assert llm._assembled is not None and llm._assembled.crew is not None
    return llm._assembled.crew.pids


@pytest.mark.parametrize("layout", [{"tp": 2}, {"pp": 2}], ids=str)
@pytest.mark.parametrize("tokens", [0, 5], ids=["while a prompt is read", "while text is written"])
def test_a_rank_that_is_killed_is_named_and_takes_all_with_it(
    checkpoint: Callable[..., Path], layout: dict[str, int], tokens: int
) -> None:
    with llm_of(checkpoint("qwen2"), max_batch_tokens=4, **layout) as llm:
        pids = pids_of(llm)
        pieces = llm.stream([[5] * 30], LONG)
        for _ in range(tokens):
            next(pieces)
        os.kill(pids[0], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RankLost, match=rf"rank \d \(pid {pids[0]}\) was killed by SIGKILL"):
            list(pieces)
        assert time.monotonic() - began < SECONDS
        assert gone(pids)
        with pytest.raises(UserError, match="closed"):
            llm.generate("a", LONG)
    with llm_of(checkpoint("qwen2"), **layout) as llm:  # the next one is not harmed
        assert llm.generate([[5, 6]], LONG)[0].token_ids


def test_a_rank_that_is_killed_while_it_loads(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seat = Crew.seat

    def seat_and_kill(crew: Crew, orders: Mapping[int, bytes], ended: Callable[[], None]) -> None:
        seat(crew, orders, ended)
        os.kill(crew.pids[0], signal.SIGKILL)

    monkeypatch.setattr(Crew, "seat", seat_and_kill)
    with pytest.raises(RankLost, match=r"rank 1 .* was killed by SIGKILL"):
        llm_of(checkpoint("qwen2"), tp=2)


def test_a_rank_without_room_says_so_and_the_others_go(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", "qwen2", num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    with pytest.raises(UserError, match=r"rank 1: kv_memory is .* GB are needed") as seen:
        llm_of(folder, tp=2, kv_memory=8e-5)  # enough for one kv head, which rank 0 has, and not for two
    assert str(seen.value).count("\n") == 0


def test_a_rank_that_fails_in_a_step_ends_the_run(checkpoint: Callable[..., Path]) -> None:
    with llm_of(checkpoint("qwen2"), tp=2) as llm:
        pids = pids_of(llm)
        assert llm._assembled is not None and llm._assembled.team is not None
        monkey = llm._assembled.team

        def broken(*_: object) -> None:
            raise MemoryError("no room for activations")

        llm._assembled.engine.runner._model = broken  # type: ignore[assignment]
        assert monkey.whole
        with pytest.raises(RankLost, match="rank 0 failed in a step: MemoryError: no room for activations"):
            llm.generate([[5, 6]], LONG)
        assert gone(pids)


def test_a_request_that_cannot_be_served_harms_nobody(checkpoint: Callable[..., Path]) -> None:
    with llm_of(checkpoint("qwen2"), tp=2) as llm:
        with pytest.raises(UserError, match="at most"):
            llm.generate([[5] * 200], LONG)
        failed = llm.generate([[5, 6]], SamplingParams(max_tokens=4, temperature=0.0, stop=["\ud800"]))
        assert failed
        assert len(llm.generate([[5, 6]], LONG)[0].token_ids) == 60


def test_layouts_that_cannot_be_are_refused_before_anything_is_loaded(
    checkpoint: Callable[..., Path],
) -> None:
    for options, said in (
        ({"tp": 8}, "tp is 8; 1, 2, 3, 4 can be: 4 query heads and 2 key-value heads"),
        ({"pp": 9}, "pp is 9; 1 to 4 are allowed"),
        ({"ep": 2}, "ep is 2; 1 is allowed: the model has no experts"),
        ({"tp": 0}, "tp is 0"),
        ({"dp": 2, "engine": "plain"}, "dp is 2, and engine is 'plain'"),
        ({"dp": 2, "tp": 8}, "tp is 8; 1, 2, 3, 4 can be"),
    ):
        with pytest.raises(UserError, match=said):
            llm_of(checkpoint("qwen2"), **options)


def test_no_object_is_pickled(
    crew: Crew, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was pickled")

    for name in ("dumps", "loads", "Pickler", "Unpickler", "dump", "load"):
        monkeypatch.setattr(pickle, name, forbidden)
    for name in ("_object_to_tensor", "_tensor_to_object"):
        monkeypatch.setattr(c10d, name, forbidden)
    made = assembled(crew, checkpoint("qwen2"), tp=2, pp=2)
    try:
        (found,) = served(made.engine, intake_of(made.engine).requests([[5, 6]], LONG))
    finally:
        made.close()
    assert isinstance(found, Output) and len(found.token_ids) == 60


@pytest.fixture
def command(checkpoint: Callable[..., Path]) -> list[str]:
    words = ["generate", str(checkpoint("qwen2")), "--prompt", "a b", "--dtype", "float32", "--no-bind-cpu"]
    return [sys.executable, "-m", "oneroof", *words, "--temperature", "0", "--max-model-len", "96"]


@pytest.fixture
def alone(command: list[str]) -> str:
    return subprocess.run([*command, "--max-tokens", "8"], capture_output=True, text=True, check=True).stdout


def test_ctrl_c_leaves_no_process() -> None:
    words = [sys.executable, "-m", "oneroof", "generate", "demo", "--prompt", "Once", "--random-weights"]
    words += ["--tp", "2", "--max-tokens", "3000", "--temperature", "0.8"]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.read(1)  # it writes
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in said
    assert children and gone([int(pid) for pid in children])


def test_two_jobs_at_once(command: list[str], alone: str) -> None:
    words = [*command, "--tp", "2", "--max-tokens", "8"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [job.communicate(timeout=120)[0] for job in both] == [alone, alone]


@pytest.mark.parametrize("layout", [["--tp", "2"], ["--pp", "2"]], ids=" ".join)
def test_ranks_that_torchrun_has_started(
    command: list[str], alone: str, layout: list[str], tmp_path: Path
) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*program, *command[1:], "--max-tokens", "8", *layout, "--log-dir", str(tmp_path)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, alone), ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0.log", "rank1.log"]


def test_a_master_that_cannot_be_reached(command: list[str]) -> None:
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ran = subprocess.run(
        [*command, "--tp", "2"],
        env={**os.environ, **place, "ONEROOF_MEETING": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 2
    assert "rank 1 of 2 met no others at 127.0.0.1:1 in 1 s" in ran.stderr.splitlines()[-1]


def test_another_number_of_ranks_than_was_started(command: list[str]) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ran = subprocess.run(
        [*command, "--tp", "2"], env={**os.environ, **place}, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].endswith(
        "3 ranks were started; 2 are wanted by tp 2 and pp 1; start as many"
    )


def test_ranks_log_for_themselves(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with llm_of(checkpoint("qwen2"), tp=2, log_dir=tmp_path / "logs") as llm:
        llm.generate([[5, 6]], LONG)
    assert "rank 1 joins the others over" in (tmp_path / "logs" / "rank1.log").read_text()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    shared = Path("/dev/shm")
    before = set(shared.glob("oneroof-*")) if shared.exists() else set()
    yield
    assert ranks.joined() is None
    if shared.exists():
        assert set(shared.glob("oneroof-*")) <= before


def test_an_engine_in_a_process_of_its_own_has_ranks(checkpoint: Callable[..., Path]) -> None:
    folder, options = checkpoint("qwen2"), EngineOptions(max_model_len=96)
    facts: dict[str, object] = {"dtype": "float32", "device": "cpu", "bind_cpu": False, "options": options}
    order = Load(model=str(folder), tp=2, **facts)  # type: ignore[arg-type]
    with llm_of(folder) as llm, BlockingEngine.start(order) as engine:
        (request,) = llm._intake.requests([[5, 6]], LONG)
        children = Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()
        assert engine.generate(request).token_ids == llm.generate([[5, 6]], LONG)[0].token_ids
        rank = next(int(pid) for pid in children if "engine.ranks" in _words(pid))
        os.kill(rank, signal.SIGKILL)
        with pytest.raises(EngineDied, match="was killed by SIGKILL"):
            engine.generate(request)
    assert gone([int(pid) for pid in children])


def _words(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
