"""Timesteps, injection weights and the table of a chain."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.chain import INJECTIONS, SCHEDULES, chain_table, timesteps
from ld3m.errors import ConfigError, InputError

ALPHAS = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2, dim=0)
DIVISORS = [T for T in range(1, 1001) if 1000 % T == 0]
STEPS = st.integers(1, 1000)
SCALARS = st.tuples(*[st.floats(-3, 3)] * 3)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_named_sets_are_those_of_the_contract():
    assert set(SCHEDULES) == {"linear", "cosine", "quadratic", "exponential"}
    assert set(INJECTIONS) == {"x0", "mean", "none"}


def test_every_number_of_steps_is_run_exactly():
    for T in range(1, 1001):
        taus = timesteps(T)
        assert len(taus) == T and taus[0] == 1 and taus[-1] <= 999
        assert all(low < high for low, high in pairwise(taus)) or T == 1000


def test_steps_that_divide_1000_are_the_official_ones():
    for T in DIVISORS:
        official = [t + 1 for t in range(0, 1000, 1000 // T)]
        assert list(timesteps(T)) == [min(t, 999) for t in official]  # the official 1000 indexes out of range


def test_a_thousand_steps_visit_999_twice():
    assert timesteps(1000) == (*range(1, 1000), 999)


@pytest.mark.parametrize(
    ("steps", "want"), [(1, (1,)), (2, (1, 501)), (3, (1, 334, 667)), (7, (1, 143, 286, 429, 572, 715, 858))]
)
def test_timesteps_by_hand(steps, want):
    assert timesteps(steps) == want


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, "10", None, True])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(InputError, match=f"steps.*1 to 1000.*{steps!r}"):
        timesteps(steps)
    with pytest.raises(InputError, match="steps"):
        chain_table(ALPHAS, steps)


def weights(steps, schedule):
    """Read the weights off a table of the mean injection, where they stand as they are."""
    return tensor(chain_table(ALPHAS, steps, "mean", schedule).injected)


@given(STEPS, st.sampled_from(sorted(SCHEDULES)))
def test_named_weights_rise_from_0_to_1(steps, schedule):
    w = weights(steps, schedule)
    assert len(w) == steps and w[0] == 0
    assert (w.diff() > 0).all() and w.max() <= 1 + 1e-15
    assert steps == 1 or abs(w[-1] - 1) < 1e-14


@given(STEPS, st.sampled_from(sorted(SCHEDULES)))
def test_named_weights_are_their_formulas(weight, steps, schedule):
    want = tensor([weight(schedule, i, steps) for i in range(steps)])
    torch.testing.assert_close(weights(steps, schedule), want, rtol=1e-13, atol=1e-15)


@given(STEPS)
def test_a_callable_is_asked_for_every_step_but_the_last(steps):
    asked = []

    def schedule(i, T):
        asked.append((i, T))
        return 0.25 + i / 4000

    w = weights(steps, schedule)
    assert sorted(asked) == [(i, steps) for i in range(1, steps)]
    torch.testing.assert_close(w, tensor([0.0, *(0.25 + i / 4000 for i in range(1, steps))]), rtol=0, atol=1e-15)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_callable_must_give_numbers(value):
    with pytest.raises(InputError, match="schedule"):
        chain_table(ALPHAS, 3, "x0", lambda i, T: value)


def test_unknown_names_list_the_valid_ones():
    with pytest.raises((InputError, ConfigError), match=r"schedule.*linear.*cosine.*quadratic.*exponential.*'sine'"):
        chain_table(ALPHAS, 3, "x0", "sine")
    with pytest.raises((InputError, ConfigError), match=r"injection.*x0.*mean.*none.*'eps'"):
        chain_table(ALPHAS, 3, "eps")


@given(STEPS, st.sampled_from(INJECTIONS), st.sampled_from(sorted(SCHEDULES)), st.integers(0, 999), SCALARS)
def test_table_is_the_step_written_out(weight, steps, injection, schedule, i, scalars):
    """z ← a z + b ε̂ + d inj against the definition of one step, at drawn scalars."""
    table = chain_table(ALPHAS, steps, injection, schedule)
    taus = timesteps(steps)
    assert table.timesteps == taus
    i %= steps
    z, predicted, injected = tensor(scalars)
    alpha, previous = ALPHAS[taus[i]], ALPHAS[taus[i - 1] if i else 0]
    w = 0.0 if injection == "none" else weight(schedule, i, steps)

    clean = (z - (1 - alpha).sqrt() * predicted) / alpha.sqrt()
    if injection == "x0":
        clean = (1 - w) * clean + w * injected
    want = previous.sqrt() * clean + (1 - previous).sqrt() * predicted
    if injection == "mean":
        want = (1 - w) * want + w * injected
    got = table.latent[i] * z + table.noise[i] * predicted + table.injected[i] * injected
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@given(STEPS)
def test_start_has_unit_variance_at_the_noisiest_step(steps):
    signal, sigma = chain_table(ALPHAS, steps).start
    assert signal == pytest.approx(ALPHAS[timesteps(steps)[-1]].sqrt().item(), rel=1e-15)
    assert signal**2 + sigma**2 == pytest.approx(1, rel=1e-14)


def test_what_is_kept_of_the_latents_by_hand():
    """√ᾱ at the first executed step, as the official tables have it."""
    kept = {T: round(chain_table(ALPHAS, T).start[0], 3) for T in (2, 5, 10, 50)}
    assert kept == {2: 0.338, 5: 0.064, 10: 0.029, 50: 0.014}


def test_last_step_leaves_a_little_noise():
    table = chain_table(ALPHAS, 10)
    assert table.injected[0] == 0
    assert table.latent[0] == pytest.approx((ALPHAS[0] / ALPHAS[1]).sqrt().item(), rel=1e-14)
    assert ALPHAS[0].item() == pytest.approx(0.9985, abs=1e-6)


def test_float32_schedules_are_tabulated_in_float64():
    rounded = ALPHAS.float()
    assert chain_table(rounded, 10) == chain_table(rounded.double(), 10)
    assert chain_table(rounded, 10) != chain_table(ALPHAS, 10)
