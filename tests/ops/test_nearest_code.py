"""Vector quantisation against exact distances in float64, in every backend."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.errors import BackendError, InputError
from ld3m.ops.nearest_code import _nearest_code, nearest_code, nearest_code_reference, supports

SHAPES = {  # (N, K, D)
    "no rows": (0, 5, 3),
    "one of each": (1, 1, 1),
    "one code": (70, 1, 4),
    "one channel": (33, 41, 1),
    "odd": (9, 341, 5),
    "codebook of the released model": (65, 8192, 3),
    "several blocks": (150, 130, 4),
    "wide": (37, 67, 61),
}


@pytest.fixture
def make(device):
    def inputs(num_rows=9, num_codes=41, dim=3, dtype=torch.float32):
        draw = torch.Generator().manual_seed(0)
        rows, codebook = (torch.randn(n, dim, generator=draw).to(device, dtype) for n in (num_rows, num_codes))
        return rows, codebook

    return inputs


def assert_exact_up_to_rounding(indices, rows, codebook):
    """The index of the exact argmin, unless the distance of the one taken is larger by less than rounding allows."""
    assert indices.dtype == torch.int64 and indices.shape == (len(rows),)
    distances = (rows.double()[:, None] - codebook.double()).square().sum(-1)  # (N, K)
    best, exact = distances.min(1) if len(rows) else (distances.new_empty(0), indices)
    differs = indices != exact
    taken = distances.gather(1, indices[:, None])[:, 0]
    rounding = (rows.shape[1] + 3) * torch.finfo(torch.float32).eps  # of a sum of D squared differences
    assert (taken[differs] <= best[differs] * (1 + 2 * rounding)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact_up_to_rounding(shape, dtype, backend, make):
    rows, codebook = make(*SHAPES[shape], dtype)
    assert_exact_up_to_rounding(nearest_code(rows, codebook, backend=backend), rows, codebook)


def test_rows_near_the_middle_of_two_codes(backend, make):
    """Where |z|² − 2 z·e + |e|² would lose the difference to cancellation."""
    _, codebook = make(1, 64, 3)
    codebook += 100
    rows = (codebook[::2] + codebook[1::2]) / 2 + 1e-3 * (codebook[1::2] - codebook[::2])
    assert_exact_up_to_rounding(nearest_code(rows, codebook, backend=backend), rows, codebook)


def test_finds_the_codes_themselves(backend, make):
    _, codebook = make(1, 300, 3)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1)).to(codebook.device)
    assert torch.equal(nearest_code(codebook[order], codebook, backend=backend), order)


def test_ties_go_to_the_lowest_index(backend, make):
    rows, codebook = make(50, 37, 4)
    doubled = torch.cat([codebook, codebook, codebook, codebook])
    assert torch.equal(nearest_code(rows, doubled, backend=backend), nearest_code_reference(rows, codebook))
    equidistant = torch.tensor([[1.0], [-1.0], [1.0]]).repeat(30, 1).to(rows)
    assert nearest_code(torch.zeros(5, 1).to(rows), equidistant, backend=backend).tolist() == [0] * 5


def test_values_that_are_not_finite(backend, device):
    rows = torch.tensor([[float("nan"), 0.0], [3e30, 3e30], [float("inf"), 0.0], [0.9, 1.2]], device=device)
    codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]], device=device)
    assert nearest_code(rows, codebook, backend=backend).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("layout", ["transposed", "part of rows", "part of channels", "expanded", "channels of images"])
def test_layouts(layout, backend, make):
    wide, _ = make(96, 1, 5)
    _, codebook = make(1, 41, 5)
    rows, codes = {
        "transposed": (wide.t().contiguous().t(), codebook.t().contiguous().t()),
        "part of rows": (wide[3:], codebook[::2]),
        "part of channels": (wide[:, 1:4], codebook[:, 2:]),
        "expanded": (wide[:1].expand(7, 5), codebook),
        "channels of images": (wide.view(2, 5, 6, 8).permute(0, 2, 3, 1).flatten(0, 2), codebook),
    }[layout]
    assert torch.equal(nearest_code(rows, codes, backend=backend), nearest_code_reference(rows, codes))


def test_float64_is_eager(make):
    rows, codebook = make(dtype=torch.float64)
    assert torch.equal(nearest_code(rows, codebook), torch.cdist(rows, codebook).argmin(1))


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_kernels_are_not_for_float64(backend, make):
    if reason := supports(backend, *make()):
        pytest.skip(reason)
    rows, codebook = make(dtype=torch.float64)
    assert "float64" in supports(backend, rows, codebook)
    with pytest.raises(BackendError, match=f"{backend} cannot take .*float64"):
        nearest_code(rows, codebook, backend=backend)


def test_reference_in_chunks(make, monkeypatch):
    rows, codebook = make(50, 41, 3)
    whole = nearest_code_reference(rows, codebook)
    for chunk in (1, 41 * 3 * 7):
        monkeypatch.setattr("ld3m.ops.nearest_code._CHUNK", chunk)
        assert torch.equal(nearest_code_reference(rows, codebook), whole)


@given(st.integers(0, 200), st.integers(1, 100), st.integers(1, 9), st.integers(0, 2**31))
def test_any_size(num_rows, num_codes, dim, seed):
    draw = torch.Generator().manual_seed(seed)
    rows, codebook = (torch.randn(n, dim, generator=draw) for n in (num_rows, num_codes))
    assert_exact_up_to_rounding(nearest_code(rows, codebook), rows, codebook)


def test_same_result_twice_and_with_more_threads(backend, make):
    rows, codebook = make(300, 97, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 3):
            torch.set_num_threads(threads)
            results.append(nearest_code(rows, codebook, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_indices_have_no_gradient(backend, make):
    rows, codebook = make()
    assert not nearest_code(rows.requires_grad_(), codebook.requires_grad_(), backend=backend).requires_grad


def test_opcheck(backend, make):
    for shape in ((9, 41, 3), (0, 5, 2)):
        torch.library.opcheck(_nearest_code, (*make(*shape), backend))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, make, dynamic):
    rows, codebook = make()
    compiled = torch.compile(
        lambda rows, codebook: codebook[nearest_code(rows, codebook, backend=backend)],
        fullgraph=True,
        backend="aot_eager",
        dynamic=dynamic,
    )
    assert torch.equal(compiled(rows, codebook), codebook[nearest_code_reference(rows, codebook)])


def test_refuses_functorch(make):
    rows, codebook = make()
    with pytest.raises(BackendError, match=r"torch\.func"):
        torch.func.vmap(lambda row: nearest_code(row[None], codebook))(rows)


def test_refuses_wrong_inputs(make):
    rows, codebook = make()
    for wrong in (codebook[:, :2], codebook[:0], codebook[0]):
        with pytest.raises(InputError, match=r"rows \(N, D\) and a codebook \(K, D\).* permute\(0, 2, 3, 1\)"):
            nearest_code(rows, wrong)
    with pytest.raises(InputError, match="K and D at least 1"):
        nearest_code(rows[:, :0], codebook[:, :0])
    for wrong in (codebook.double(), codebook.to("meta")):
        with pytest.raises(InputError, match=r"a codebook of their dtype and device, got .* cast or move"):
            nearest_code(rows, wrong)
    with pytest.raises(InputError, match="float rows"):
        nearest_code(rows.int(), codebook.int())


@pytest.mark.parametrize("dim", [3, 64])
def test_compiles_to_machine_code(dim, machine_code):
    from ld3m.kernels.nearest_code import BLOCK_K, BLOCK_N, nearest_code_fwd_kernel

    signature = {"rows": "*fp32", "codebook": "*fp32", "indices": "*i64", "num_rows": "i32", "num_codes": "i32"}
    constants = {"DIM": dim, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    assert machine_code(nearest_code_fwd_kernel, signature, constants)["cubin"]
