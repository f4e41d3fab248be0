"""How near gradients with bfloat16 weights come to those in float32."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import ld3m
from ld3m.priors import ExecutionConfig


def cosine(got: Tensor, want: Tensor) -> float:
    assert got.dtype == want.dtype == torch.float32
    return float(F.cosine_similarity(got.detach().double().flatten(), want.detach().double().flatten(), 0))


@pytest.mark.parametrize("name", ["cin", "ffhq", "kl"])
@pytest.mark.parametrize(
    "execution", [ExecutionConfig(), ExecutionConfig(fused_norm=True, channels_last=True, attention="bmm")]
)
def test_single_calls(reference, own_prior, name, execution):
    tensors = load_file(reference / f"{name}_tiny.safetensors")
    exact, rounded = own_prior(name, torch.float32), own_prior(name, torch.bfloat16).set_execution(execution)
    for k, timestep in enumerate(tensors["in/unet_t"]):
        products = []
        for prior in (rounded, exact):
            inputs = [tensors["in/unet_z"][k : k + 1].float().requires_grad_()]
            if prior.conditioning_shape is not None:
                inputs.append(tensors["in/c"][k : k + 1].float().requires_grad_())
            out = prior.predict_noise(inputs[0], int(timestep), *inputs[1:])
            products.append(torch.autograd.grad(out, inputs, tensors["in/unet_cot"][k : k + 1].float()))
        assert cosine(products[0][0], products[1][0]) >= 0.999
        if len(products[0]) > 1:
            # 64 positions of small random networks nearly cancel in it: 0.9988 to 0.9998, with diffusers' modules too.
            assert cosine(products[0][1], products[1][1]) >= 0.998


def test_the_whole_chain_on_the_embedded_prior():
    draw = torch.Generator().manual_seed(0)
    latents, noise, cotangent = torch.randn(3, 3, 3, 8, 8, generator=draw)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        prior = ld3m.load_prior("builtin", dtype=dtype).set_execution(ExecutionConfig())
        inputs = latents.clone().requires_grad_(), prior.embed(torch.tensor([0, 3, 8])).float().requires_grad_()
        z0 = ld3m.reverse_chain(prior, *inputs, steps=10, noise=noise, retain=1.0)
        results.append((z0, *torch.autograd.grad(z0, inputs, cotangent)))
    z0, in_latents, in_conditioning = map(cosine, *results)
    assert z0 >= 0.999 and in_latents >= 0.999 and in_conditioning >= 0.999
