"""Gradient matching against the official numbers, double backward, and its own laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from ld3m.errors import InputError
from ld3m.matching import dc_loss, dsa
from ld3m.matching.dc import METRICS, match
from ld3m.matching.gradient import gradient, weights_of

OFFICIAL = {"ours": "layerwise-cosine", "mse": "mse", "cos": "cosine"}
LABELS = torch.tensor([0, 1, 2])
DTYPES = {"f64": torch.float64, "f32": torch.float32}


@pytest.fixture(scope="module")
def case(load_case):
    return load_case("dc")


def loss_and_gradient(network, real, synthetic, labels=LABELS, **options):
    synthetic = synthetic.clone().requires_grad_()
    loss = dc_loss(network, real, synthetic, labels, **options)
    loss.sum().backward()
    return loss.detach(), synthetic.grad


def classes(images: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return images.to(dtype).unflatten(0, (3, -1))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("official", OFFICIAL)
def test_reference(official, kind, case, case_network, relative_error):
    network, dtype = case_network(case, DTYPES[kind]), DTYPES[kind]
    loss, grad = loss_and_gradient(
        network, case["real"].to(dtype), classes(case["syn"], dtype), metric=OFFICIAL[official]
    )
    tolerance = {"f64": 1e-10, "f32": 1e-5}[kind]
    assert relative_error(loss, case[f"{official}.loss_per_class.{kind}"]) < tolerance
    assert relative_error(loss.sum(), case[f"{official}.loss_sum.{kind}"]) < tolerance
    if f"{official}.grad_syn.{kind}" in case:
        want = classes(case[f"{official}.grad_syn.{kind}"], dtype)
        assert relative_error(grad, want) < {"f64": 1e-10, "f32": 1e-4}[kind]


@pytest.mark.parametrize(("side", "key"), [("real", "g_real.c0."), ("syn", "g_syn.c0.")])
def test_reference_class_gradients(side, key, case, case_network):
    network = case_network(case)
    images = (case["real"][0] if side == "real" else case["syn"][:2]).double()
    got = gradient(network, weights_of(network), images, torch.zeros(len(images), dtype=torch.int64))
    stored = {k.removeprefix(key).removesuffix(".f64"): v for k, v in case.items() if k.startswith(key)}
    assert stored.keys() <= got.keys()
    largest = max(float(v.abs().max()) for v in stored.values())
    for name, want in stored.items():
        assert float((got[name] - want).abs().max()) < 1e-10 * largest, name


def test_reference_odd_batch_as_a_whole(case, case_network, relative_error):
    key = "odd7.full_batch.ours"
    loss, grad = loss_and_gradient(case_network(case), case["real"][:, :7].double(), classes(case["syn"]))
    assert relative_error(loss, case[f"{key}.loss_per_class.f64"]) < 1e-10
    assert relative_error(grad, classes(case[f"{key}.grad_syn.f64"])) < 1e-10


def test_reference_odd_batch_in_halves(case, case_network, relative_error):
    """What the released code does to an odd batch, put together from one class's parts."""
    key, network = "odd7.half_split.ours", case_network(case)
    weights = weights_of(network)
    names = [name for name, weight in weights.items() if weight.ndim in (2, 4)]
    losses, gradients = [], []
    for label, real, images in zip(LABELS, case["real"].double(), classes(case["syn"]), strict=True):
        halves = [gradient(network, weights, part, label.expand(len(part)), names) for part in (real[:3], real[3:7])]
        target = {name: (halves[0][name] + halves[1][name]) / 2 for name in names}
        stacked = {name: of_class[None] for name, of_class in target.items()}
        loss, grad = match(network, weights, stacked, images[None], label[None])
        losses.append(loss)
        gradients.append(grad[0])
    assert relative_error(torch.cat(losses), case[f"{key}.loss_per_class.f64"]) < 1e-10
    if f"{key}.grad_syn.f64" in case:
        assert relative_error(torch.cat(gradients), case[f"{key}.grad_syn.f64"]) < 1e-10


def test_reference_with_augmentation(case, case_network, relative_error):
    """One (sx, sy) for each class, shared by real and synthetic; the gradient is that of the images before it."""
    synthetic = case["syn"].double().requires_grad_()
    sides = []
    for images in (case["real"].double(), classes(synthetic)):
        parameters = zip(images, case["scale_aug.sx"][:, None], case["scale_aug.sy"][:, None], strict=True)
        sides.append(torch.stack([dsa.scale(*of_class) for of_class in parameters]))
    loss = dc_loss(case_network(case), *sides, LABELS)
    loss.sum().backward()
    assert relative_error(loss, case["scale_aug.loss_per_class.f64"]) < 1e-10
    assert relative_error(loss.sum(), case["scale_aug.loss_sum.f64"]) < 1e-10
    assert relative_error(synthetic.grad, case["scale_aug.grad_syn.f64"]) < 1e-10


def test_reference_with_inner_training(case, case_network, relative_error):
    """Three matching steps; between them the network trains one step on the images from before their update."""
    network, synthetic = case_network(case), classes(case["syn"])
    images_optimizer = torch.optim.SGD([synthetic.requires_grad_()], lr=1, momentum=0.5)
    network_optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    logged = 0.0
    for step in range(3):
        shown = synthetic.detach().flatten(0, 1).clone()
        loss = dc_loss(network, case["real"].double(), synthetic, LABELS)
        images_optimizer.zero_grad()
        loss.sum().backward()
        assert relative_error(loss, case["outer3.loss_per_class.f64"][step]) < 1e-10
        assert relative_error(synthetic.grad.flatten(0, 1), case["outer3.grad_syn.f64"][step]) < 1e-10
        images_optimizer.step()
        logged += loss.sum().detach() / (3 * 3)
        if step < 2:
            network_optimizer.zero_grad()
            F.cross_entropy(network(shown), LABELS.repeat_interleave(2)).backward()
            network_optimizer.step()
    assert relative_error(logged, case["outer3.loss_avg_logged.f64"]) < 1e-10
    if "outer3.syn_after.f64" in case:
        assert relative_error(synthetic.flatten(0, 1), case["outer3.syn_after.f64"]) < 1e-10
    stored = {key.split("net_after.")[1].removesuffix(".f64"): v for key, v in case.items() if "net_after." in key}
    for name, parameter in network.named_parameters():
        assert relative_error(parameter, stored[name]) < 1e-10, name


def by_double_backward(network, real, synthetic, labels, metric):
    """The definition, with a graph of the gradients."""
    losses = []
    for real_images, images, label in zip(real, synthetic, labels, strict=True):
        sides = []
        for batch in (real_images, images):
            leaves = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            logits = functional_call(network, {**leaves, **buffers}, (batch,))
            loss = F.cross_entropy(logits, label.expand(len(batch)))
            sides.append(torch.autograd.grad(loss, list(leaves.values()), create_graph=True))
        losses.append(plain_distance(sides[1], [g.detach() for g in sides[0]], metric))
    return torch.stack(losses)


def plain_distance(own, target, metric):
    if metric == "mse":
        return sum((a - b).square().sum() for a, b in zip(own, target, strict=True))
    if metric == "cosine":
        own, target = ([torch.cat([g.flatten() for g in side])[None]] for side in (own, target))
    total = 0
    for a, b in zip(own, target, strict=True):
        if a.ndim in (2, 4):
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "name", ["ConvNet/layernorm", "ConvNet/batchnorm", "AlexNet-w0.05", "VGG11-w0.05", "ResNet18-w0.05", "ViT-w0.125"]
)
def test_against_double_backward(name, metric, small_network, seeded, relative_error):
    """Other structures, some of the classes in another order, dropout at work in ViT."""
    network, labels = small_network(name), torch.tensor([3, 0])
    real, synthetic = seeded(2, 5, 3, 32, 32), seeded(2, 3, 3, 32, 32)
    weighting = torch.tensor([0.3, -2.0])

    leaf = synthetic.clone().requires_grad_()
    torch.manual_seed(4)
    want = by_double_backward(network, real, leaf, labels, metric)
    (want_grad,) = torch.autograd.grad(want, leaf, weighting)
    leaf = synthetic.clone().requires_grad_()
    torch.manual_seed(4)
    got = dc_loss(network, real, leaf, labels, metric=metric)
    (got_grad,) = torch.autograd.grad(got, leaf, weighting)
    assert relative_error(got, want) < 1e-11
    assert relative_error(got_grad, want_grad) < 1e-10


@pytest.mark.parametrize("metric", METRICS)
def test_closed_form_derivative_of_the_metric(metric, seeded):
    own, target = ([seeded(4, 3, 3, 3), seeded(4, 4), seeded(4)][: 2 if "layer" in metric else 3] for _ in range(2))
    loss, derivative = METRICS[metric](*([g[None] for g in gradients] for gradients in (own, target)))
    leaves = [g.clone().requires_grad_() for g in own]
    want = plain_distance(leaves, target, metric)
    torch.testing.assert_close(loss, want.detach()[None])
    for got, expected in zip(derivative, torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(got, expected[None])


def test_rows_of_zeros_count_one_and_pull_along_the_target(seeded):
    target = [seeded(1, 2, 6)]
    loss, (derivative,) = METRICS["layerwise-cosine"]([torch.zeros(1, 2, 6, dtype=torch.float64)], target)
    assert float(loss) == 2
    torch.testing.assert_close(derivative, -target[0] / 1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_loss_of_the_same_images_is_zero(metric, small_network, seeded):
    images = seeded(2, 4, 3, 32, 32)
    loss = dc_loss(small_network("ConvNet"), images, images.clone(), torch.tensor([1, 4]), metric=metric)
    assert float(loss.abs().max()) < 1e-2  # 1e-6 beside products of small norms is not nothing
    if metric == "mse":
        assert float(loss.abs().max()) < 1e-25


@settings(max_examples=10)
@given(real=st.integers(1, 4), ipc=st.integers(1, 3), order=st.permutations([0, 1, 2, 3, 4]), count=st.integers(1, 3))
def test_each_class_is_on_its_own(small_network, real, ipc, order, count):
    """A call over several classes gives loss and gradient of one call for each, whatever their order."""
    network, labels = small_network("ConvNet"), torch.tensor(order[:count])
    generator = torch.Generator().manual_seed(real * 10 + ipc)
    sides = [torch.randn(count, n, 3, 16, 16, dtype=torch.float64, generator=generator) for n in (real, ipc)]
    sides = [side.repeat_interleave(2, 3).repeat_interleave(2, 4) for side in sides]
    together = loss_and_gradient(network, *sides, labels)
    for row in range(count):
        alone = loss_and_gradient(network, *(side[row : row + 1] for side in sides), labels[row : row + 1])
        torch.testing.assert_close(together[0][row], alone[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together[1][row], alone[1][0], rtol=1e-9, atol=1e-12)


def test_same_bits_twice(case, case_network):
    network = case_network(case, torch.float32)
    first, second = (loss_and_gradient(network, case["real"], classes(case["syn"], torch.float32)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_network_is_left_alone(small_network, seeded):
    """No `.grad`, no change of `requires_grad`, no running statistics, no draw; frozen weights give the same."""
    network, before_rng = small_network("ConvNet/batchnorm"), torch.get_rng_state()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    real, synthetic, labels = seeded(2, 4, 3, 32, 32), seeded(2, 2, 3, 32, 32), torch.tensor([0, 1])
    trainable = loss_and_gradient(network, real, synthetic, labels)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    frozen = loss_and_gradient(network.requires_grad_(False), real, synthetic, labels)
    assert torch.equal(trainable[1], frozen[1])
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before_rng)


def test_real_images_get_no_gradient(case, case_network):
    real, synthetic = case["real"].double().requires_grad_(), classes(case["syn"]).requires_grad_()
    dc_loss(case_network(case), real, synthetic, LABELS).sum().backward()
    assert real.grad is None
    assert float(synthetic.grad.abs().max()) > 0


def test_without_gradient(case, case_network):
    network, real, synthetic = case_network(case), case["real"].double(), classes(case["syn"])
    want, _ = loss_and_gradient(network, real, synthetic)
    assert torch.equal(dc_loss(network, real, synthetic, LABELS), want)
    with torch.no_grad():
        loss = dc_loss(network, real, synthetic.requires_grad_(), LABELS)
    assert torch.equal(loss, want)
    assert not loss.requires_grad


def test_memory_grows_with_the_classes_and_not_with_the_real_images_of_all(small_network, seeded, peak_bytes):
    network = small_network("ConvNet")

    def peak(count: int, real: int) -> int:
        sides = seeded(count, real, 3, 32, 32), seeded(count, 1, 3, 32, 32).requires_grad_()
        return peak_bytes(lambda: dc_loss(network, *sides, torch.arange(count)))

    assert peak(5, 1) < 5.2 * peak(1, 1)
    assert peak(5, 64) < 1.1 * peak(1, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"real": torch.zeros(16, 3, 32, 32)},
            r"real as \(classes, images, 3, H, W\).*got \(16, 3, 32, 32\).*unflatten",
        ),
        ({"synthetic": torch.zeros(2, 0, 3, 32, 32)}, "synthetic as .* none of them 0"),
        ({"synthetic": torch.zeros(2, 1, 1, 32, 32)}, r"synthetic as .*got \(2, 1, 1, 32, 32\)"),
        ({"synthetic": torch.zeros(3, 1, 3, 32, 32)}, r"same classes and size.*\(2, 4, 3, 32, 32\) and \(3, 1"),
        ({"synthetic": torch.zeros(2, 1, 3, 16, 16)}, "same classes and size"),
        ({"real": torch.zeros(2, 4, 3, 32, 32).double()}, "real like the network's weights, torch.float32.*float64"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels int64 of shape \(2,\).*\(3,\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, r"labels int64.*float32"),
        (
            {"labels": torch.tensor([0, 5])},
            "labels from 0 to 4, the classes of the network; got 0 to 5; number the classes",
        ),
        ({"labels": torch.tensor([0, -1])}, "labels from 0 to 4, the classes of the network; got -1 to 0"),
        (
            {"real": torch.zeros(2, 4, 3, 16, 16), "synthetic": torch.zeros(2, 1, 3, 16, 16)},
            r"dc_loss got images of 16x16 pixels, which the network does not take \(.+\); resize them, or build",
        ),
        ({"metric": "l2"}, "metric must be one of layerwise-cosine, mse, cosine, got 'l2'"),
    ],
)
def test_errors(change, message, small_network):
    arguments = {
        "real": torch.zeros(2, 4, 3, 32, 32),
        "synthetic": torch.zeros(2, 1, 3, 32, 32),
        "labels": torch.tensor([0, 1]),
    }
    with pytest.raises(InputError, match=message):
        dc_loss(small_network("ConvNet").float(), **arguments | change)


@pytest.mark.parametrize("metric", ["layerwise-cosine", "mse", "cosine"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_real_images_in_chunks_give_the_same(metric, chunk, small_network, seeded, relative_error):
    network, labels = small_network("ConvNet"), torch.tensor([3, 0])
    real, found = seeded(2, 7, 3, 32, 32), []
    images = seeded(2, 2, 3, 32, 32)
    for size in (None, chunk):
        synthetic = images.clone().requires_grad_()
        losses = dc_loss(network, real, synthetic, labels, metric=metric, real_chunk=size)
        losses.sum().backward()
        found.append((losses, synthetic.grad))
    for whole, cut in zip(*found, strict=True):
        assert relative_error(cut, whole) < 1e-12


def test_chunks_bound_the_memory_of_the_real_side(small_network, seeded, peak_bytes):
    network, labels = small_network("ConvNet"), torch.tensor([1])
    real, synthetic = seeded(1, 16, 3, 32, 32), seeded(1, 1, 3, 32, 32)
    whole, cut = (
        peak_bytes(lambda size=size: dc_loss(network, real, synthetic, labels, real_chunk=size)) for size in (None, 2)
    )
    assert cut < 0.3 * whole


@pytest.mark.parametrize("name", ["ConvNet/batchnorm", "ViT-w0.125"])
def test_networks_that_see_whole_batches_take_no_chunks(name, small_network, seeded):
    network, images, labels = small_network(name), seeded(1, 4, 3, 32, 32), torch.tensor([0])
    with pytest.raises(InputError, match="real_chunk=2 and a network with batch norm or active dropout"):
        dc_loss(network, images, images, labels, real_chunk=2)
    with pytest.raises(InputError, match="real_chunk as at least 1 image, got 0"):
        dc_loss(network, images, images, labels, real_chunk=0)
    network.eval()
    whole, cut = (dc_loss(network, images, images[:, :1], labels, real_chunk=size) for size in (None, 2))
    torch.testing.assert_close(cut, whole)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, IndexError])
def test_errors_that_have_another_cause_stay_what_they_are(kind, small_network, seeded, monkeypatch):
    def fail(*_arguments):
        raise kind("something else")

    monkeypatch.setattr("ld3m.matching.dc.real_gradient", fail)
    images = seeded(1, 2, 3, 32, 32)
    with pytest.raises(kind, match="something else"):
        dc_loss(small_network("ConvNet"), images, images, torch.tensor([4]))
