"""Whether kernels run where torch's do: in the same context, on the stream that is current."""

import pytest
import torch
from torch import Tensor

from ld3m.ops.backends import missing
from ld3m.ops.gradient_distance import distances_and_directions
from ld3m.ops.group_norm_silu import group_norm_silu
from ld3m.ops.instance_norm_relu_pool import instance_norm_relu_pool
from ld3m.ops.nearest_code import nearest_code
from ld3m.ops.reverse_step import reverse_step

OPS = {
    "reverse_step": lambda x, **options: reverse_step(x, x.flip(0), x, a=0.9, b=0.1, d=0.2, **options),
    "nearest_code": lambda x, **options: nearest_code(x.flatten(0, 2), x[0, 0], **options),
    "instance_norm_relu_pool": lambda x, **options: instance_norm_relu_pool(x, x[0, :, 0, 0], x[1, :, 0, 0], **options),
    "group_norm_silu": lambda x, **options: group_norm_silu(x, 4, x[0, :, 0, 0], x[1, :, 0, 0], **options),
    "gradient_distance": lambda x, **options: distances_and_directions(
        [x.flatten(1)[None]], [x.flatten(1).flip(0)[None]], **options
    )[0],
}
NATIVE = ("reverse_step", "nearest_code", "instance_norm_relu_pool")


@pytest.mark.parametrize("op", OPS)
def test_the_calls_are_right(op):
    x = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(OPS[op](x), OPS[op](x, backend="eager"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are a GPU's")
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("op", OPS)
def test_an_op_waits_for_what_comes_before_on_its_stream_and_no_longer(op, backend):
    """The input is ready only after a long product on the same stream, and is overwritten right after the call."""
    if backend == "native" and op not in NATIVE:
        pytest.skip(f"{op} has no native kernel")
    if reason := missing(backend, torch.empty(0, device="cuda")):
        pytest.skip(reason)
    source = torch.randn(64, 8, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()
    long = torch.randn(4096, 4096, device="cuda")
    wanted = OPS[op](source + 1, backend="eager")
    OPS[op](source, backend=backend)  # compiled before the race

    def race() -> Tensor:
        x = torch.zeros_like(source)
        for _ in range(20):
            long @ long
        x.copy_(source)
        x += 1
        found = OPS[op](x, backend=backend)
        x.fill_(float("nan"))
        return found + 0

    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = race()
    stream.synchronize()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
