"""The chain and its gradient against plain autograd through the steps written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ld3m

KINDS = ("vq", "kl", "unconditional", "class vector", "dit")
EXACT = 1e-9


def gradients(output, wanted, cotangent, **options):
    wanted = [x for x in wanted if x is not None and x.requires_grad]
    return torch.autograd.grad(output, wanted, cotangent, **options)


def wave(i, steps):
    """A schedule of the user's own, neither monotone nor within [0, 1]."""
    return 1.2 * (-1) ** i * i / steps


@settings(max_examples=50)
@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 6),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.0, -1.5]) | st.integers(-20, 60).map(lambda g: g / 10),
    injection=st.sampled_from(["x0", "mean", "none"]),
    schedule=st.sampled_from(["linear", "cosine", "quadratic", "exponential", wave]),
    retain=st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    micro_batch=st.none() | st.integers(1, 5),
    num_images=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_value_and_gradients_are_those_of_plain_autograd(
    priors, plain_chain, inputs, relative_error, kind, steps, guidance_scale, injection, schedule, retain, micro_batch,
    num_images, seed,
):  # fmt: skip
    prior = priors(kind)
    size = (8, 8) if kind == "class vector" else (4, 4)  # three levels deep
    latents, conditioning, noise, cotangent = inputs(prior, num_images, seed, size)
    options = dict(steps=steps, guidance_scale=guidance_scale, injection=injection, schedule=schedule, noise=noise)
    got = ld3m.reverse_chain(prior, latents, conditioning, retain=retain, micro_batch=micro_batch, **options)
    want = plain_chain(prior, latents, conditioning, **options)
    assert relative_error(got, want.detach()) <= EXACT

    wanted = (latents, conditioning)
    for grad, exact in zip(gradients(got, wanted, cotangent), gradients(want, wanted, cotangent), strict=True):
        assert relative_error(grad, exact) <= EXACT


@pytest.mark.parametrize(("steps", "tolerance"), [(17, EXACT), (30, 1e-6)])
def test_long_chains(priors, plain_chain, inputs, relative_error, steps, tolerance):
    """This prior of random weights amplifies rounding, by what depends on the processor: 3e-9 was seen at T = 30."""
    prior = priors("unconditional")
    latents, _, noise, cotangent = inputs(prior, 1)
    got = ld3m.reverse_chain(prior, latents, steps=steps, noise=noise, retain=0.3)
    want = plain_chain(prior, latents, None, steps=steps, noise=noise)
    assert relative_error(got, want.detach()) <= tolerance
    [got], [want] = (gradients(z, (latents,), cotangent) for z in (got, want))
    assert relative_error(got, want) <= tolerance


@pytest.mark.parametrize(("kind", "injection"), [("vq", "mean"), ("vq", "none"), ("dit", "x0")])
def test_gradcheck_in_latents_and_conditioning(priors, inputs, kind, injection):
    """Not of a quantiser's injection, whose steps finite differences would see."""
    prior = priors(kind)
    latents, conditioning, noise, _ = inputs(prior, 1, size=(2, 2))

    def chain(latents, conditioning):
        return ld3m.reverse_chain(
            prior, latents, conditioning, steps=3, guidance_scale=2.0, injection=injection, noise=noise, retain=0.5
        )

    assert torch.autograd.gradcheck(chain, (latents, conditioning), atol=1e-6)


def test_gradcheck_with_the_latents_injected(priors, inputs):
    """Finite differences see through a KL prior's identity; through a quantiser they would see steps."""
    latents, conditioning, noise, _ = inputs(priors("kl"), 1, size=(2, 2))
    conditioning = conditioning.detach()

    def chain(latents):
        return ld3m.reverse_chain(priors("kl"), latents, conditioning, steps=2, guidance_scale=2.0, noise=noise)

    assert torch.autograd.gradcheck(chain, (latents,), atol=1e-5)


@pytest.mark.parametrize("injection", ["x0", "mean", "none"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("retain", [0.0, 0.4, 1.0])
def test_gradient_of_one_input_alone(priors, plain_chain, inputs, relative_error, injection, guidance_scale, retain):
    prior = priors("vq")
    for alone in ("latents", "conditioning"):
        latents, conditioning, noise, cotangent = inputs(prior, 2)
        (conditioning if alone == "latents" else latents).requires_grad_(False)
        options = dict(steps=3, guidance_scale=guidance_scale, injection=injection, noise=noise)
        z0 = ld3m.reverse_chain(prior, latents, conditioning, retain=retain, **options)
        z0.backward(cotangent)
        wanted, other = (latents, conditioning) if alone == "latents" else (conditioning, latents)
        [want] = gradients(plain_chain(prior, latents, conditioning, **options), (wanted,), cotangent)
        assert relative_error(wanted.grad, want) <= EXACT
        assert other.grad is None


def test_guidance_is_ignored_by_an_unconditional_prior(priors, inputs):
    latents, _, noise, _ = inputs(priors("unconditional"), 2)
    results = [
        ld3m.reverse_chain(priors("unconditional"), latents, steps=3, guidance_scale=scale, noise=noise)
        for scale in (0.0, 1.0, 7.5)
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 3), (1, 3), (0.0, 6), (3.0, 6), (-1.0, 6)])
def test_evaluations_and_the_order_of_their_rows(priors, inputs, monkeypatch, guidance_scale, rows):
    """Guidance exactly 1 evaluates the conditional branch alone, every other value null first, then conditional."""
    prior = priors("vq")
    latents, conditioning, noise, _ = inputs(prior, 3)
    seen = []
    predict_noise = prior.predict_noise
    monkeypatch.setattr(
        prior, "predict_noise", lambda z, t, c=None: (seen.append((t, len(z), c.clone())), predict_noise(z, t, c))[1]
    )
    with torch.no_grad():
        ld3m.reverse_chain(prior, latents, conditioning, steps=4, guidance_scale=guidance_scale, noise=noise)
    assert [(t, n) for t, n, _ in seen] == [(t, rows) for t in (751, 501, 251, 1)]
    for _, _, c in seen:
        assert torch.equal(c[-3:], conditioning)
        assert rows == 3 or torch.equal(c[:3], prior.null_conditioning(3))


def test_one_step_is_plain_ddim_whatever_is_injected(priors, inputs):
    prior = priors("vq")
    latents, conditioning, noise, _ = inputs(prior, 2)
    results = [
        ld3m.reverse_chain(prior, latents, conditioning, steps=1, injection=injection, noise=noise)
        for injection in ("x0", "mean", "none")
    ]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[2])


def test_same_noise_gives_the_same_latents_bit_for_bit(priors, inputs):
    prior = priors("vq")
    latents, conditioning, noise, _ = inputs(prior, 3)

    def chain(**options):
        return ld3m.reverse_chain(prior, latents, conditioning, steps=4, noise=noise, **options)

    torch.manual_seed(0)
    first = chain()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(chain(), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(chain(micro_batch=3), first) and torch.equal(chain(retain=1.0), first)
    with torch.no_grad():
        assert torch.equal(chain(), first)
    noise = noise + 0.1
    assert (chain() - first).abs().max() > 1e-3


@settings(max_examples=10)
@given(st.integers(1, 7), st.floats(0, 1))
def test_the_cut_into_micro_batches_changes_rounding_alone(priors, inputs, relative_error, micro_batch, retain):
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 5)
    whole, cut = (
        ld3m.reverse_chain(prior, latents, conditioning, steps=3, noise=noise, **options)
        for options in ({}, {"micro_batch": micro_batch, "retain": retain})
    )
    assert relative_error(cut, whole.detach()) <= 1e-12
    wanted = (latents, conditioning)
    pairs = zip(gradients(cut, wanted, cotangent), gradients(whole, wanted, cotangent), strict=True)
    assert all(relative_error(got, want) <= 1e-11 for got, want in pairs)


def test_images_do_not_mix(priors, inputs, relative_error):
    """Each image has the latents and gradients it would have alone, in whatever order it comes."""
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 3)
    order = torch.tensor([2, 0, 1])
    z0 = ld3m.reverse_chain(prior, latents, conditioning, steps=3, noise=noise)
    moved = ld3m.reverse_chain(prior, latents[order], conditioning[order], steps=3, noise=noise[order])
    assert relative_error(moved, z0[order].detach()) <= 1e-12
    wanted = (latents, conditioning)
    for got, want in zip(gradients(moved, wanted, cotangent[order]), gradients(z0, wanted, cotangent), strict=True):
        assert relative_error(got, want) <= 1e-11


def test_views_and_oblong_latents(priors, plain_chain, inputs, relative_error):
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 2, size=(6, 4))
    turned = [x.detach().transpose(2, 3).contiguous().transpose(2, 3) for x in (latents, noise)]
    turned[0].requires_grad_()
    got = ld3m.reverse_chain(prior, turned[0], conditioning, steps=3, noise=turned[1], micro_batch=1)
    want = plain_chain(prior, latents, conditioning, steps=3, noise=noise)
    assert relative_error(got, want.detach()) <= EXACT
    [got], [want] = (gradients(z, (x,), cotangent) for z, x in ((got, turned[0]), (want, latents)))
    assert relative_error(got, want) <= EXACT


def test_float32_latents_and_a_wider_prior(priors, inputs, relative_error):
    """States and gradients have the dtype of the latents; the network runs in its own."""
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 2)
    narrow = [x.detach().float() for x in (latents, conditioning, noise, cotangent)]
    for x in narrow[:2]:
        x.requires_grad_()
    got = ld3m.reverse_chain(prior, narrow[0], narrow[1], steps=3, noise=narrow[2])
    want = ld3m.reverse_chain(prior, latents, conditioning, steps=3, noise=noise)
    assert got.dtype == torch.float32
    assert relative_error(got, want.detach()) < 1e-4
    got.backward(narrow[3])
    want.backward(cotangent)
    for x, wide in zip(narrow[:2], (latents, conditioning), strict=True):
        assert x.grad.dtype == torch.float32
        assert relative_error(x.grad, wide.grad) < 1e-3
