"""Whether a network predicts noise: told by numbers, warned of when a prior is loaded."""

from types import SimpleNamespace

import pytest
import torch

import ld3m
from ld3m.priors.architecture import scaled_linear_alphas_cumprod
from ld3m.priors.noise_check import doubts


@pytest.fixture
def prior():
    return ld3m.load_prior("builtin")


def _predicting(prior, change):
    """Let the denoiser predict something else: (noisy, timestep, noise it predicts) -> prediction."""
    network = prior.denoiser.forward

    def forward(sample, timestep, conditioning):
        return SimpleNamespace(sample=change(sample, timestep, network(sample, timestep, conditioning).sample))

    prior.denoiser.forward = forward
    return prior


def _velocity(prior):
    def change(noisy, timestep, noise):
        signal, sigma = prior.alphas_cumprod[timestep].sqrt(), (1 - prior.alphas_cumprod[timestep]).sqrt()
        return (noise - sigma * noisy) / signal  # αε − σx₀ by x = αx₀ + σε

    return change


def test_the_embedded_prior_predicts_noise(prior):
    assert doubts(prior) == []


def test_other_predictions_are_named(prior):
    (said,) = doubts(_predicting(prior, _velocity(prior)))
    assert "what it predicts is a velocity" in said


def test_the_halves_of_a_head_that_are_swapped_are_named(prior):
    (said,) = doubts(_predicting(prior, lambda _, __, noise: torch.cat([torch.zeros_like(noise), noise], 1)))
    assert "noise in the half of its head meant for variances" in said


@pytest.mark.parametrize("change", [lambda _, __, e: -e, lambda _, __, e: torch.randn_like(e), lambda x, _, __: 3 * x])
def test_predictions_of_nothing_are_worse_than_zero(prior, change):
    (said,) = doubts(_predicting(prior, change))
    assert "times that of predicting zero" in said


def test_a_prediction_that_is_no_number_is_said(prior):
    assert doubts(_predicting(prior, lambda _, __, e: e * torch.nan)) == ["its predictions are not finite"]


def test_another_schedule_is_said(prior):
    prior.alphas_cumprod = scaled_linear_alphas_cumprod(0.00085, 0.012)
    (said,) = doubts(prior)
    assert "it predicts the noise of another schedule" in said


@pytest.mark.parametrize("factor", [4, 0.02, 30])
def test_another_scale_factor_is_said(prior, factor):
    prior.scale_factor *= factor
    assert "a wrong scale factor" in doubts(prior)[0]


def test_loading_files_warns_and_named_priors_are_not_asked(tmp_path, caplog):
    from ld3m.priors.folder import save_prior

    save_prior(ld3m.load_prior("random:tiny"), tmp_path, dtype=torch.float32, betas=(0.0015, 0.0195))
    assert not caplog.records
    ld3m.load_prior(tmp_path)
    assert "may be no prior of this kind: its error on the noise is" in caplog.text
