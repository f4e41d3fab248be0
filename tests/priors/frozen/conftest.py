"""A reference prior of one's own, to be run frozen, and what its networks and their gradients give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ld3m

MODELS = ("cin", "ffhq", "kl")


@pytest.fixture(scope="session")
def own_prior(reference) -> Callable:
    """Load `cin`, `ffhq` or `kl` anew."""

    def load(name: str, dtype: torch.dtype = torch.float64) -> "ld3m.priors.Prior":
        path = reference / f"{name}_tiny.ckpt"
        return ld3m.load_prior(path, config=path.with_suffix(".yaml"), dtype=dtype)

    return load


@pytest.fixture(scope="session")
def responses() -> Callable:
    """Noise prediction, decoded images, and the vector-Jacobian products of both, of one draw of inputs."""

    def compute(prior, *, size: tuple[int, int] = (8, 8), seed: int = 0) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64).to(prior.dtype)

        latents, noise_cotangent = randn(2, 3, prior.latent_channels, *size)
        latents.requires_grad_()
        inputs, conditioning = [latents], None
        if prior.conditioning_shape is not None:
            conditioning = randn(3, *prior.conditioning_shape).requires_grad_()
            inputs.append(conditioning)
        predictions = prior.predict_noise(latents, 301, conditioning)
        images = prior.decode(latents)
        grads = torch.autograd.grad(predictions, inputs, noise_cotangent)
        [image_grad] = torch.autograd.grad(images, latents, randn(*images.shape))
        names = ("noise", "images", "image vjp", "vjp", "vjp in conditioning")
        return dict(zip(names, (predictions, images, image_grad, *grads), strict=False))

    return compute
