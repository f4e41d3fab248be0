"""What a chain keeps between its forward and backward pass, counted in evaluations and in bytes."""

import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ld3m


class Evaluations:
    """Counts the images that go through a prior's denoiser, by timestep; guidance rows count once."""

    def __init__(self, prior, monkeypatch, guided: bool) -> None:
        self.images, self.largest = Counter(), 0
        predict_noise = prior.predict_noise

        def counting(latents, timestep, conditioning=None):
            rows = len(latents) // (2 if guided else 1)
            self.images[timestep] += rows
            self.largest = max(self.largest, rows)
            return predict_noise(latents, timestep, conditioning)

        monkeypatch.setattr(prior, "predict_noise", counting)

    def take(self) -> Counter:
        taken, self.images = self.images, Counter()
        return taken


@settings(max_examples=25)
@given(
    steps=st.integers(1, 5),
    num_images=st.integers(1, 4),
    retain=st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1),
    micro_batch=st.none() | st.integers(1, 5),
    guided=st.booleans(),
)
def test_exactly_the_evaluations_met_first_are_kept(priors, inputs, steps, num_images, retain, micro_batch, guided):
    """round(retain · T · N) evaluations, those of the last steps, are not recomputed on the way back."""
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, num_images)
    with pytest.MonkeyPatch.context() as patch:
        evaluations = Evaluations(prior, patch, guided)
        z0 = ld3m.reverse_chain(
            prior, latents, conditioning, steps=steps, noise=noise, guidance_scale=2.0 if guided else 1.0,
            retain=retain, micro_batch=micro_batch,
        )  # fmt: skip
        taus = ld3m.chain.timesteps(steps)
        assert evaluations.take() == dict.fromkeys(taus, num_images)
        z0.backward(cotangent)
        kept = round(retain * steps * num_images)
        again = {tau: num_images - min(max(kept - i * num_images, 0), num_images) for i, tau in enumerate(taus)}
        assert evaluations.take() == Counter(again)
        assert evaluations.largest <= (micro_batch or num_images)


def test_a_second_backward_pass_gives_the_same_gradient(priors, inputs, relative_error):
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 3)
    for retain in (0.0, 0.5, 1.0):
        z0 = ld3m.reverse_chain(prior, latents, conditioning, steps=3, noise=noise, retain=retain)
        first = torch.autograd.grad(z0, (latents, conditioning), cotangent, retain_graph=True)
        second = torch.autograd.grad(z0, (latents, conditioning), cotangent, retain_graph=True)
        third = torch.autograd.grad(z0, (latents, conditioning), 2 * cotangent)
        for one, two, doubled in zip(first, second, third, strict=True):
            assert relative_error(two, one) <= 1e-12 and relative_error(doubled, 2 * one) <= 1e-12
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(z0, (latents, conditioning), cotangent)


def test_gradients_of_gradients_are_refused(priors, inputs):
    prior = priors("vq")
    latents, conditioning, noise, _ = inputs(prior, 1)
    z0 = ld3m.reverse_chain(prior, latents, conditioning, steps=2, noise=noise)
    [grad] = torch.autograd.grad(z0.square().sum(), latents, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        grad.sum().backward()


@pytest.mark.parametrize("retain", [0.0, 1.0])
def test_noise_gets_no_gradient(priors, inputs, retain):
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 2)
    noise.requires_grad_()
    ld3m.reverse_chain(prior, latents, conditioning, steps=2, noise=noise, retain=retain).backward(cotangent)
    assert noise.grad is None and latents.grad.any()
    frozen = [latents.detach(), conditioning.detach()]
    assert not ld3m.reverse_chain(prior, *frozen, steps=2, noise=noise).requires_grad


def test_weights_get_no_gradient(priors, inputs):
    prior = priors("vq")
    latents, conditioning, noise, cotangent = inputs(prior, 1)
    ld3m.reverse_chain(prior, latents, conditioning, steps=2, noise=noise, retain=0.5).backward(cotangent)
    assert all(p.grad is None and not p.requires_grad for module in prior.modules() for p in module.parameters())


def test_inputs_are_left_as_they_are(priors, inputs):
    prior = priors("vq")
    given = inputs(prior, 2)
    before = [x.detach().clone() for x in given]
    latents, conditioning, noise, cotangent = given
    ld3m.reverse_chain(prior, latents, conditioning, steps=3, noise=noise, retain=0.5).backward(cotangent)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


class Ledger(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd holds for backward passes, weights left out: now and at most."""

    def __init__(self, prior) -> None:
        super().__init__(self._pack, lambda box: box.tensor)
        self.weights = {p.untyped_storage().data_ptr() for m in prior.modules() for p in m.parameters()}
        self.now = self.peak = self.count = 0

    def __enter__(self):
        super().__enter__()
        return self

    def _pack(self, tensor):
        box = _Box(tensor)
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.count += 1
            self._add(tensor.nbytes)
            weakref.finalize(box, self._add, -tensor.nbytes)
        return box

    def _add(self, num_bytes: int) -> None:
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


class _Box:
    def __init__(self, tensor) -> None:
        self.tensor = tensor


def run(prior, tensors, **options):
    """Forward and backward under a ledger; return it, and what was held between the two passes."""
    latents, conditioning, noise, cotangent = tensors
    with Ledger(prior) as ledger:
        z0 = ld3m.reverse_chain(prior, latents, conditioning, noise=noise, **options)
        held = ledger.now
        z0.backward(cotangent)
    del z0
    assert ledger.now == 0, "without a collection of cycles, something is held after the backward pass"
    return ledger, held


@pytest.mark.parametrize("kind", ["vq", "unconditional"])
def test_peak_is_flat_in_the_number_of_steps_with_nothing_kept(priors, inputs, kind):
    tensors = inputs(priors(kind), 2, size=(8, 8))
    peaks = {steps: run(priors(kind), tensors, steps=steps)[0].peak for steps in (10, 40)}
    assert peaks[40] <= 1.05 * peaks[10]


def test_with_nothing_kept_only_the_states_are_held_between_the_passes(priors, inputs):
    prior = priors("vq")
    tensors = inputs(prior, 2)
    _, held = run(prior, tensors, steps=5)
    assert held == 5 * tensors[0].nbytes + tensors[1].nbytes


def test_what_is_held_grows_with_retain_and_the_cut_bounds_the_peak(priors, inputs):
    prior = priors("vq")
    tensors = inputs(prior, 4)
    none, half, all_ = (run(prior, tensors, steps=6, retain=retain)[1] for retain in (0.0, 0.5, 1.0))
    one_step = (all_ - none) / 6
    assert one_step > 20 * none  # the ledger sees the activations
    assert half - none == pytest.approx(3 * one_step, rel=0.01)

    whole, cut = (run(prior, tensors, steps=6, micro_batch=size)[0].peak for size in (None, 1))
    assert cut < 0.35 * whole


def test_kept_activations_go_as_the_backward_pass_goes(priors, inputs):
    """With everything kept, the backward pass adds nothing to the peak of the forward pass."""
    prior = priors("vq")
    ledger, held = run(prior, inputs(prior, 2), steps=6, retain=1.0)
    assert ledger.peak == held


@pytest.mark.parametrize("retain", [0.0, 1.0])
def test_without_gradients_nothing_is_kept_and_the_latents_are_the_same(priors, inputs, retain):
    prior = priors("vq")
    latents, conditioning, noise, _ = inputs(prior, 2)
    differentiable = ld3m.reverse_chain(prior, latents, conditioning, steps=4, noise=noise, retain=retain)
    with torch.no_grad(), Ledger(prior) as ledger:
        z0 = ld3m.reverse_chain(prior, latents, conditioning, steps=4, noise=noise, retain=retain)
    assert ledger.count == 0 and not z0.requires_grad
    assert torch.equal(z0, differentiable)
    with Ledger(prior) as ledger:
        z0 = ld3m.reverse_chain(prior, latents.detach(), conditioning.detach(), steps=4, noise=noise, retain=retain)
    assert ledger.count == 0 and not z0.requires_grad
    assert torch.equal(z0, differentiable)
