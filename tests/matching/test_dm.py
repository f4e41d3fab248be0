"""Distribution matching against the official numbers and its own laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ld3m.errors import InputError
from ld3m.matching import dm_loss, dsa

DTYPES = {"f64": torch.float64, "f32": torch.float32}


@pytest.fixture(scope="module")
def case(load_case):
    return load_case("dm")


def loss_and_gradient(network, real, synthetic):
    synthetic = synthetic.clone().requires_grad_()
    loss = dm_loss(network, real, synthetic)
    loss.sum().backward()
    return loss.detach(), synthetic.grad


def classes(images: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return images.to(dtype).unflatten(0, (3, -1))


@pytest.mark.parametrize("kind", DTYPES)
def test_reference(kind, case, case_network, relative_error):
    dtype, tolerance = DTYPES[kind], {"f64": 1e-10, "f32": 1e-5}[kind]
    loss, grad = loss_and_gradient(case_network(case, dtype), case["real"].to(dtype), classes(case["syn"], dtype))
    assert relative_error(loss, case[f"loss_per_class.{kind}"]) < tolerance
    assert relative_error(loss.sum(), case[f"loss_sum.{kind}"]) < tolerance
    assert relative_error(loss.mean(), case[f"loss_logged_mean.{kind}"]) < tolerance
    want = classes(case[f"grad_syn.{kind}" if f"grad_syn.{kind}" in case else "grad_syn.f64"], dtype)
    assert relative_error(grad, want) < {"f64": 1e-10, "f32": 1e-4}[kind]


def test_reference_embeddings(case, case_network, relative_error):
    network = case_network(case)
    for key, images in (("embed_real.f64", case["real"]), ("embed_syn.f64", case["syn"].unflatten(0, (3, 2)))):
        if key in case:
            embedded = network.embed(images.double().flatten(0, 1)).view_as(case[key])
            assert relative_error(embedded, case[key]) < 1e-10


def test_reference_with_augmentation(case, case_network, relative_error):
    synthetic = case["syn"].double().requires_grad_()
    sides = []
    for images in (case["real"].double(), classes(synthetic)):
        parameters = zip(images, case["scale_aug.sx"][:, None], case["scale_aug.sy"][:, None], strict=True)
        sides.append(torch.stack([dsa.scale(*of_class) for of_class in parameters]))
    loss = dm_loss(case_network(case), *sides).sum()
    loss.backward()
    assert relative_error(loss, case["scale_aug.loss_sum.f64"]) < 1e-10
    assert relative_error(synthetic.grad, case["scale_aug.grad_syn.f64"]) < 1e-10


@pytest.mark.parametrize("name", ["AlexNet-w0.05", "VGG11-w0.05", "ResNet18-w0.05", "ViT-w0.125"])
def test_other_networks_by_what_enters_their_last_layer(name, small_network, seeded, relative_error):
    network = small_network(name).eval()
    real, synthetic = seeded(2, 3, 3, 32, 32), seeded(2, 2, 3, 32, 32)
    caught = []
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, args: caught.append(args[0].mean(0)))
    for images in (*real, *synthetic):
        network(images)
    want = torch.stack([(caught[0] - caught[2]).square().sum(), (caught[1] - caught[3]).square().sum()])
    assert relative_error(dm_loss(network, real, synthetic), want) < 1e-12


def test_gradcheck(small_network, seeded):
    network, real, synthetic = small_network("ConvNet"), seeded(1, 3, 3, 8, 8), seeded(1, 2, 3, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dm_loss(network, real, x), synthetic, eps=1e-7, atol=1e-5)


def test_batch_norm_sees_all_classes_of_the_call(small_network, seeded, relative_error):
    network = small_network("ConvNet/batchnorm")
    real, synthetic = seeded(3, 4, 3, 32, 32), seeded(3, 2, 3, 32, 32)
    means = [network.embed(side.flatten(0, 1)).unflatten(0, side.shape[:2]).mean(1) for side in (real, synthetic)]
    want = (means[1] - means[0]).square().sum(1)
    assert relative_error(dm_loss(network, real, synthetic), want) < 1e-12


@settings(max_examples=15)
@given(
    real=st.permutations(range(4)),
    synthetic=st.permutations(range(3)),
    rows=st.permutations(range(3)),
    copies=st.integers(1, 2),
)
def test_order_and_repetition_of_images_do_not_matter(small_network, real, synthetic, rows, copies):
    network, generator = small_network("ConvNet"), torch.Generator().manual_seed(1)
    sides = [torch.randn(3, n, 3, 8, 8, dtype=torch.float64, generator=generator) for n in (4, 3)]
    want = dm_loss(network, *sides)
    got = dm_loss(network, sides[0][rows][:, real].repeat(1, copies, 1, 1, 1), sides[1][rows][:, synthetic])
    torch.testing.assert_close(got, want[rows], rtol=1e-10, atol=1e-12)


def test_loss_of_the_same_images_is_zero(small_network, seeded):
    images = seeded(2, 4, 3, 32, 32)
    assert dm_loss(small_network("ConvNet"), images, images.clone()).tolist() == [0.0, 0.0]


def test_same_bits_twice(case, case_network):
    network = case_network(case, torch.float32)
    first, second = (loss_and_gradient(network, case["real"], classes(case["syn"], torch.float32)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_network_is_left_alone(small_network, seeded):
    network = small_network("ConvNet/batchnorm")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    real, synthetic = seeded(2, 4, 3, 32, 32).requires_grad_(), seeded(2, 2, 3, 32, 32)
    loss_and_gradient(network, real, synthetic)
    assert real.grad is None
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_errors(small_network):
    images = torch.zeros(2, 1, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(InputError, match=r"real as \(classes, images, 3, H, W\)"):
        dm_loss(small_network("ConvNet"), images[0], images)
    with pytest.raises(InputError, match="synthetic like the network's weights"):
        dm_loss(small_network("ConvNet"), images, images.float())
    small = images[..., :16, :16]
    assert dm_loss(small_network("ConvNet"), small, small).tolist() == [0, 0]  # only its classifier asks for 32 px
    with pytest.raises(
        InputError, match=r"dm_loss got images of 16x16 pixels, which the network does not take \(.+siz"
    ):
        dm_loss(small_network("ViT-w0.125"), small, small)
    headless = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)).double()
    with pytest.raises(InputError, match=r"a network with embed\(images\).*Sequential.*networks.build"):
        dm_loss(headless, images, images)


@pytest.mark.parametrize("chunk", [1, 4, 5, 14])
def test_real_images_in_chunks_give_the_same(chunk, small_network, seeded, relative_error):
    """Chunks may hold images of more than one class."""
    network, real, synthetic = small_network("ConvNet"), seeded(2, 7, 3, 32, 32), seeded(2, 2, 3, 32, 32)
    whole, cut = (dm_loss(network, real, synthetic, real_chunk=size) for size in (None, chunk))
    assert relative_error(cut, whole) < 1e-12


def test_networks_that_see_whole_batches_take_no_chunks(small_network, seeded):
    network, images = small_network("ConvNet/batchnorm"), seeded(1, 4, 3, 32, 32)
    with pytest.raises(InputError, match="dm_loss got real_chunk=2 and a network with batch norm"):
        dm_loss(network, images, images, real_chunk=2)
