"""Checks of single values."""

import math

import pytest

from ld3m.config import check_count, check_epochs, check_finite, check_fraction, check_positive, is_count, one_of
from ld3m.errors import ConfigError


@pytest.mark.parametrize(("value", "least", "expected"), [(1, 1, True), (0, 1, False), (0, 0, True), (5, 6, False)])
def test_a_count_is_a_whole_number_from_its_least_on(value, least, expected):
    assert is_count(value, least) is expected


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_nothing_else_is_a_count(value):
    assert not is_count(value)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (check_count, True, "x is a whole number, at least 1; got True"),
        (check_epochs, 1, r"x is a whole number, at least 2 \(one warms up, one cools down\); got 1"),
        (check_positive, math.inf, "x is a number above 0, got inf"),
        (check_positive, 0, "x is a number above 0, got 0"),
        (check_finite, math.nan, "x is a finite number, got nan"),
        (check_fraction, 1.01, "x is a fraction from 0 to 1, got 1.01"),
        (check_fraction, math.nan, "x is a fraction from 0 to 1, got nan"),
    ],
)
def test_messages_name_the_setting_what_is_meant_and_what_came(check, value, message):
    with pytest.raises(ConfigError, match=message):
        check(value, "x")


@pytest.mark.parametrize(
    ("check", "value"),
    [(check_count, 1), (check_epochs, 2), (check_positive, 1e-9), (check_finite, -3), (check_fraction, 0)],
)
def test_limits_are_accepted(check, value):
    assert check(value, "x") is None


def test_the_nearest_name_is_suggested():
    with pytest.raises(ConfigError, match="x is one of pear, plum; got 'pearl'; did you mean 'pear'"):
        one_of("pearl", "x", {"pear": 1, "plum": 2})
