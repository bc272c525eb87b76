"""Cases and batch sizes as they are written on a command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from oneroof.bench.grid import Case, read_batches, read_cases, read_range
from oneroof.errors import UserError

TWO = (Case(128, 32), Case(512, 64))


@pytest.mark.parametrize("words", ["[[128,32],[512,64]]", "[128, 32], [512, 64]", " [[128,32], [512,64] ] "])
def test_cases_are_read_with_and_without_the_outer_brackets(words: str) -> None:
    assert read_cases(words) == TWO


@pytest.mark.parametrize("words", ["[[128,32]]", "[128,32]", "128,32"])
def test_one_pair_may_stand_alone(words: str) -> None:
    assert read_cases(words) == TWO[:1]


@pytest.mark.parametrize(
    "words",
    [
        *("", "[]", "[[]]", "128", "[[128]]", "[[128,32,1]]", "[[128,0]]", "[[128,-1]]", "[[128,1.5]]"),
        *("[[true,1]]", "[[128,32],5]", "many", '{"a":1}', "[[128,32]"),
    ],
)
def test_what_is_no_pair_is_refused_in_one_line(words: str) -> None:
    with pytest.raises(UserError, match=r"--cases .* was given; pairs .* are allowed; try \[\[128,32\]"):
        read_cases(words)


@pytest.mark.parametrize(
    ("words", "sizes"), [("8", [8]), ("1,4", [1, 4]), ("[1,4]", [1, 4]), ("4, 1, 4", [4, 1])]
)
def test_batch_sizes_are_for_all_cases(words: str, sizes: list[int]) -> None:
    assert read_batches(words, TWO) == tuple((size, TWO) for size in sizes)


def test_each_case_may_have_batch_sizes_of_its_own() -> None:
    assert read_batches("[[1,4],[8,4]]", TWO) == ((1, TWO[:1]), (4, TWO), (8, TWO[1:]))


@pytest.mark.parametrize("words", ["", "0", "-4", "1.5", "one", "[[1],8]", "[[1],[]]", "null"])
def test_what_is_no_batch_size_is_refused_in_one_line(words: str) -> None:
    with pytest.raises(UserError, match=r"--batch-sizes .* was given; whole numbers .* try 1,4,8$"):
        read_batches(words, TWO)


def test_lists_of_batch_sizes_are_as_many_as_cases() -> None:
    with pytest.raises(UserError, match="has 3 lists for 2 cases; one each is allowed"):
        read_batches("[[1],[2],[3]]", TWO)


def test_a_range_has_its_smaller_end_first() -> None:
    assert read_range("1,64") == read_range("[1, 64]") == (1, 64)
    assert read_range("5,5") == (5, 5)


@pytest.mark.parametrize("words", ["64,1", "0,4", "4", "1,2,3", "a,b", ""])
def test_what_is_no_range_is_refused_in_one_line(words: str) -> None:
    with pytest.raises(UserError, match=r"--batch-range .* was given; two whole numbers.* try 1,64"):
        read_range(words)


@pytest.mark.parametrize("read", [read_cases, lambda words: read_batches(words, TWO), read_range])
def test_a_long_nest_of_brackets_is_no_failure_of_ours(read: Callable[[str], object]) -> None:
    with pytest.raises(UserError):
        read("[" * 100_000 + "]" * 100_000)
