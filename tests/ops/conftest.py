"""What the tests of all ops share: the backends, the measure of their error, NaN in memory that nobody wrote."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from ld3m.ops.backends import BACKENDS, HAS_TRITON, INTERPRET, missing


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=BACKENDS)
def backend(request, device) -> str:
    """Each backend that is there for float32 tensors on `device`; the op's own `supports` may refuse more."""
    if reason := missing(request.param, torch.empty(0, device=device)):
        pytest.skip(reason)
    return request.param


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """Let torch.empty give NaN (or the largest integer), so that an output that was not written shows up."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(scope="session")
def assert_as_good_as_eager() -> Callable[..., None]:
    """Bound the error of `got` by twice that of `eager`, with a small floor for what eager does exactly.

    `exact` is the reference in float64 on the same (already rounded) inputs.
    """

    def check(got: Tensor, eager: Tensor, exact: Tensor, floor: float = 1e-6) -> None:
        assert got.shape == eager.shape and got.dtype == eager.dtype
        if got.numel():
            error, allowed = ((t.double() - exact).abs().max().item() for t in (got, eager))
            scale = max(1.0, exact.abs().max().item())
            assert error <= 2 * allowed + floor * scale, f"error {error:.2e}, eager has {allowed:.2e}"

    return check


@pytest.fixture(params=[80, 90])
def machine_code(request) -> Callable[..., dict[str, str | bytes]]:
    """Compile a Triton kernel for compute capability 8.0 and 9.0, no GPU needed; return its forms by name.

    Pointers and 32-bit integers of the signature are taken to be multiples of 16, as they mostly are.
    """
    if not HAS_TRITON or INTERPRET:
        pytest.skip("Triton is not installed, or interprets: compiled in the run without the interpreter")
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def build(kernel, signature: dict[str, str], constants: dict[str, object]) -> dict[str, str | bytes]:
        kinds = {key: "constexpr" if key in constants else signature[key] for key in kernel.arg_names}
        aligned = [(k,) for k, kind in enumerate(kinds.values()) if kind[0] == "*" or kind == "i32"]
        source = ASTSource(kernel, kinds, constants, {key: [["tt.divisibility", 16]] for key in aligned})
        options = {"num_warps": 4, "enable_fp_fusion": True}
        return compile(source, target=GPUTarget("cuda", request.param, 32), options=options).asm

    return build
