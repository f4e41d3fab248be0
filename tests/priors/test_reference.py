"""The priors against what the official code computes with the same checkpoints.

Inner activations of the official U-Net are not looked at: its output and vector-Jacobian products stand for them.
"""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

MODELS = ("cin", "ffhq", "kl")
VQ = ("cin", "ffhq")
PRECISIONS = {"f64": (torch.float64, 1e-10), "f32": (torch.float32, 2e-5)}


class Case:
    """One reference model in one precision."""

    def __init__(self, reference, reference_prior: Callable, relative_error: Callable, name: str, precision: str):
        self.dtype, self.tolerance = PRECISIONS[precision]
        self.prior, self.precision, self.measure = reference_prior(name, self.dtype), precision, relative_error
        self.tensors = load_file(reference / f"{name}_tiny.safetensors")

    def given(self, key: str) -> Tensor | None:
        value = self.tensors.get(f"in/{key}")
        return value if value is None or not value.is_floating_point() else value.to(self.dtype)

    def agrees(self, key: str, got: Tensor) -> bool:
        """Assert that `got` is what is stored under `key`; False when nothing is stored there."""
        want = self.tensors.get(f"{self.precision}/{key}")
        if want is not None:
            assert got.dtype == self.dtype
            assert self.measure(got, want) <= self.tolerance, key
        return want is not None

    def codes(self, latents: Tensor) -> Tensor:
        """Return the codebook index of every position, in the order (b, h, w)."""
        codebook = self.prior.first_stage.quantize.embedding.weight
        return torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), codebook).argmin(1)


@pytest.fixture
def load(reference, reference_prior, relative_error):
    return lambda name, precision: Case(reference, reference_prior, relative_error, name, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_noise_prediction_and_its_vjps_are_the_official_ones(load, name, precision):
    case = load(name, precision)
    latents, conditioning = case.given("unet_z").requires_grad_(), case.given("c")
    if name == "ffhq":
        conditioning = None
    else:
        conditioning.requires_grad_()
    rows = [
        case.prior.predict_noise(
            latents[k : k + 1], int(timestep), None if conditioning is None else conditioning[k : k + 1]
        )
        for k, timestep in enumerate(case.given("unet_t"))
    ]
    predicted = torch.cat(rows)
    assert case.agrees("unet/eps", predicted)
    predicted.backward(case.given("unet_cot"))
    assert case.agrees("unet/vjp_z", latents.grad)
    if conditioning is not None:
        assert case.agrees("unet/vjp_c", conditioning.grad)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_encoding_is_the_official_one(load, name, precision):
    case = load(name, precision)
    compared = 0
    pm1 = (2 * case.tensors["in/images01"] - 1).to(case.dtype)  # rounded to float32 first, as the official images were
    for kind, images in (("pm1", pm1), ("norm", case.given("images_norm"))):
        if images is None:
            continue
        latents = case.prior.encode(images)
        if kind == "norm":
            case.agrees("prep/f_latents_Z", latents)
        if name == "kl":
            compared += case.agrees(f"enc/{kind}/Z", latents) + case.agrees(f"enc/{kind}/mean", latents / 0.18215)
        else:
            compared += case.agrees(f"enc/{kind}/prequant", latents)
            case.agrees(f"enc/{kind}/quant", case.prior.quantize(latents))
            assert torch.equal(case.codes(case.prior.quantize(latents)), case.tensors[f"enc/{kind}/quant_idx"])
    assert compared


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", VQ)
def test_quantising_is_the_official_one(load, name, precision):
    case = load(name, precision)
    quantised = case.prior.quantize(case.given("Z"))
    assert case.agrees("qZ", quantised)
    assert torch.equal(case.codes(quantised), case.tensors["qZ_idx"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_decoding_and_its_vjp_are_the_official_ones(load, name, precision):
    case = load(name, precision)
    group = "dec/kl" if name == "kl" else "dec/quant"
    latents = case.given("dec_z").requires_grad_()
    images = case.prior.decode(latents)
    case.agrees(f"{group}/image", images)  # in float32 only its gradient is stored with the package
    images.backward(case.given("cot_raw"))
    assert case.agrees(f"{group}/vjp_z", latents.grad)
    if name != "kl":
        assert torch.equal(case.codes(case.prior.quantize(latents)), case.tensors["dec/quant/idx"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ("cin", "kl"))
def test_class_embeddings_are_the_official_ones(load, name, precision):
    case = load(name, precision)
    assert case.agrees("class_embeddings", case.prior.embed(torch.arange(11)))
    case.agrees("prep/latents_c", case.prior.embed(torch.tensor([3, 7])))
    assert torch.equal(case.prior.null_conditioning(2), case.prior.embed(torch.tensor([10, 10])))


def test_schedule_is_the_checkpoints_own_float32_buffer(load):
    case = load("cin", "f64")
    assert torch.equal(case.prior.alphas_cumprod, case.tensors["ddim/alphas_cumprod_f32"].double())


@pytest.mark.parametrize(
    ("name", "channels", "num_classes", "conditioning_shape"),
    [("cin", 3, 10, (1, 32)), ("ffhq", 3, None, None), ("kl", 4, 10, (1, 32))],
)
def test_facts_of_the_models(reference_prior, name, channels, num_classes, conditioning_shape):
    prior = reference_prior(name)
    assert (prior.latent_channels, prior.num_classes, prior.conditioning_shape) == (
        channels,
        num_classes,
        conditioning_shape,
    )
    assert (prior.downsample, prior.native_resolution, prior.name) == (4, 32, f"{name}_tiny")
