"""The networks against parameter lists, logits, embeddings and input gradients of the official code."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ld3m import networks

SIZES = ("ConvNet_d3_32", "ConvNet_d5_128", "AlexNet_128", "VGG11_128", "ResNet18_128", "ViT_128")
CIFAR = ("AlexNetCIFAR_32", "VGG11CIFAR_32", "ResNet18CIFAR_32", "ViTCIFAR_32")
NARROW = (
    *(f"ConvNet_w16_d3_32_{norm}" for norm in ("instancenorm", "batchnorm", "layernorm", "groupnorm", "none")),
    "ConvNet_w8_d5_128",
    "ConvNet_w4_d6_256",
)
LARGE = ("ConvNet_d6_256", "AlexNet_256", "VGG11_256", "ResNet18_256", "ViT_256")
RUN = [*SIZES, *CIFAR, *NARROW, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@pytest.fixture(scope="module")
def facts(reference):
    return json.loads((reference / "networks.json").read_text())


@pytest.fixture(scope="module")
def tensors(reference):
    return load_file(reference / "networks_tiny.safetensors")


def options(name: str, fact: dict) -> dict:
    """Arguments of `networks.build` for an entry of networks.json."""
    chosen = {"name": fact["model"], "num_classes": fact["num_classes"], "resolution": fact["input"][1]}
    if name.startswith("ConvNet_w"):
        width, depth = name.split("_")[1:3]
        chosen |= {"width": int(width[1:]), "depth": int(depth[1:])}
    return chosen | ({"norm": fact["norm"]} if "norm" in fact else {})


def uniform(first: int, count: int) -> np.ndarray:
    """The recipe's v(k) for k = first ... first + count - 1: murmur3's finaliser, mapped to (-1, 1)."""
    h = np.arange(first, first + count, dtype=np.uint32)
    h ^= h >> 16
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> 13
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> 16
    return (h + 0.5) / 2**31 - 1


def fill(network: nn.Module, gain: float) -> None:
    """Give the network the recipe's weights."""
    first = 0
    for name, parameter in network.named_parameters():
        v, fan_in = uniform(first, parameter.numel()), parameter[0].numel()
        first += parameter.numel()
        if name in ("pos_embedding", "cls_token"):
            v = 0.5 * v
        elif parameter.ndim > 1:
            v = gain * v * np.sqrt(3 / fan_in)
        else:
            v = 0.1 * v + name.endswith("weight")
        parameter.data.copy_(torch.from_numpy(v.astype(np.float32)).view_as(parameter))
    network.requires_grad_(False)


def inputs(fact: dict, batch: int) -> torch.Tensor:
    shape = (batch, *fact["input"])
    v = np.sqrt(3) * uniform(2**31, int(np.prod(shape)))
    return torch.from_numpy(v.astype(np.float32)).view(shape)


def final_input(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and what entered the last linear layer."""
    caught = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    logits = network(images)
    hook.remove()
    return logits, caught[0]


def stats(x: torch.Tensor) -> torch.Tensor:
    x = x.flatten(1)
    return torch.stack([x.sum(1), x.square().sum(1), x.abs().amax(1)], 1)


def sampled(x: torch.Tensor, want: torch.Tensor, stride: int) -> torch.Tensor:
    return x.flatten(1)[:, ::stride][:, : want[0].numel()].reshape(want.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", RUN)
def test_outputs(name, dtype, facts, tensors, relative_error):
    fact, kind = facts[name], {torch.float64: "f64", torch.float32: "f32"}[dtype]
    network = networks.build(**options(name, fact), generator=torch.Generator()).to(dtype).eval()
    fill(network, fact.get("recipe_gain", 1.0))
    want = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    images = inputs(fact, len(want[f"logits.{kind}"])).to(dtype).requires_grad_("grad_x.f64" in want and kind == "f64")

    logits, final_in = final_input(network, images)
    got = {f"logits.{kind}": logits}
    if f"final_in.{kind}" in want:
        got[f"final_in.{kind}"] = sampled(final_in, want[f"final_in.{kind}"], fact["final_in_stride"])
    if f"embed.{kind}" in want:
        got[f"embed.{kind}"] = sampled(
            network.embed(images.detach()), want[f"embed.{kind}"], fact.get("embed_stride", 1)
        )
    if kind == "f64":
        if "final_in.stats" in want:
            got["final_in.stats"] = stats(final_in)
        if "embed.stats" in want:
            got["embed.stats"] = stats(network.embed(images.detach()))
        if images.requires_grad:
            labels = torch.arange(len(images))
            (grad_x,) = torch.autograd.grad(F.cross_entropy(logits, labels), images)
            got["grad_x.f64"] = sampled(grad_x, want["grad_x.f64"], fact.get("grad_stride", 1))
            if "grad_x.stats" in want:
                got["grad_x.stats"] = stats(grad_x)
        if "logits_train_mode.f64" in want:
            got["logits_train_mode.f64"] = network.train()(images)
    assert {key for key in want if key.endswith(kind)} <= got.keys()
    for key, value in got.items():
        assert relative_error(value, want[key]) < (1e-10 if kind == "f64" else 1e-5), key


def test_recipe_copy(facts, tensors):
    """The stored weights and input are what the recipe of the other networks gives."""
    name = "ConvNet_w16_d3_32_instancenorm"
    network = networks.build(**options(name, facts[name]))
    fill(network, 1.0)
    for key, parameter in network.named_parameters():
        assert torch.equal(parameter, tensors[f"{name}.w.{key}"]), key
    assert torch.equal(inputs(facts[name], 4), tensors[f"{name}.x"])


@pytest.mark.parametrize("name", [*SIZES, *CIFAR, *NARROW, *LARGE])
def test_parameters_and_buffers(name, facts):
    fact = facts[name]
    network = networks.blueprint(**options(name, fact))
    assert [[key, list(p.shape)] for key, p in network.named_parameters()] == fact["params"]
    assert sum(p.numel() for p in network.parameters()) == fact["param_count"]
    assert [[key, list(b.shape)] for key, b in network.named_buffers()] == fact.get("buffers", [])


def test_every_stored_network_is_tested(facts):
    assert {name for name in facts if not name.startswith("_")} == {*SIZES, *CIFAR, *NARROW, *LARGE}
