"""Trajectory matching against the official numbers, a full unroll by autograd, and its own laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from ld3m.errors import InputError
from ld3m.matching import dsa, mtt_loss

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
DTYPES = {"f64": torch.float64, "f32": torch.float32}
# stored as, the unroll it is, and what it is a multiple of
SOURCES = {
    "exact": ("exact", 1),
    "official_glad": ("tesla", 1),
    "const_mem": ("tesla", 1),
    "official_ld3m": ("tesla", 0.5),
}


@pytest.fixture(scope="module")
def case(load_case):
    return load_case("mtt")


def split(network, vector: torch.Tensor) -> list[torch.Tensor]:
    """A flat vector of all parameters as the list that `mtt_loss` takes."""
    parts = vector.split([p.numel() for p in network.parameters()])
    return [part.view_as(p) for part, p in zip(parts, network.parameters(), strict=True)]


def loss_and_gradients(network, start, target, images, labels, student_lr, batches, **options):
    images = images.clone().requires_grad_()
    student_lr = torch.as_tensor(student_lr).clone().requires_grad_()
    loss = mtt_loss(network, start, target, images, labels, student_lr, batches, **options)
    loss.backward()
    return {"loss": loss.detach(), "grad_syn": images.grad, "grad_lr": student_lr.grad}


def run_case(case, network, name, dtype=torch.float64, **options):
    batches = [case[key] for key in sorted(key for key in case if key.startswith(f"{name}.idx"))]
    ends = (split(network, case[f"theta_{end}"]) for end in ("start", "target"))
    return loss_and_gradients(
        network, *ends, case["syn"].to(dtype), LABELS, case["syn_lr"].to(dtype), batches, **options
    )


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("unroll", ["exact", "tesla"])
@pytest.mark.parametrize("name", ["n1", "n5", "n20"])
def test_reference(name, unroll, kind, case, case_network, relative_error):
    got = run_case(case, case_network(dtype=DTYPES[kind]), name, DTYPES[kind], unroll=unroll)
    tolerance = {"f64": 1e-10, "f32": 1e-4}[kind]
    for source, (its_unroll, factor) in SOURCES.items():
        for quantity, value in got.items():
            key = f"{name}.{source}.{quantity}.{kind}"
            if its_unroll == unroll and key in case:
                error = relative_error(value * (factor if quantity == "grad_syn" else 1), case[key])
                assert error < (tolerance / 10 if quantity == "loss" and kind == "f32" else tolerance), key


@pytest.mark.parametrize("source", ["official_glad", "official_ld3m"])
def test_reference_with_augmentation(source, case, case_network, relative_error):
    name = "n5.scale_aug"

    def augment(images, step):
        return dsa.scale(images, case[f"{name}.sx{step:02d}"], case[f"{name}.sy{step:02d}"])

    got = run_case(case, case_network(), name, unroll="tesla", augment=augment)
    for quantity, value in got.items():
        key = f"{name}.{source}.{quantity}.f64"
        if key in case:
            assert relative_error(value * (SOURCES[source][1] if quantity == "grad_syn" else 1), case[key]) < 1e-10, key


def test_stored_batches_follow_from_the_permutations(case):
    """Chunks of each permutation are taken from its end, the short one first."""
    for name in ("n1", "n5", "n20"):
        size = 6 if name == "n1" else 4
        chunks = [chunk for perm in case[f"{name}.perms"] for chunk in reversed(perm.split(size))]
        stored = [case[key] for key in sorted(key for key in case if key.startswith(f"{name}.idx"))]
        assert [c.tolist() for c in chunks[: len(stored)]] == [s.tolist() for s in stored]


def by_autograd(network, start, target, images, labels, student_lr, batches, augment=None, detach=False):
    """The definition, with one graph through all student steps; `detach` holds the student's weights constant."""
    images, student_lr = images.clone().requires_grad_(), student_lr.clone().requires_grad_()
    names = [name for name, _ in network.named_parameters()]
    theta = [tensor.clone().requires_grad_() for tensor in start]
    total = [torch.zeros_like(tensor) for tensor in start]
    for number, index in enumerate(batches):
        batch = images[index] if augment is None else augment(images[index], number)
        at = [t.detach().requires_grad_() for t in theta] if detach else theta
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        state = dict(zip(names, at, strict=True)) | buffers
        loss = F.cross_entropy(functional_call(network, state, (batch,)), labels[index])
        gradients = torch.autograd.grad(loss, at, create_graph=True)
        total = [s + g for s, g in zip(total, gradients, strict=True)]
        theta = [t - student_lr * g for t, g in zip(theta, gradients, strict=True)]
    theta = [t - student_lr * s for t, s in zip(start, total, strict=True)] if detach else theta
    distance = sum((s - t).square().sum() for s, t in zip(start, target, strict=True))
    loss = sum((a - b).square().sum() for a, b in zip(theta, target, strict=True)) / distance
    grad_syn, grad_lr = torch.autograd.grad(loss, [images, student_lr])
    return {"loss": loss.detach(), "grad_syn": grad_syn, "grad_lr": grad_lr}


STRUCTURES = ["ConvNet/layernorm", "ConvNet/batchnorm", "AlexNet-w0.05", "VGG11-w0.05", "ResNet18-w0.05", "ViT-w0.125"]


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("unroll", ["exact", "tesla"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_against_autograd(name, unroll, augmented, small_network, seeded, relative_error):
    """Other structures, dropout at work in ViT, a batch with one image twice."""
    network = small_network(name)
    start = [p.detach().clone() for p in network.parameters()]
    target = [p + 0.05 * seeded(*p.shape) for p in start]
    images, labels = seeded(4, 3, 32, 32), torch.tensor([3, 0, 4, 0])
    batches = [torch.tensor(index) for index in ([2, 0, 3], [1, 1, 2], [3, 0])]

    def augment(images, step):
        return dsa.apply(images, dsa.draw(torch.Generator().manual_seed(step), len(images), 32))

    options = {"augment": augment if augmented else None}
    arguments = (network, start, target, images, labels, torch.tensor(0.03, dtype=torch.float64), batches)
    torch.manual_seed(9)
    want = by_autograd(*arguments, **options, detach=unroll == "tesla")
    torch.manual_seed(9)
    got = loss_and_gradients(*arguments, **options, unroll=unroll)
    for quantity, value in want.items():
        assert relative_error(got[quantity], value) < 1e-10, quantity


def test_exact_gradient_by_finite_differences(case, case_network):
    """A smooth direction: the learning rate of five steps."""
    network, step = case_network(), 1e-6
    got = run_case(case, network, "n5")["grad_lr"]
    ends = [run_case({**case, "syn_lr": case["syn_lr"] + shift}, network, "n5")["loss"] for shift in (step, -step)]
    assert abs(float((ends[0] - ends[1]) / (2 * step)) - float(got)) < 1e-5 * abs(float(got))


@pytest.mark.parametrize("unroll", ["exact", "tesla"])
def test_tesla_is_exact_for_one_step_only(unroll, case, case_network, relative_error):
    network = case_network()
    one, five = (run_case(case, network, name, unroll=unroll)["grad_syn"] for name in ("n1", "n5"))
    assert relative_error(one, case["n1.exact.grad_syn.f64"]) < 1e-10
    assert (relative_error(five, case["n5.exact.grad_syn.f64"]) < 1e-10) == (unroll == "exact")


@settings(max_examples=10)
@given(order=st.permutations(range(4)), batch=st.permutations(range(4)))
def test_names_of_images_and_order_inside_a_batch_do_not_matter(small_network, order, batch):
    network, generator = small_network("ConvNet"), torch.Generator().manual_seed(2)
    start = [p.detach() for p in network.parameters()]
    target = [p + 0.1 for p in start]
    images = (
        torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=generator)
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)
    )
    labels, place = torch.tensor([0, 1, 2, 0]), torch.tensor(order).argsort()
    batches = [torch.tensor([0, 1, 2, 3]), torch.tensor([2, 1])]
    want = loss_and_gradients(network, start, target, images, labels, 0.05, batches)
    renamed = [place[batches[0][torch.tensor(batch)]], place[batches[1]]]
    got = loss_and_gradients(network, start, target, images[order], labels[order], 0.05, renamed)
    torch.testing.assert_close(got["loss"], want["loss"], rtol=1e-10, atol=0)
    torch.testing.assert_close(got["grad_syn"], want["grad_syn"][order], rtol=1e-7, atol=1e-12)


def test_student_that_stands_still_keeps_the_distance(case, case_network):
    """A learning rate of 0: the loss is 1 and images have no say."""
    network = case_network()
    got = run_case({**case, "syn_lr": torch.tensor(0.0, dtype=torch.float64)}, network, "n5")
    assert float(got["loss"]) == 1.0
    assert float(got["grad_syn"].abs().max()) == 0.0


def test_float_learning_rate_and_other_dtypes_of_the_experts(case, case_network):
    network = case_network()
    want = run_case(case, network, "n5")
    images = case["syn"].double().requires_grad_()
    ends = (split(network, case[f"theta_{end}"].float()) for end in ("start", "target"))
    batches = [case[f"n5.idx{step:02d}"] for step in range(5)]
    loss = mtt_loss(network, *ends, images, LABELS, float(case["syn_lr"]), batches)
    loss.backward()
    assert torch.equal(loss, want["loss"])
    assert torch.equal(images.grad, want["grad_syn"])


def test_gradient_in_the_learning_rate_alone(case, case_network):
    network = case_network()
    want = run_case(case, network, "n5")["grad_lr"]
    student_lr = case["syn_lr"].float().requires_grad_()  # another dtype than the network's
    ends = (split(network, case[f"theta_{end}"]) for end in ("start", "target"))
    batches = [case[f"n5.idx{step:02d}"] for step in range(5)]
    mtt_loss(network, *ends, case["syn"].double(), LABELS, student_lr, batches).backward()
    torch.testing.assert_close(student_lr.grad, want.float())


def test_without_gradient(case, case_network):
    network = case_network()
    want = run_case(case, network, "n5")["loss"]
    ends = [split(network, case[f"theta_{end}"]) for end in ("start", "target")]
    batches = [case[f"n5.idx{step:02d}"] for step in range(5)]
    loss = mtt_loss(network, *ends, case["syn"].double(), LABELS, case["syn_lr"], batches)
    assert torch.equal(loss, want)
    assert not loss.requires_grad


def test_same_bits_twice(case, case_network):
    first, second = (run_case(case, case_network(dtype=torch.float32), "n5", torch.float32) for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


def test_network_is_left_alone(small_network, seeded):
    network = small_network("ConvNet/batchnorm")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start = [torch.rand_like(p) for p in network.parameters()]
    target = [p + 0.1 for p in start]
    copies = [p.clone() for p in start]
    loss_and_gradients(
        network, start, target, seeded(2, 3, 32, 32), torch.tensor([0, 1]), 0.1, [torch.tensor([0, 1])] * 2
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(start, copies, strict=True))


def test_memory_of_one_student_step(small_network, seeded, peak_bytes):
    """Twelve steps take what three take, plus weights and images of the nine more."""
    network = small_network("ConvNet")
    start = [p.detach() for p in network.parameters()]
    target = [p + 0.1 for p in start]
    images, labels = seeded(8, 3, 32, 32).requires_grad_(), torch.arange(8) % 5
    kept = sum(p.numel() for p in start) * 8 + images.numel() * 8 + 1000

    def peak(steps: int) -> int:
        batches = [torch.arange(8)] * steps
        return peak_bytes(lambda: mtt_loss(network, start, target, images, labels, 0.01, batches))

    few, many = peak(3), peak(12)
    assert many < 1.02 * few + 9 * kept
    assert 9 * kept < few / 2  # the bound says something: a graph of twelve steps would be four times as large


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 3}, "start as the network's 10 parameters in order, got 3"),
        ({"target": "short"}, r"target like the network's parameters, but features.0.weight is \(8, 3, 3, 3\)"),
        ({"images": torch.zeros(2, 2, 3, 32, 32)}, r"images as \(M, 3, H, W\).*got \(2, 2, 3, 32, 32\)"),
        ({"images": torch.zeros(4, 3, 32, 32)}, "images like the network's weights, torch.float64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels int64 of shape \(4,\).*\(3,\)"),
        ({"labels": torch.zeros(4)}, "labels int64"),
        (
            {"labels": torch.tensor([0, 7, 2, 3])},
            "mtt_loss needs labels from 0 to 4, the classes of the network; got 0 to 7",
        ),
        (
            {"images": torch.zeros(4, 3, 16, 32, dtype=torch.float64)},
            "mtt_loss got images of 16x32 pixels, which the network does not take",
        ),
        ({"batches": []}, "at least one batch"),
        ({"batches": [torch.tensor([[0, 1]])]}, r"1-d int64 indices.*\(1, 2\) as batch 0"),
        ({"batches": [torch.tensor([0]), torch.tensor([], dtype=torch.int64)]}, "as batch 1"),
        ({"batches": [torch.tensor([0, 4])]}, "batch 0 has indices 0 to 4, but images holds 4"),
        ({"batches": [torch.tensor([-1, 2])]}, "batch 0 has indices -1 to 2"),
        ({"unroll": "full"}, "unroll must be 'exact' or 'tesla', got 'full'"),
        ({"augment": lambda images, step: images[:1]}, r"augment must keep the shape \(2, 3, 32, 32\)"),
    ],
)
def test_errors(change, message, small_network):
    network = small_network("ConvNet")
    parameters = [p.detach() for p in network.parameters()]
    replaced = {3: parameters[:3], "short": [p[:1] for p in parameters]}
    change = {key: replaced[value] if key in ("start", "target") else value for key, value in change.items()}
    arguments = {
        "start": parameters,
        "target": [p + 1 for p in parameters],
        "images": torch.zeros(4, 3, 32, 32, dtype=torch.float64),
        "labels": torch.tensor([0, 1, 2, 3]),
        "student_lr": 0.1,
        "batches": [torch.tensor([0, 1])],
    }
    with pytest.raises(InputError, match=message):
        mtt_loss(network, **arguments | change)
