"""The chain against what the official code computes: states, noise predictions, images and gradients.

The official code noises the latents with the checkpoint's float32 square roots of ᾱ. Given those, float64 agrees to
rounding; with the square roots of this package, taken in float64, as far as the chain amplifies the difference of 6e-8.
"""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

import ld3m
from ld3m.chain import chain_table

TAGS = [
    *(
        (name, f"T{T}/g{g}/{mode}")
        for name in ("cin", "kl")
        for T in (2, 5, 10)
        for g in (3, 1)
        for mode in ("inj", "plain")
    ),
    *((name, f"T1/g{g}/plain") for name in ("cin", "kl") for g in (3, 1)),
    *(("ffhq", f"T{T}/{mode}") for T in (2, 5, 10) for mode in ("inj", "plain")),
    ("ffhq", "T1/plain"),
]
# The official code normalises generated images with these, whatever the data set is.
MEAN, STD = (0.4377, 0.4438, 0.4728), (0.229, 0.224, 0.225)
DIVISORS = (1, 2, 5, 10, 20, 40, 50)


class Chain:
    """One run of `reverse_chain` on the reference inputs, compared key by key."""

    def __init__(self, prior, tensors, tag, precision, error):
        self.prior, self.tensors, self.tag, self.error = prior, tensors, tag, error
        self.precision, self.dtype = precision, prior.dtype
        self.steps = int(tag.split("/")[0][1:])
        self.guidance_scale = 1.0 if "/g1/" in tag else 3.0
        self.latents = self.given("Z").requires_grad_()
        self.conditioning = None if prior.num_classes is None else self.given("c").requires_grad_()

    def given(self, key):
        return self.tensors[f"in/{key}"].to(self.dtype)

    def run(self, noise, monkeypatch, **options):
        """Run the chain and keep what went into the denoiser and what came out, as the official code logs it."""
        self.branches = 1 if self.conditioning is None or self.guidance_scale == 1 else 2
        calls = {}  # timestep -> (states, predictions), both split into the guidance branches
        predict_noise = self.prior.predict_noise

        def recording(latents, timestep, conditioning=None):
            predicted = predict_noise(latents, timestep, conditioning)
            rows = (self.branches, -1)
            calls.setdefault(timestep, []).append([x.detach().unflatten(0, rows) for x in (latents, predicted)])
            return predicted

        injection = "x0" if self.tag.endswith("inj") else "none"
        with monkeypatch.context() as patch:
            patch.setattr(self.prior, "predict_noise", recording)
            self.z0 = ld3m.reverse_chain(
                self.prior, self.latents, self.conditioning, steps=self.steps, guidance_scale=self.guidance_scale,
                injection=injection, noise=noise, **options,
            )  # fmt: skip
        blocks = [zip(*step, strict=True) for step in calls.values()]  # images of a step may come in several calls
        states, predictions = zip(*([torch.cat(x, dim=1) for x in step] for step in blocks), strict=True)
        self.states, self.predictions = torch.stack(states)[:, 0], torch.stack(predictions)

    def agrees(self, key, got, tolerance):
        want = self.tensors.get(f"{self.precision}/{self.tag}/{key}")
        if want is not None:
            assert self.error(got, want) <= tolerance, f"{self.tag}/{key}"
        return want is not None

    def check_states(self, tolerance):
        compared = self.agrees("x_start", self.states[0], tolerance) + self.agrees("z0", self.z0, tolerance)
        self.agrees("z", torch.cat([self.states[1:], self.z0[None]]), tolerance)
        predicted = self.predictions[:, 0]
        if self.branches == 2:
            uncond, cond = self.predictions.unbind(1)
            self.agrees("e_uncond", uncond, tolerance)
            self.agrees("e_cond", cond, tolerance)
            predicted = uncond + self.guidance_scale * (cond - uncond)
        self.agrees("e_t", predicted, tolerance)
        return compared

    def check_codes(self):
        """Compare the codebook indices that the decoder chooses, exactly."""
        quantised = self.prior.quantize(self.z0).permute(0, 2, 3, 1).flatten(0, 2)
        codes = torch.cdist(quantised, self.prior.first_stage.quantize.embedding.weight).argmin(1)
        assert torch.equal(codes, self.tensors[f"{self.tag}/z0_idx"])

    def check_images(self, tolerance, gradient_tolerance):
        """Compare decoded images, and gradients with the cotangent on them, clamped and normalised or not."""
        raw = self.prior.decode(self.z0)
        image = ((raw + 1) / 2).clamp(0, 1)
        mean, std = (torch.tensor(values)[:, None, None].to(self.dtype) for values in (MEAN, STD))
        normalised = (image - mean) / std
        for key, value in (("raw", raw), ("img01", image), ("img_norm", normalised)):
            self.agrees(key, value, tolerance)
        compared = 0
        for kind, value, cotangent in (
            ("raw", raw, "cot_raw"),
            ("01", image, "cot_01"),
            ("norm", normalised, "cot_01"),
        ):
            keys = [f"grad_{kind}_Z", f"grad_{kind}_c"]
            if f"{self.precision}/{self.tag}/{keys[0]}" not in self.tensors:
                continue
            inputs = [x for x in (self.latents, self.conditioning) if x is not None]
            grads = torch.autograd.grad(value, inputs, self.given(cotangent), retain_graph=True)
            compared += sum(self.agrees(key, grad, gradient_tolerance) for key, grad in zip(keys, grads, strict=False))
        return compared


@pytest.fixture
def load(reference, reference_prior, relative_error):
    def make(name, tag, precision):
        prior = reference_prior(name, {"f64": torch.float64, "f32": torch.float32}[precision])
        return Chain(prior, load_file(reference / f"{name}_tiny.safetensors"), tag, precision, relative_error)

    return make


@pytest.fixture
def official_start(reference, monkeypatch):
    """Give a chain the official start: both square roots from a checkpoint's float32 buffers."""
    state = torch.load(reference / "cin_tiny.ckpt", weights_only=True)["state_dict"]
    roots = [state[f"sqrt_{key}"].double() for key in ("alphas_cumprod", "one_minus_alphas_cumprod")]

    def official_table(*arguments):
        table = chain_table(*arguments)
        return dataclasses.replace(table, start=tuple(root[table.timesteps[-1]].item() for root in roots))

    monkeypatch.setattr("ld3m.chain.reverse.chain_table", official_table)


@pytest.mark.parametrize(("name", "tag"), TAGS)
@pytest.mark.usefixtures("official_start")
def test_float64_chain_from_the_official_start(load, monkeypatch, name, tag):
    chain = load(name, tag, "f64")
    # The first gradient meets a half-kept chain, those after it one whose evaluations are recomputed.
    chain.run(chain.given("noise"), monkeypatch, retain=0.5)
    assert chain.check_states(1e-9) == 2
    assert chain.check_images(1e-9, 1e-9)
    if name != "kl":
        chain.check_codes()


@pytest.mark.parametrize(("name", "tag"), [(name, tag) for name, tag in TAGS if tag.endswith("inj")])
def test_float64_chain_from_our_start(load, monkeypatch, name, tag):
    chain = load(name, tag, "f64")
    chain.run(chain.given("noise"), monkeypatch, retain=1.0)
    assert chain.check_states(2e-6) == 2
    assert chain.check_images(2e-6, 2e-5)  # T = 10 is the worst: 3e-6 in a gradient to the conditioning


@pytest.mark.parametrize("name", ["cin", "ffhq", "kl"])
def test_float32_chains(load, monkeypatch, name):
    compared = 0
    for tag in (tag for model, tag in TAGS if model == name):
        chain = load(name, tag, "f32")
        tolerance, gradient_tolerance = (1e-3, 5e-3) if chain.steps == 10 else (1e-4, 2e-4)
        if f"f32/{tag}/z0" not in chain.tensors:
            continue  # the trimmed tensors hold two chains a model
        chain.run(chain.given("noise"), monkeypatch)
        assert chain.check_states(tolerance)
        assert chain.check_images(tolerance, gradient_tolerance)
        compared += 1
        if name != "kl":
            chain.check_codes()
    assert compared >= 2


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_timesteps_and_weights(load, name, tag):
    chain = load(name, tag, "f64")
    injection = "x0" if tag.endswith("inj") else "none"
    table = chain_table(chain.prior.alphas_cumprod, chain.steps, injection, "linear")
    assert list(reversed(table.timesteps)) == chain.tensors[f"{tag}/timesteps"].tolist()
    alphas = chain.prior.alphas_cumprod
    previous = alphas[[0, *table.timesteps[:-1]]]
    weights = torch.tensor(table.injected, dtype=torch.float64) / previous.sqrt()
    torch.testing.assert_close(weights.flip(0), chain.tensors[f"{tag}/weights"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("steps", DIVISORS)
def test_official_schedule_where_the_steps_divide_1000(reference, steps):
    """The table's scalars from the official ᾱ, ᾱ_prev and weights; timesteps are the official ones."""
    tensors = load_file(reference / "cin_tiny.safetensors")
    stored = {key: tensors[f"ddim/S{steps}/{key}"] for key in ("timesteps", "alphas", "alphas_prev")}
    alphas, previous = stored["alphas"].double(), stored["alphas_prev"].double()
    weights = tensors.get(f"ddim/S{steps}/weights", torch.zeros(1, dtype=torch.float64))
    table = chain_table(tensors["ddim/alphas_cumprod_f32"], steps)
    assert list(table.timesteps) == stored["timesteps"].tolist()

    latent = (1 - weights) * (previous / alphas).sqrt()
    noise = (1 - previous).sqrt() - latent * (1 - alphas).sqrt()
    for got, want in ((table.latent, latent), (table.noise, noise), (table.injected, weights * previous.sqrt())):
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want, rtol=1e-12, atol=1e-12)
    assert not tensors[f"ddim/S{steps}/sigmas"].any()
