"""The gradient primitive against double backward."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from ld3m.matching.gradient import directional, gradient, replayed, rng_state, weights_of, with_gradients

STRUCTURES = (
    *(f"ConvNet/{norm}" for norm in ("instancenorm", "batchnorm", "layernorm", "groupnorm", "none")),
    "AlexNet-w0.05",
    "VGG11-w0.05",
    "ResNet18-w0.05",
    "ViT-w0.125",
)


def by_double_backward(network, weights, direction, images, labels):
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    images = images.clone().requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    loss = F.cross_entropy(functional_call(network, {**leaves, **buffers}, (images,)), labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    slope = sum((g * direction[name]).sum() for name, g in zip(leaves, gradients, strict=True))
    d_images, *d_weights = torch.autograd.grad(slope, [images, *leaves.values()])
    return [g.detach() for g in gradients], slope, d_images, dict(zip(leaves, d_weights, strict=True))


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_against_double_backward(name, train, small_network, seeded, relative_error):
    network = small_network(name).train(train)
    weights, labels = weights_of(network), torch.tensor([4, 0, 2])
    images = seeded(3, 3, 32, 32)
    direction = {key: seeded(*weight.shape) for key, weight in weights.items()}

    torch.manual_seed(1)
    gradients, slope, d_images, d_weights = by_double_backward(network, weights, direction, images, labels)
    torch.manual_seed(1)
    state = rng_state(network, images)
    got = gradient(network, weights, images, labels)
    with replayed(state):
        got_slope, got_images, got_weights = directional(network, weights, direction, images, labels, in_weights=True)

    largest = max(float(g.abs().max()) for g in gradients)
    for key, g in zip(weights, gradients, strict=True):
        assert float((got[key] - g).abs().max()) < 1e-12 * largest, key
    assert relative_error(got_slope, slope) < 1e-11
    assert relative_error(got_images, d_images) < 1e-11
    largest = max(float(g.abs().max()) for g in d_weights.values())
    for key, g in d_weights.items():
        assert float((got_weights[key] - g).abs().max()) < 1e-11 * largest, key


def test_direction_of_some_weights_alone(small_network, seeded, relative_error):
    network = small_network("ConvNet")
    weights, labels, images = weights_of(network), torch.tensor([4, 0]), seeded(2, 3, 32, 32)
    some = {key: seeded(*weight.shape) for key, weight in weights.items() if weight.ndim == 4}
    whole = {key: some.get(key, torch.zeros_like(weight)) for key, weight in weights.items()}
    _, slope, d_images, _ = by_double_backward(network, weights, whole, images, labels)
    got_slope, got_images, got_weights = directional(network, weights, some, images, labels)
    assert relative_error(got_slope, slope) < 1e-12
    assert relative_error(got_images, d_images) < 1e-12
    assert got_weights is None
    assert gradient(network, weights, images, labels, some).keys() == some.keys()


def test_buffers_and_weights_stay_as_they_are(small_network, seeded):
    network = small_network("ConvNet/batchnorm")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    weights, images, labels = weights_of(network), seeded(2, 3, 32, 32), torch.tensor([0, 1])
    slopes = gradient(network, weights, images, labels)
    directional(network, weights, slopes, images, labels, in_weights=True)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_rng_state_only_for_active_dropout(small_network):
    images = torch.zeros(1, 3, 32, 32)
    assert rng_state(small_network("ConvNet"), images) is None
    assert rng_state(small_network("ViT-w0.125").eval(), images) is None
    assert rng_state(small_network("ViT-w0.125"), images) is not None


def test_replayed_draws_the_same_again_and_leaves_the_generator(small_network):
    network, images = small_network("ViT-w0.125"), torch.zeros(1, 3, 32, 32)
    torch.manual_seed(2)
    state = rng_state(network, images)
    first = torch.rand(3)
    after = torch.get_rng_state()
    with replayed(state):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)


def test_with_gradients_scales_rows_by_the_cotangent():
    x, y = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    value = with_gradients(torch.tensor([5.0, 7.0]), [x, y], [torch.arange(6.0).view(2, 3), torch.tensor([1.0, -1.0])])
    assert value.tolist() == [5.0, 7.0]
    value.backward(torch.tensor([10.0, 100.0]))
    assert x.grad.tolist() == [[0.0, 10.0, 20.0], [300.0, 400.0, 500.0]]
    assert y.grad.tolist() == [10.0, -100.0]
