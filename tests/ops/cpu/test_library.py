"""The native library is found, tried in a child process, and chosen from; what is told where it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneroof import device
from oneroof.errors import UserError
from oneroof.ops.cpu import library

ROOT = Path(__file__).parents[3]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
with_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler to make a stand-in with")
with_library = pytest.mark.skipif(
    not library.library().exists(), reason=f"the native kernels are {library.missing()}"
)

STAND_IN = """
#include <signal.h>
#include <string.h>
#include <unistd.h>
const char* oneroof_variants(void) {{ return "{names} "; }}
int oneroof_select(const char* name) {{ return {refused} && strcmp(name, "{refused_name}") == 0; }}
int oneroof_check(const char* name) {{ {cases} return 0; }}
"""
DIES = "__builtin_trap()"  # the instruction that no CPU knows
WRONG = "return 256"  # how many numbers were
FORBIDDEN = "return -1"
LOST = "kill(getpid(), SIGABRT)"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No choice made so far, none asked for, an empty cache folder, and a CPU that claims everything."""
    monkeypatch.delenv("ONEROOF_CPU", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield
    forget()


def forget() -> None:
    library._choose.cache_clear()
    library._open.cache_clear()


@pytest.fixture
def claims_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "lacking", lambda needs: [])


def stand_in(
    monkeypatch: pytest.MonkeyPatch, folder: Path, refused: str = "", **behaviour: str | None
) -> Path:
    """A library with these instruction sets, each of which is right (None) or does what is said; in use."""
    cases = " ".join(
        f'if (strcmp(name, "{name}") == 0) {{ {action}; }}' for name, action in behaviour.items() if action
    )
    source, made = folder / "stand_in.c", folder / "stand_in.so"
    source.write_text(
        STAND_IN.format(
            names=" ".join(behaviour), cases=cases, refused=int(bool(refused)), refused_name=refused
        )
    )
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer in cc
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(made), str(source)], check=True, env=plain)
    monkeypatch.setenv("ONEROOF_CPU_LIBRARY", str(made))
    return made


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The instruction sets of each probe that was started, as it goes."""
    started: list[tuple[str, ...]] = []
    run = library._run

    def counted(names: list[str]) -> dict[str, str]:
        started.append(tuple(names))
        return run(names)

    monkeypatch.setattr(library, "_run", counted)
    return started


@with_compiler
def test_what_kills_the_probe_or_is_wrong_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None
) -> None:
    stand_in(monkeypatch, tmp_path, avx2=None, avx512=None, avx512vnni=WRONG, avx512bf16=DIES, amx=FORBIDDEN)
    chosen = library.native()
    assert chosen is not None
    assert (chosen.variant, chosen.why) == ("avx512", "the best that works on this CPU")
    assert chosen is library.native()
    rows = library.status()
    assert rows.pop("library").startswith(str(tmp_path / "stand_in.so"))
    assert rows == {
        "at work": "avx512 (the best that works on this CPU)",
        "avx2": "works",
        "avx512": "works",
        "avx512vnni": "wrong results",
        "avx512bf16": "not on this CPU: killed by SIGILL",
        "amx": "not on this CPU: the system does not allow it",
    }


@with_compiler
def test_where_nothing_works_the_references_serve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None
) -> None:
    stand_in(monkeypatch, tmp_path, avx2=DIES, avx512=LOST)
    assert library.native() is None
    rows = library.status()
    assert rows["at work"].startswith("the references (no instruction set of the native kernels works")
    assert (rows["avx512"], rows["amx"]) == ("killed by SIGABRT", "not compiled")


@with_compiler
def test_one_that_cannot_be_selected_makes_room_for_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None
) -> None:
    stand_in(monkeypatch, tmp_path, refused="amx", avx2=None, amx=None)
    chosen = library.native()
    assert chosen is not None and chosen.variant == "avx2"


@with_compiler
def test_what_the_cpu_does_not_claim_is_tried_only_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, probes: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(device, "lacking", lambda needs: [name for name in needs if name == "avx512f"])
    stand_in(monkeypatch, tmp_path, avx2=None, avx512=None, amx=None)
    chosen = library.native()
    assert chosen is not None and chosen.variant == "avx2"
    assert library.status()["avx512"] == "not on this CPU: it has no avx512f"
    forget()
    monkeypatch.setenv("ONEROOF_CPU", "avx512")
    chosen = library.native()
    assert chosen is not None and (chosen.variant, chosen.why) == ("avx512", "ONEROOF_CPU asks for it")
    assert probes == [("avx2",), ("avx2", "avx512")]


@with_compiler
def test_a_second_start_needs_no_child_until_the_library_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None, probes: list[tuple[str, ...]]
) -> None:
    made = stand_in(monkeypatch, tmp_path, avx2=None, avx512=DIES)
    for _ in range(2):
        chosen = library.native()
        assert chosen is not None and chosen.variant == "avx2"
        forget()
    assert len(probes) == 1
    made.touch()
    library.native()
    assert len(probes) == 2
    forget()
    monkeypatch.setattr(device, "cpu_identity", lambda: "another CPU")
    library.native()
    assert len(probes) == 3


@with_compiler
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"found": {}}', '{"found": 3, "digest": 3}', "[" * 200_000, "\x00\xff", "works"],
)
def test_a_damaged_note_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    claims_all: None,
    probes: list[tuple[str, ...]],
    text: str,
) -> None:
    stand_in(monkeypatch, tmp_path, avx2=None, avx512=DIES)
    library.native()
    note = tmp_path / "cache" / "oneroof" / "native.json"
    whole = note.read_bytes()
    note.write_text(json.dumps(json.loads(whole) | {"found": {"avx2": "works", "avx512": "works"}}))
    if text != "works":  # but for this one: whole JSON, with another outcome
        note.write_text(text, encoding="latin-1")
    forget()
    chosen = library.native()
    assert chosen is not None and chosen.variant == "avx2"
    assert len(probes) == 2
    assert note.read_bytes() == whole


@with_compiler
def test_a_cache_folder_that_cannot_be_made_costs_a_probe_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None
) -> None:
    (tmp_path / "cache").write_text("a file")
    stand_in(monkeypatch, tmp_path, avx2=None)
    chosen = library.native()
    assert chosen is not None and chosen.variant == "avx2"


@with_compiler
@pytest.mark.parametrize("interpreter", ["/nothing/python", "/bin/false"])
def test_a_probe_that_cannot_run_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None, interpreter: str
) -> None:
    stand_in(monkeypatch, tmp_path, avx2=None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", interpreter)
        assert library.native() is None
        assert library.status()["avx2"].startswith("not tried: ")
    forget()
    assert library.native() is not None


@with_compiler
def test_an_instruction_set_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claims_all: None
) -> None:
    stand_in(monkeypatch, tmp_path, avx2=None, avx512=DIES, amx=None)
    monkeypatch.setenv("ONEROOF_CPU", "avx2")
    chosen = library.native()
    assert chosen is not None and (chosen.variant, chosen.why) == ("avx2", "ONEROOF_CPU asks for it")
    forget()
    monkeypatch.setenv("ONEROOF_CPU", "avx512")
    with pytest.raises(UserError) as failure:
        library.native()
    assert str(failure.value) == (
        "ONEROOF_CPU avx512: not on this CPU: killed by SIGILL; auto, reference, avx2, amx are allowed;"
        " try ONEROOF_CPU=auto"
    )
    assert library.status() == library.status() | {"at work": f"the references ({failure.value})"}


def test_the_references_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, probes: list[tuple[str, ...]]
) -> None:
    monkeypatch.setenv("ONEROOF_CPU", "reference")
    assert library.native() is None
    assert library.status()["at work"] == "the references (ONEROOF_CPU asks for them)"
    assert probes == []


def test_an_unknown_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEROOF_CPU", "fast")
    with pytest.raises(
        UserError, match=r"ONEROOF_CPU fast is unknown; auto, reference, avx2, .* are allowed; try"
    ):
        library.native()


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("not built: no C++ compiler was found when oneroof was installed", None),
        (None, "not built: nothing was compiled when oneroof was installed"),
        ("built with GNU 12.2.0", "not built: nothing was compiled when oneroof was installed"),
    ],
)
def test_without_a_library_the_references_serve_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, note: str | None, told: str | None
) -> None:
    if note is not None:
        (tmp_path / "native.txt").write_text(note + "\n")
    monkeypatch.setenv("ONEROOF_CPU_LIBRARY", str(tmp_path / "liboneroof_cpu.so"))
    assert library.native() is None
    assert library.missing() == (told or note)
    assert library.status() == {"at work": f"the references (the native kernels are {told or note})"}
    forget()
    monkeypatch.setenv("ONEROOF_CPU", "avx2")
    with pytest.raises(UserError, match=r"ONEROOF_CPU avx2: the native kernels are not built: .* try"):
        library.native()


def test_a_file_that_is_no_library_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "liboneroof_cpu.so").write_text("nothing of the sort")
    monkeypatch.setenv("ONEROOF_CPU_LIBRARY", str(tmp_path / "liboneroof_cpu.so"))
    assert library.native() is None
    assert library.status()["at work"].startswith("the references (the native kernels are not to be opened: ")


def test_the_build_and_the_probe_know_the_same_instruction_sets() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = text.partition("set(VARIANTS ")[2].partition(" CACHE")[0].split()
    assert listed == list(library.VARIANTS)


@with_library
def test_each_instruction_set_that_runs_here_is_right() -> None:
    rows = library.status()
    found = {name: rows[name] for name in library.VARIANTS}
    assert all(
        word in ("works", "not compiled") or word.startswith("not on this CPU") for word in found.values()
    ), found


@with_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm to look into the library with")
def test_the_library_shows_its_door_only_and_runs_nothing_while_it_is_opened() -> None:
    """A constructor in a file that is compiled for an instruction set would kill a CPU that lacks it."""

    def names(*words: str) -> list[str]:
        ran = subprocess.run(["nm", *words, str(library.library())], capture_output=True, text=True)
        return [line.split()[-1] for line in ran.stdout.splitlines()]

    shown = names("-D", "--defined-only")
    assert "oneroof_check" in shown
    assert [name for name in shown if not name.startswith("oneroof_")] == []
    assert [name for name in names() if name.startswith("_GLOBAL__sub_I_variant")] == []


@with_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm to look into the library with")
def test_of_an_inline_function_the_least_instruction_set_has_its_copy_kept() -> None:
    """The linker keeps the first: files for every CPU come first, then the sets, the best last."""
    ran = subprocess.run(["nm", "-C", "-n", str(library.library())], capture_output=True, text=True)
    places = [line.split(maxsplit=2)[2] for line in ran.stdout.splitlines() if len(line.split()) > 2]
    kernels = [f"oneroof::{name}::attend(oneroof::Attention const&)" for name in library.VARIANTS]
    wanted = ["oneroof_linear", *(name for name in kernels if name in places)]
    if len(wanted) == 1:
        pytest.skip("the library was stripped of its names")
    assert [name for name in places if name in wanted] == wanted
