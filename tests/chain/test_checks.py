"""What `reverse_chain` refuses, and that it says what it expected, what came, and which argument it was."""

import pytest
import torch

import ld3m
from ld3m.errors import ConfigError, InputError


@pytest.fixture
def call(priors):
    """Call the chain of a small prior with one argument changed."""

    def chain(kind="vq", **changes):
        prior = priors(kind)
        latents = torch.zeros(2, prior.latent_channels, 4, 4, dtype=torch.float64)
        conditioning = None if prior.num_classes is None else prior.embed(torch.tensor([0, 1]))
        arguments = dict(latents=latents, conditioning=conditioning, steps=2, noise=latents) | changes
        return ld3m.reverse_chain(prior, **arguments)

    return chain


def test_the_unchanged_call_is_accepted(call):
    assert call().shape == (2, 3, 4, 4)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 4), (2, 3, 16), (0, 3, 4, 4), (2, 4, 4, 3)])
def test_latents(call, shape):
    latents = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(InputError, match=rf"latents.*\(N, 3, h, w\).*{', '.join(map(str, shape))}"):
        call(latents=latents, noise=latents)


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.float64), r"\(1, 3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 5, dtype=torch.float64), r"\(2, 3, 4, 5\)"),
        (torch.zeros(2, 3, 4, 4), "float32"),
    ],
)
def test_noise(call, noise, said):
    with pytest.raises(InputError, match=rf"noise.*latents.*{said}"):
        call(noise=noise)


@pytest.mark.parametrize("shape", [(2, 8), (1, 1, 8), (3, 1, 8), (2, 2, 8), (2, 1, 9)])
def test_conditioning(call, shape):
    said = ", ".join(map(str, shape))
    with pytest.raises(InputError, match=rf"conditioning.*\(2, 1, 8\).*\({said}\)"):
        call(conditioning=torch.zeros(shape, dtype=torch.float64))


def test_conditioning_must_go_with_the_kind_of_prior(call):
    with pytest.raises(InputError, match=r"class-conditional.*conditioning.*embed"):
        call(conditioning=None)
    with pytest.raises(InputError, match=r"ffhq_tiny.*no conditioning.*\(2, 1, 8\)"):
        call("unconditional", conditioning=torch.zeros(2, 1, 8))


@pytest.mark.parametrize("steps", [0, -3, 1001, 1.5, "5"])
def test_steps(call, steps):
    with pytest.raises(InputError, match=rf"steps.*1 to 1000.*{steps}"):
        call(steps=steps)


@pytest.mark.parametrize("retain", [-0.01, 1.01, float("nan"), float("inf")])
def test_retain(call, retain):
    with pytest.raises(InputError, match=rf"retain.*0 to 1.*{retain}"):
        call(retain=retain)


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_micro_batch(call, micro_batch):
    with pytest.raises(InputError, match=rf"micro_batch.*at least 1.*{micro_batch}"):
        call(micro_batch=micro_batch)


@pytest.mark.parametrize("guidance_scale", [float("nan"), float("inf")])
def test_guidance_scale(call, guidance_scale):
    with pytest.raises(InputError, match=rf"guidance_scale.*{guidance_scale}"):
        call(guidance_scale=guidance_scale)


def test_injection_and_schedule(call):
    with pytest.raises((InputError, ConfigError), match=r"injection.*x0.*mean.*none.*'skip'"):
        call(injection="skip")
    with pytest.raises((InputError, ConfigError), match=r"schedule.*linear.*'step'"):
        call(schedule="step")
