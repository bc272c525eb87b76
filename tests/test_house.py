"""The house stands: imports go down, files are small and say what they are, words keep their rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "oneroof"
FLOORS = (
    ("errors", "jsonfile", "log", "report", "config", "device", "batch", "pages"),
    ("names", "layout", "tensorfile", "hub", "ops", "comm", "text"),
    ("layers", "data"),
    ("models", "weights", "quant", "parallel", "lora"),
    ("load",),
    ("train", "engine", "export"),
    ("eval", "serve", "bench", "audit"),
    ("cli",),
)
FACE = len(FLOORS)  # oneroof/__init__.py and __main__.py stand above all floors
FAMILY_WORDS = re.compile(r"qwen|ernie|\bgte\b|deepseek|llama", re.IGNORECASE)
SPEAK_OF_FAMILIES = (  # rooms and files whose code may name a family, and why
    "models/",  # that is what they are for
    "text/",  # tokenizer files and template formats bear a family's name
    "export/",  # what a checkpoint is converted to
    "bench/peers/",  # the shapes that are compared, and peers that bear a family's name or tell one by it
    "cli/convert.py",  # ... and the word that asks for it
)
TITLE = "The whole life of a Qwen or ERNIE-4.5 model under one roof."  # what the project calls itself
DRAWERS = ("utils", "util", "common", "helpers", "helper", "misc", "base", "shared", "core")
HOLLOW_NAME = re.compile(r"^_*Base[A-Z]|(Manager|Handler|Processor|Wrapper|Impl|Helper|Utils)$")
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every import of our own, wherever it stands in the file: dotted name below `oneroof`, and its line."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((a.name[8:], node.lineno) for a in node.names if a.name.startswith("oneroof."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            if node.module == "oneroof":
                yield from ((a.name, node.lineno) for a in node.names)
            elif node.module and node.module.startswith("oneroof."):
                below = node.module[8:]
                for alias in node.names:  # `from oneroof.text import chat` means the file text/chat.py
                    deeper = PACKAGE / below.replace(".", "/") / f"{alias.name}.py"
                    yield (f"{below}.{alias.name}" if deeper.exists() else below), node.lineno


def report(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_every_room_has_a_floor() -> None:
    report(
        [
            f"{room} stands on no floor"
            for room in {room_of(p) for p in files()} - {"__init__", "__main__"} - FLOOR_OF.keys()
        ]
    )


def test_imports_go_to_a_lower_floor() -> None:
    faults = []
    for path in files():
        room = room_of(path)
        floor = FLOOR_OF.get(room, FACE)
        for module, line in imports(path):
            other = module.split(".")[0]
            same_room = other == room or (floor == 0 and FLOOR_OF.get(other) == 0)  # the ground is one room
            if other not in ("__version__",) and not same_room and FLOOR_OF[other] >= floor:
                faults.append(
                    f"{name_of(path)}:{line} on floor {floor + 1} imports {module} on {FLOOR_OF[other] + 1}"
                )
    report(faults)


def test_no_file_imports_itself_round_a_circle() -> None:
    known = {name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in files()}
    below = {name: {m for m, _ in imports(path) if m in known} - {name} for name, path in known.items()}
    while leaves := {name for name, needs in below.items() if not needs & below.keys()}:
        below = {name: needs for name, needs in below.items() if name not in leaves}
    assert not below, f"in a circle, or above one: {sorted(below)}"


def test_no_import_is_for_types_only() -> None:
    report([name_of(p) for p in files() if "TYPE_CHECKING" in p.read_text(encoding="utf-8")])


def test_files_and_functions_stay_small() -> None:
    faults = []
    for path in files():
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 450:
            faults.append(f"{name_of(path)} has {lines} lines; 450 are allowed")
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 70:
                    faults.append(
                        f"{name_of(path)}:{node.lineno} {node.name} has {length} lines; 70 are allowed"
                    )
    report(faults)


def test_each_file_says_what_it_is() -> None:
    silent = [p for p in files() if p.name != "__init__.py" or p.read_text(encoding="utf-8").strip()]
    report([name_of(p) for p in silent if not ast.get_docstring(tree(p))])


def test_public_functions_have_docstrings_and_types() -> None:
    faults = []
    for path in files():
        for node in _public(tree(path)):
            place = f"{name_of(path)}:{node.lineno} {node.name}"
            if not ast.get_docstring(node):
                faults.append(f"{place} has no docstring")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is None:
                faults.append(f"{place} has no return type")
    report(faults)


def test_a_family_is_named_in_its_rooms_only() -> None:
    faults = []
    for path in files():
        if name_of(path).startswith(SPEAK_OF_FAMILIES):
            continue
        prose = {id(node.value) for node in nodes(path) if isinstance(node, ast.Expr)}  # docstrings and help
        faults += [
            f"{name_of(path)}:{getattr(node, 'lineno', 0)} {word!r}"
            for node in nodes(path)
            for word in _words(node)
            if FAMILY_WORDS.search(word) and id(node) not in prose and word != TITLE
        ]
    report(faults)


def test_names_say_what_things_are() -> None:
    faults = [f"{name_of(p)} is a drawer" for p in files() if p.stem in DRAWERS or p.parent.name in DRAWERS]
    for path in files():
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and HOLLOW_NAME.search(node.name):
                faults.append(f"{name_of(path)}:{node.lineno} class {node.name}")
            if isinstance(node, ast.arguments):  # not *args and **kwargs: libraries want them
                taken = [a.arg for a in (*node.posonlyargs, *node.args, *node.kwonlyargs)]
                named = [a for a in taken if a.startswith("n_") or a in ("cfg", "args", "kwargs")]
                faults += [f"{name_of(path)} parameter {a}" for a in named]
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                faults.append(f"{name_of(path)}:{node.lineno} a bare except")
            if isinstance(node, ast.Pass):
                faults.append(f"{name_of(path)}:{node.lineno} a pass")
    report(faults)


def test_nothing_is_unpickled() -> None:
    faults = []
    for path in files():
        for node in nodes(path):
            place = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            match node:
                case ast.Import(names=names) if {n.name for n in names} & {"dill", "cloudpickle"}:
                    faults.append(f"{place} {ast.unparse(node)}")
                case ast.ImportFrom(module="pickle" | "dill" | "cloudpickle"):
                    faults.append(f"{place} {ast.unparse(node)}")
                case ast.Attribute(value=ast.Name(id="pickle"), attr=used) if used != "UnpicklingError":
                    faults.append(f"{place} pickle.{used}")
                case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=given):
                    safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in given)
                    faults += [] if safe else [f"{place} torch.load without weights_only=True"]
    report(faults)


def test_the_core_stays_small_and_the_judge_stays_outside() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(project["dependencies"]) <= 15
    report(
        [
            name_of(p)
            for p in files()
            for n in nodes(p)
            if isinstance(n, ast.Import | ast.ImportFrom) and "transformers" in ast.unparse(n)
        ]
    )


@pytest.mark.parametrize(
    "statement",
    ["import oneroof", "import oneroof.config", "from oneroof.cli.main import main; main(['--help'])"],
)
def test_torch_is_not_imported_before_it_is_needed(statement: str) -> None:
    program = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT / "src")


def test_help_is_there_in_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "oneroof", "--help"], check=True, capture_output=True, cwd=ROOT / "src"
        )
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.5


def test_ruff_finds_nothing() -> None:
    for words in (["check", "--output-format", "concise"], ["format", "--check"]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "."], capture_output=True, text=True, cwd=ROOT
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def _public(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            yield node
            inner = node.body if isinstance(node, ast.ClassDef) else []
            yield from (
                n
                for n in inner
                if isinstance(n, ast.FunctionDef) and n.name[0] != "_" and not _told_elsewhere(n)
            )


def _told_elsewhere(method: ast.FunctionDef) -> bool:
    """`forward` is told by its class; an override by what it overrides."""
    return method.name == "forward" or any("override" in ast.unparse(d) for d in method.decorator_list)


def _words(node: ast.AST) -> Iterator[str]:
    """What a node says in code: identifiers, imported names and string constants."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for field in ("id", "attr", "arg", "name", "module"):
        if isinstance(word := getattr(node, field, None), str):
            yield word
