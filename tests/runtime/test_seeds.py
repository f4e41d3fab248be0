"""Randomness by purpose."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.runtime import seeds

PURPOSE = st.lists(st.integers(0, 10**6) | st.text("abc ", min_size=1, max_size=8), max_size=3).map(tuple)


def test_seeds_never_change():
    """Runs are resumed, and results compared, across versions."""
    assert seeds.derive(0, "noise", 3) == 8286182185518649704
    assert seeds.derive(0) == 4246866556266386882


@given(st.integers(0, 2**40), PURPOSE, PURPOSE)
def test_another_purpose_has_another_seed(seed, first, second):
    values = seeds.derive(seed, *first), seeds.derive(seed, *second)
    assert all(0 <= value < 2**63 for value in values)
    assert (values[0] == values[1]) == (list(map(str, first)) == list(map(str, second)))
    assert seeds.derive(seed + 1, *first) != values[0]


def test_a_purpose_draws_the_same_numbers_whatever_was_drawn_before():
    first = torch.rand(5, generator=seeds.generator(1, "a", 2))
    torch.rand(7)
    torch.rand(3, generator=seeds.generator(1, "a", 1))
    assert torch.equal(first, torch.rand(5, generator=seeds.generator(1, "a", 2)))
    assert not torch.equal(first, torch.rand(5, generator=seeds.generator(2, "a", 2)))


def test_the_global_generator_is_seeded_inside_and_untouched_outside():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeds.scoped_global_rng(0, "dropout", 1):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeds.scoped_global_rng(0, "dropout", 1):
        assert torch.equal(torch.rand(4), inside)
    with seeds.scoped_global_rng(0, "dropout", 2):
        assert not torch.equal(torch.rand(4), inside)


def test_the_global_generator_comes_back_after_an_error():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeds.scoped_global_rng(0):
        torch.rand(4)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), state)
