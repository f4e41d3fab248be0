"""Instance norm, ReLU and pooling at the maps of ConvNets on real batches, against the three eager operations."""

from collections.abc import Iterator

import torch

from ld3m.ops.instance_norm_relu_pool import instance_norm_relu_pool, instance_norm_relu_pool_reference

SHAPES = {
    "cpu": [
        (16, 128, 64, 64),
        (64, 128, 32, 32),
        (64, 128, 16, 16),
        (64, 128, 8, 8),
    ],  # the last three: 64 images of 32 px
    "gpu": [(64, 128, 256, 256), (256, 128, 128, 128), (256, 128, 64, 64), (256, 128, 32, 32), (256, 128, 8, 8)],
    "smoke": [(2, 4, 8, 8)],
}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare: forward alone, and with all gradients."""
    draw = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if suite == "gpu" else torch.float32
    for shape in SHAPES[suite]:
        B, C, H, W = shape
        x = torch.randn(shape, generator=draw).to(device, dtype)
        weight, bias = (t.to(device, dtype) for t in (torch.ones(C), torch.zeros(C)))
        cotangent = torch.randn(B, C, H // 2, W // 2, generator=draw).to(device, dtype)

        def forward(function, x=x, weight=weight, bias=bias):
            return function(x, weight, bias)

        def full(function, x=x, weight=weight, bias=bias, cotangent=cotangent):
            inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
            grads = torch.autograd.grad(function(*inputs), inputs, cotangent)
            return grads[1:]  # of the input's, a pixel within rounding of the ReLU's kink may differ wholly

        for mode, run, passes in (("fwd", forward, 1.25), ("fwd+bwd", full, 3.5)):
            yield {
                "name": f"instance_norm_relu_pool/{'x'.join(map(str, shape))}",
                "mode": mode,
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "against": "eager",
                "ours": lambda run=run: run(instance_norm_relu_pool),
                "baseline": lambda run=run: run(instance_norm_relu_pool_reference),
                "bytes": int(passes * x.numel() * x.element_size()),
            }
