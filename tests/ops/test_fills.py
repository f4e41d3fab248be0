"""Whether backward passes fill tensors that nobody reads."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ld3m.ops.group_norm_silu import group_norm_silu
from ld3m.ops.instance_norm_relu_pool import instance_norm_relu_pool

OPS = {
    "instance_norm_relu_pool": lambda x, weight, bias: instance_norm_relu_pool(x, weight, bias),
    "group_norm_silu": lambda x, weight, bias: group_norm_silu(x, 4, weight.detach(), bias.detach()),
}


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", OPS)
def test_a_backward_pass_makes_no_zeros_for_statistics(op):
    x, weight, bias = (torch.randn(*size, requires_grad=True) for size in ((2, 8, 4, 4), (8,), (8,)))
    result = OPS[op](x, weight, bias)
    with _Operations() as count:
        torch.autograd.grad(result, x, torch.ones_like(result))
    assert count.names[f"{op}_bwd"] == 1
    assert not {"zeros", "zeros_like", "new_zeros", "zero_", "full", "fill_"} & set(count.names)
