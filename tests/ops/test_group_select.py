"""Groups of normal numbers that are never stored: the numbers, their scores and the choice, in every backend."""

import math

import pytest
import torch

from ld3m.errors import BackendError, InputError
from ld3m.ops.group_select import (
    WEIGHTS,
    _group_scores,
    group_noise,
    group_scores,
    group_scores_reference,
    group_select,
    philox,
    score_noise,
    supports,
)

SHAPES = {  # ipc, D
    "one number": (1, 1),
    "two numbers": (2, 1),
    "one member": (1, 192),
    "two coordinates": (3, 2),
    "odd": (3, 7),
    "not a multiple of four": (10, 1030),
    "latents of the embedded prior": (10, 192),
    "many members": (50, 65),
}


@pytest.fixture
def backend(backend, device):
    """Each backend that takes tensors on `device`: C++ stays on a CPU."""
    if reason := supports(backend, torch.empty(1, device=device), 2):
        pytest.skip(reason)
    return backend


@pytest.fixture
def make(device):
    def std(dim=192, dtype=torch.float32):
        return (torch.rand(dim, generator=torch.Generator().manual_seed(0)) + 0.5).to(device, dtype)

    return std


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, seed, words):
    """Known answers of Salmon et al. 2011, Random123."""
    assert [int(word) for word in philox([torch.tensor(word) for word in counter], seed)] == list(words)


def test_the_noise_is_normal():
    noise = group_noise(torch.arange(50), ipc=10, dim=1000, seed=3, dtype=torch.float64).flatten()
    n = len(noise)
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(noise.pow(3).mean()) < 4 * math.sqrt(15 / n)
    assert abs(noise.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    quantiles = torch.special.ndtr(noise).sort().values
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (quantiles - steps).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov, 0.1 %


def test_members_coordinates_and_groups_are_independent():
    noise = group_noise(torch.arange(2000), ipc=3, dim=5, seed=1, dtype=torch.float64).flatten(1)
    correlation = torch.corrcoef(noise.t()) - torch.eye(15)
    assert correlation.abs().max() < 4.5 / math.sqrt(2000)
    assert torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1].abs() < 4 / math.sqrt(29985)


def test_noise_in_float32_is_that_in_float64_rounded():
    at = {"ipc": 10, "dim": 192, "seed": 2**62 + 11}
    indices = torch.tensor([0, 1, 2**31, 2**40])
    exact = group_noise(indices, **at, dtype=torch.float64)
    assert (group_noise(indices, **at) - exact).abs().max() < 4e-6
    assert len(exact.flatten().unique()) == exact.numel()


def test_score_of_the_released_code(make):
    """As written there, on groups mean + std · z."""
    std = make(dtype=torch.float64)
    mean = torch.randn(192, generator=torch.Generator().manual_seed(1)).to(std)
    noise = group_noise(torch.arange(5), ipc=4, dim=192, seed=0, dtype=torch.float64).to(std)
    groups = mean + std * noise
    row_mean, row_std = groups.mean(1), groups.std(1)
    standard = (groups - row_mean[:, None]) / row_std[:, None]
    skewness = 192 / (191 * 190) * (standard**3).sum(-1)
    terms = [(row_mean - mean).norm(dim=1), (row_std - std).norm(dim=1), skewness.norm(dim=1)]
    for weights in (WEIGHTS, (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 0.5)):
        expected = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        assert torch.allclose(score_noise(noise, std, weights), expected, rtol=1e-12)


@pytest.mark.parametrize("weights", [WEIGHTS, (0, 0, 1), (1, 0, 0), (0, 1, 0)], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_eager(shape, weights, backend, make, assert_as_good_as_eager):
    ipc, dim = SHAPES[shape]
    at = {"ipc": ipc, "count": 5, "first": 2**32 - 2, "seed": 2**62 + 5, "weights": weights}
    exact = group_scores(make(dim, torch.float64), **at)
    eager, got = (group_scores(make(dim), **at, backend=name) for name in ("eager", backend))
    assert_as_good_as_eager(got, eager, exact, floor=2e-6)


def test_a_single_member_counts_by_its_mean_alone(backend, make):
    at = {"ipc": 1, "count": 8, "seed": 0, "backend": backend}
    noise = group_noise(torch.arange(8), ipc=1, dim=192, seed=0)
    expected = 2 * (make() * noise[:, 0].to(make().device)).norm(dim=1)
    assert torch.allclose(group_scores(make(), **at, weights=(2, 7, 7)), expected, rtol=1e-5)


def test_a_coordinate_whose_members_are_equal_has_no_skewness():
    noise = torch.zeros(1, 3, 4)
    noise[..., 0] = torch.tensor([1.0, 2.0, 4.0])
    assert torch.isfinite(score_noise(noise, torch.ones(4)))


def test_a_coordinate_without_spread_counts_not(backend, make):
    """Where all images agree: the released code divides by zero there."""
    std = make()
    std[::2] = 0
    at = {"ipc": 4, "count": 6, "seed": 1, "weights": (1, 1, 0)}
    noise = group_noise(torch.arange(6), ipc=4, dim=192, seed=1).to(std.device)
    expected = score_noise(noise[..., 1::2], std[1::2], (1, 1, 0))
    assert torch.allclose(group_scores(std, **at, backend=backend), expected, rtol=1e-5)
    assert torch.isfinite(group_scores(std, **at | {"weights": WEIGHTS}, backend=backend)).all()


def test_scores_do_not_depend_on_where_one_starts(backend, make):
    whole = group_scores(make(), ipc=3, count=9, seed=4, backend=backend)
    parts = [group_scores(make(), ipc=3, first=k, count=3, seed=4, backend=backend) for k in (0, 3, 6)]
    rtol = 1e-5 if backend == "eager" and whole.is_cuda else 0  # where the order of a sum depends on the shape
    torch.testing.assert_close(torch.cat(parts), whole, rtol=rtol, atol=0)


def test_reference_in_chunks(make, monkeypatch):
    whole = group_scores_reference(make(), 3, 0, 9, 4, WEIGHTS)
    monkeypatch.setattr("ld3m.ops.group_select._CHUNK", 1)
    again = group_scores_reference(make(), 3, 0, 9, 4, WEIGHTS)
    torch.testing.assert_close(again, whole, rtol=1e-5 if whole.is_cuda else 0, atol=0)


def test_the_best_group_is_chosen_and_can_be_made_again(backend, make):
    at = {"ipc": 4, "seed": 9}
    index, score = group_select(make(), **at, groups=40, backend=backend)
    scores = group_scores(make(dtype=torch.float64), **at, count=40)
    assert index == int(scores.argmin())
    noise = group_noise(torch.tensor([index]), **at, dim=192).to(make().device)
    assert score == pytest.approx(float(score_noise(noise, make())), rel=1e-5)


def test_the_choice_in_parts_and_the_first_of_equal_scores(make, monkeypatch):
    at = {"ipc": 2, "seed": 9, "groups": 40}
    whole = group_select(make(), **at)
    monkeypatch.setattr("ld3m.ops.group_select._SCORES", 7)
    assert group_select(make(), **at) == whole
    assert group_select(torch.zeros(8), **at, weights=(1, 1, 0)) == (0, 0.0)


def test_another_seed_is_another_group(backend, make):
    first, second = (group_scores(make(), ipc=2, count=4, seed=seed, backend=backend) for seed in (1, 1 + 2**32))
    assert not torch.equal(first, second)


def test_same_result_twice_and_with_more_threads(backend, make):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 3):
            torch.set_num_threads(threads)
            results.append(group_scores(make(), ipc=3, count=40, seed=2, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) or backend == "eager"  # whose sums depend on the threads


def test_layouts_and_half_precision(backend, make):
    std = make(384)
    at = {"ipc": 3, "count": 4, "seed": 2, "backend": backend}
    assert torch.equal(group_scores(std[1::2], **at), group_scores(std[1::2].clone(), **at))
    half = std.bfloat16()
    assert torch.equal(group_scores(half, **at), group_scores(half.float(), **at))


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_kernels_are_not_for_float64(backend, make):
    if reason := supports(backend, make(), 3):
        pytest.skip(reason)
    assert "float64" in supports(backend, make(dtype=torch.float64), 3)
    with pytest.raises(BackendError, match=f"{backend} cannot take .*float64"):
        group_scores(make(dtype=torch.float64), ipc=3, count=2, seed=0, backend=backend)


def test_opcheck(backend, make):
    torch.library.opcheck(_group_scores, (make(7), 3, 0, 4, 1, [1.0, 1.0, 0.1], backend))


def test_compiles_whole(backend, make):
    compiled = torch.compile(
        lambda std: group_scores(std, ipc=3, count=4, seed=1, backend=backend) * 2,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(make()), 2 * group_scores(make(), ipc=3, count=4, seed=1, backend=backend))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": torch.ones(2, 3)}, r"std \(D,\).*got \(2, 3\) .*flatten it"),
        ({"std": torch.ones(0)}, "D at least 1"),
        ({"std": torch.ones(3, dtype=torch.int64)}, "float"),
        ({"ipc": 0}, "ipc and count are at least 1"),
        ({"count": 0}, "ipc and count are at least 1"),
        ({"first": -1}, "first at least 0"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"seed": 2**63}, "seed is a whole number from 0"),
        ({"weights": (1, 1)}, "three numbers"),
        ({"weights": (1, math.nan, 1)}, "three numbers"),
        ({"weights": (1, -1, 1)}, "three numbers, 0 or more"),
    ],
)
def test_refuses_wrong_inputs(change, message):
    with pytest.raises(InputError, match=message):
        group_scores(**{"std": torch.ones(3), "ipc": 2, "count": 3, "seed": 0} | change)


@pytest.mark.parametrize("members", [16, 512])
def test_compiles_to_machine_code(members, machine_code):
    from ld3m.kernels.group_select import TILE, group_scores_fwd_kernel

    signature = {"std": "*fp32", "scores": "*fp32", "dim": "i32", "blocks": "i32", "ipc": "i32", "first": "i64"}
    signature |= {"seed": "i64", "mean_weight": "fp32", "std_weight": "fp32", "skew_weight": "fp32"}
    constants = {"MEMBERS": members, "BLOCK": TILE // members}
    assert machine_code(group_scores_fwd_kernel, signature, constants)["cubin"]
