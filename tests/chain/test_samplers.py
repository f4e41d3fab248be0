"""Samplers against formulas written down again, in float64; pulls; what a step draws."""

import math

import pytest
import torch

import ld3m
from ld3m.chain import NoisyLatents, Pull, sample, sampling_states
from ld3m.chain.schedule import spaced_timesteps
from ld3m.errors import ConfigError, InputError
from ld3m.runtime import seeds

STEPS = 6


@pytest.fixture(scope="module")
def prior():
    return ld3m.load_prior("random:tiny", dtype=torch.float64)


@pytest.fixture(scope="module")
def dit():
    return ld3m.load_prior("random:dit-tiny", dtype=torch.float64)


def start_of(prior, count=2, steps=STEPS, **grid):
    shape = (count, prior.latent_channels, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return NoisyLatents(noise, steps - 1, steps, **grid), prior.embed(torch.arange(count))


def test_spacings():
    assert spaced_timesteps(4, "leading") == (0, 250, 500, 750)
    assert spaced_timesteps(4, "linspace") == (0, 333, 666, 999)
    assert spaced_timesteps(4, "trailing") == (249, 499, 749, 999)
    assert spaced_timesteps(50, "linspace") == tuple(round(i * 999 / 49) for i in range(50))  # DiT's
    assert spaced_timesteps(1, "linspace") == (0,) and spaced_timesteps(1, "trailing") == (999,)
    with pytest.raises(ConfigError, match="spacing is one of leading, linspace, trailing, got 'even'"):
        spaced_timesteps(4, "even")


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_ancestral_steps(prior, guidance, variance, spacing):
    """By the posterior of Ho et al. on the betas of the respaced ᾱ, one number after the other."""
    noisy, conditioning = start_of(prior, spacing=spacing)
    found = sample(
        prior, noisy, conditioning, sampler="ddpm", variance=variance, guidance_scale=guidance, noise_seed=11
    )
    taus = spaced_timesteps(STEPS, spacing)
    alpha_bars = [float(prior.alphas_cumprod[t]) for t in taus]
    z = noisy.latents
    for i in reversed(range(STEPS)):
        null = prior.predict_noise(z, taus[i], prior.null_conditioning(2))
        noise = null + guidance * (prior.predict_noise(z, taus[i], conditioning) - null)
        before = alpha_bars[i - 1] if i else 1.0
        beta = 1 - alpha_bars[i] / before
        alpha = 1 - beta
        clean = (z - math.sqrt(1 - alpha_bars[i]) * noise) / math.sqrt(alpha_bars[i])
        mean = math.sqrt(before) * beta / (1 - alpha_bars[i]) * clean
        mean = mean + math.sqrt(alpha) * (1 - before) / (1 - alpha_bars[i]) * z
        posterior = beta * (1 - before) / (1 - alpha_bars[i])
        draw = torch.randn(z.shape, generator=seeds.generator(11, "step", i)).double()
        z = mean + (math.sqrt(posterior if variance == "fixed-small" else beta) * draw if i else 0)
    torch.testing.assert_close(found, z, rtol=1e-5, atol=1e-6)  # ᾱ is float32


def test_learned_variances(dit):
    """Between the two fixed ones, in the logarithm, by the conditional half of the network's other channels."""
    noisy, conditioning = start_of(dit)
    taus, alpha_bars = spaced_timesteps(STEPS), dit.alphas_cumprod.double()
    states = list(
        sampling_states(dit, noisy, conditioning, sampler="ddpm", variance="learned", guidance_scale=4, noise_seed=5)
    )
    channels = dit.latent_channels
    z, i = noisy.latents, STEPS - 1
    both = dit.denoiser(z, torch.tensor([taus[i]] * 2), conditioning).sample
    null = dit.predict_noise(z, taus[i], dit.null_conditioning(2))
    noise = null + 4 * (both[:, :channels] - null)
    now, before = float(alpha_bars[taus[i]]), float(alpha_bars[taus[i - 1]])
    beta = 1 - now / before
    posterior = beta * (1 - before) / (1 - now)
    share = (both[:, channels:] + 1) / 2
    deviation = torch.exp(0.5 * (share * math.log(beta) + (1 - share) * math.log(posterior)))
    clean = (z - math.sqrt(1 - now) * noise) / math.sqrt(now)
    mean = math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * z
    draw = torch.randn(z.shape, generator=seeds.generator(5, "step", i)).double()
    torch.testing.assert_close(states[1], mean + deviation * draw, rtol=1e-5, atol=1e-5)
    assert deviation.std() > 0


def test_a_prior_without_learned_variances_says_so(prior):
    noisy, conditioning = start_of(prior)
    with pytest.raises(InputError, match="random:tiny has learned no variances; choose fixed-small or fixed-large"):
        sample(prior, noisy, conditioning, sampler="ddpm", variance="learned")


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_number_of_images_at_once_changes_nothing(prior, sampler):
    noisy, conditioning = start_of(prior, 3)
    whole, cut = (sample(prior, noisy, conditioning, sampler=sampler, micro_batch=size) for size in (None, 2))
    torch.testing.assert_close(whole, cut, rtol=1e-9, atol=1e-9)


def test_the_noise_follows_from_its_seed(prior):
    noisy, conditioning = start_of(prior)
    first, again, other = (sample(prior, noisy, conditioning, sampler="ddpm", noise_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)


@pytest.mark.parametrize("count", [1, 2])
def test_guided_channels(prior, count):
    """The others are predicted as without guidance."""
    noisy, conditioning = start_of(prior)
    guided, plain = (sampling_states(prior, noisy, conditioning, guidance_scale=scale) for scale in (3.0, 1.0))
    mixed = sampling_states(prior, noisy, conditioning, guidance_scale=3.0, guided_channels=count)
    _, (guided, plain, mixed) = (tuple(next(states) for states in (guided, plain, mixed)) for _ in range(2))
    assert torch.equal(mixed[:, :count], guided[:, :count])
    torch.testing.assert_close(mixed[:, count:], plain[:, count:])
    with pytest.raises(InputError, match="guided_channels is from 1 to the latents' 3 channels, got 4"):
        sample(prior, noisy, conditioning, guided_channels=4)


def pulled(prior, strength, window, **options):
    noisy, conditioning = start_of(prior)
    targets = torch.linspace(-1, 1, noisy.latents.numel(), dtype=torch.float64).view_as(noisy.latents)
    return targets, sample(prior, noisy, conditioning, pull=Pull(targets, strength, *window), **options)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_no_pull_is_plain_to_the_bit(prior, sampler):
    noisy, conditioning = start_of(prior)
    plain = sample(prior, noisy, conditioning, sampler=sampler)
    assert torch.equal(pulled(prior, 0.0, (5, 0), sampler=sampler)[1], plain)
    assert torch.equal(pulled(prior, 0.5, (9, 6), sampler=sampler)[1], plain)  # a window beyond the grid
    assert not torch.allclose(pulled(prior, 0.5, (5, 3), sampler=sampler)[1], plain)


def test_a_full_pull_ends_at_its_targets(prior):
    """But for the noise that the grid leaves at timestep 0."""
    targets, found = pulled(prior, 1.0, (STEPS - 1, 0))
    left = float(1 - prior.alphas_cumprod[0]) ** 0.5
    noisy, _ = start_of(prior)
    noise = (noisy.latents - prior.alphas_cumprod[noisy.timestep].sqrt() * targets) / (
        1 - prior.alphas_cumprod[noisy.timestep]
    ).sqrt()
    torch.testing.assert_close(found, float(prior.alphas_cumprod[0]) ** 0.5 * targets + left * noise)


def test_a_pull_moves_the_clean_estimate(prior):
    """One pulled DDIM step: x̂₀ moved by λ, the noise that is left read off the state anew."""
    noisy, conditioning = start_of(prior)
    targets = torch.full_like(noisy.latents, 0.5)
    states = sampling_states(prior, noisy, conditioning, guidance_scale=2.0, pull=Pull(targets, 0.3, 5, 5))
    _, after = next(states), next(states)
    z, t, following = noisy.latents, noisy.timestep, spaced_timesteps(STEPS)[-2]
    now, next_one = (float(prior.alphas_cumprod[k]) for k in (t, following))
    null = prior.predict_noise(z, t, prior.null_conditioning(2))
    noise = null + 2 * (prior.predict_noise(z, t, conditioning) - null)
    clean = (z - math.sqrt(1 - now) * noise) / math.sqrt(now)
    clean = clean + 0.3 * (targets - clean)
    noise = (z - math.sqrt(now) * clean) / math.sqrt(1 - now)
    torch.testing.assert_close(
        after, math.sqrt(next_one) * clean + math.sqrt(1 - next_one) * noise, rtol=1e-5, atol=1e-6
    )


def test_an_ancestral_pull_is_as_large_as_the_noise(prior):
    """z' moves by λ σ (m − x̂₀), x̂₀ of the conditional prediction alone."""
    noisy, conditioning = start_of(prior)
    targets = torch.full_like(noisy.latents, 0.5)
    options = {"sampler": "ddpm", "guidance_scale": 2.0}
    plain = list(sampling_states(prior, noisy, conditioning, **options))
    moved = list(sampling_states(prior, noisy, conditioning, pull=Pull(targets, 0.3, 5, 5), **options))
    z, t, following = noisy.latents, noisy.timestep, spaced_timesteps(STEPS)[-2]
    now, before = (float(prior.alphas_cumprod[k]) for k in (t, following))
    beta = 1 - now / before
    deviation = math.sqrt(beta * (1 - before) / (1 - now))
    clean = (z - math.sqrt(1 - now) * prior.predict_noise(z, t, conditioning)) / math.sqrt(now)
    torch.testing.assert_close(moved[1] - plain[1], 0.3 * deviation * (targets - clean), rtol=1e-5, atol=1e-6)


def test_what_steers_is_added_after_the_step(prior):
    noisy, conditioning = start_of(prior, 3)
    seen = []

    def steer(point, block, clean):
        seen.append((point, block.start, clean().shape))
        return torch.ones(1, dtype=torch.float64) if point == 1 else None

    plain = list(sampling_states(prior, noisy, conditioning, micro_batch=2))
    steered = list(sampling_states(prior, noisy, conditioning, micro_batch=2, steer=steer))
    assert torch.equal(steered[-1], plain[-1] + 1) and torch.equal(steered[-2], plain[-2])
    assert seen[:2] == [(5, 0, (2, 3, 8, 8)), (5, 2, (1, 3, 8, 8))] and len(seen) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "sampler is one of ddim, ddpm, got 'euler'"),
        ({"variance": "small"}, "variance is one of fixed-small, fixed-large, learned, got 'small'"),
        ({"compat": "d3hr", "sampler": "ddpm"}, "compat 'd3hr' is of DDIM, and the sampler is 'ddpm'"),
    ],
)
def test_unknown_words_are_refused(prior, options, message):
    noisy, conditioning = start_of(prior)
    with pytest.raises(ConfigError, match=message):
        sample(prior, noisy, conditioning, **options)


def test_a_pull_needs_a_target_for_each_image(prior):
    noisy, conditioning = start_of(prior)
    with pytest.raises(InputError, match=r"pull needs a target for each image, \(2, 3, 8, 8\), got \(1, 3, 8, 8\)"):
        sample(prior, noisy, conditioning, pull=Pull(torch.zeros(1, 3, 8, 8), 0.1, 5, 0))


def test_images_are_inverted_on_a_grid_from_zero(prior):
    latents, conditioning = torch.zeros(1, 3, 8, 8, dtype=torch.float64), prior.embed(torch.tensor([0]))
    with pytest.raises(InputError, match="spacing 'trailing' begins at timestep 166"):
        ld3m.invert(prior, latents, conditioning, steps=6, stop=3, spacing="trailing")
    assert ld3m.invert(prior, latents, conditioning, steps=6, stop=3, spacing="linspace").timestep == 599
