"""Two pages have one digest exactly where all that decides their content is the same."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneroof.engine.prefix import Chain, salt

SALT = salt(adapter=None, namespace="", kv="float", alpha=1.0)
TOKENS = st.lists(st.integers(0, 2), max_size=12)


def digests(tokens: Sequence[int], pages: int, *, size: int = 2, beginning: bytes = SALT) -> list[bytes]:
    return list(Chain(beginning, size).digests(array("q", tokens), pages))


@given(TOKENS, TOKENS, st.integers(1, 4))
def test_pages_are_the_same_exactly_where_the_texts_before_their_ends_are(
    one: list[int], two: list[int], size: int
) -> None:
    pages = min(len(one), len(two)) // size
    ones, twos = digests(one, pages, size=size), digests(two, pages, size=size)
    for page in range(pages):
        end = (page + 1) * size
        assert (ones[page] == twos[page]) == (one[:end] == two[:end])


@given(TOKENS, st.lists(st.integers(0, 6), max_size=6))
def test_a_chain_that_grows_is_the_chain_of_the_whole(tokens: list[int], asked: list[int]) -> None:
    chain, known = Chain(SALT, 2), array("q")
    for pages in [*asked, len(tokens) // 2]:
        known = array("q", tokens[: max(len(known), 2 * pages)])
        pages = min(pages, len(known) // 2)
        assert list(chain.digests(known, pages)) == digests(tokens, pages)


def test_no_two_pages_of_a_text_are_the_same() -> None:
    assert len(set(digests([7] * 20, 10))) == 10


def test_only_full_pages_have_a_digest_and_what_follows_does_not_matter() -> None:
    assert digests([1, 2, 3], 1) == digests([1, 2, 9, 9, 9], 1)
    assert digests([1, 2, 3], 0) == []


def test_tokens_are_told_apart_in_all_their_bits() -> None:
    ids = [0, 1, 255, 256, 2**16, 2**31, 2**32, 2**32 + 1]
    assert len({digests([i, 0], 1)[0] for i in ids}) == len(ids)
    assert digests([1, 2], 1, size=2) != digests([1], 1, size=1)


def test_all_that_decides_keys_and_values_is_in_the_salt() -> None:
    facts: dict[str, object] = {"adapter": None, "namespace": "", "kv": "float", "alpha": 1.0}
    others: dict[str, tuple[object, ...]] = {
        "adapter": ("", "None", "a"),
        "namespace": ("a", "b", "'", "', '", "None", "\x00", "ä", "a\u0308", "\udc80"),
        "kv": ("int8", "float "),
        "alpha": (2.0, 1.0000001),
    }
    salts = [salt(**facts)]  # type: ignore[arg-type]
    salts += [salt(**{**facts, name: v}) for name, values in others.items() for v in values]  # type: ignore[arg-type]
    assert len(set(salts)) == len(salts)
    assert all(
        digests([1, 2], 1, beginning=a) != digests([1, 2], 1, beginning=b) for a, b in combinations(salts, 2)
    )


@given(*[st.text("a',()\\ ", max_size=6)] * 4)
def test_no_namespace_can_be_spelt_to_look_like_another_adapter(
    adapter: str, namespace: str, another: str, different: str
) -> None:
    one = salt(adapter=adapter, namespace=namespace, kv="float", alpha=1.0)
    two = salt(adapter=another, namespace=different, kv="float", alpha=1.0)
    assert (one == two) == ((adapter, namespace) == (another, different))


@pytest.mark.parametrize("alpha", [1, 1.0])
def test_a_stretch_of_one_is_one_whatever_its_type(alpha: float) -> None:
    assert salt(adapter=None, namespace="", kv="float", alpha=alpha) == SALT


@given(TOKENS, TOKENS, TOKENS)
def test_a_fork_of_a_chain_goes_on_by_itself(begun: list[int], one: list[int], two: list[int]) -> None:
    first = Chain(SALT, 2)
    first.digests(array("q", begun), len(begun) // 2)
    second = first.fork()
    for chain, more in ((first, one), (second, two)):
        tokens = begun + more
        assert list(chain.digests(array("q", tokens), len(tokens) // 2)) == digests(tokens, len(tokens) // 2)


def test_a_digest_is_told_where_it_was_asked_for_before() -> None:
    chain = Chain(SALT, 2)
    assert chain.digest(0) is None
    known = chain.digests(array("q", [1, 2, 3, 4, 5, 6]), 2)
    assert [chain.digest(page) for page in range(3)] == [*known, None]
