"""One op alone: instance norm, ReLU and pooling in one pass, beside its definition in plain torch.

python examples/one_op.py
"""

import torch

from ld3m.ops.backends import describe
from ld3m.ops.instance_norm_relu_pool import instance_norm_relu_pool, instance_norm_relu_pool_reference

if __name__ == "__main__":
    for backend, found in describe().items():
        print(f"{backend}: {found}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 32, 16, 16, generator=generator, requires_grad=True)
    weight, bias = torch.rand(32, generator=generator), torch.rand(32, generator=generator)
    cotangent = torch.randn(16, 32, 8, 8, generator=generator)

    out = instance_norm_relu_pool(x, weight, bias)  # (16, 32, 16, 16) -> (16, 32, 8, 8), by the first backend that can
    expected = instance_norm_relu_pool_reference(x, weight, bias)
    (gradient,) = torch.autograd.grad(out, x, cotangent)
    (expected_gradient,) = torch.autograd.grad(expected, x, cotangent)
    print(f"largest difference {(out - expected).abs().max().item():.1e}")
    print(f"largest difference of gradients {(gradient - expected_gradient).abs().max().item():.1e}")
