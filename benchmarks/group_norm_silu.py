"""Group normalisation with SiLU at the shapes of the frozen U-Net and decoder, against the two eager operations."""

from collections.abc import Iterator

import torch

from ld3m.ops.group_norm_silu import group_norm_silu, group_norm_silu_reference

GROUPS = 32
SHAPES = {
    "cpu": [(20, 64, 16, 16), (20, 128, 8, 8)],
    "gpu": [
        *((20, 192, 32, 32), (20, 384, 16, 16), (20, 960, 8, 8), (20, 192, 64, 64)),  # U-Net, 128 px and 256 px
        *((10, 512, 32, 32), (10, 128, 128, 128), (10, 128, 256, 256)),  # decoder
    ],
    "smoke": [(2, 64, 4, 4)],
}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare: forward alone, and with the input gradient."""
    draw = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if suite == "gpu" else torch.float32
    for shape in SHAPES[suite]:
        x, cotangent = torch.randn(2, *shape, generator=draw)
        weight, bias = torch.randn(2, shape[1], generator=draw).to(device, dtype)
        x, cotangent = (t.to(device, dtype, memory_format=torch.channels_last) for t in (x, cotangent))

        def forward(function, x=x, weight=weight, bias=bias):
            return function(x, GROUPS, weight, bias)

        def full(function, x=x, weight=weight, bias=bias, cotangent=cotangent):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(function(x, GROUPS, weight, bias), x, cotangent)[0]

        for mode, run, passes in (("fwd", forward, 2), ("fwd+bwd", full, 5)):
            yield {
                "name": f"group_norm_silu/{'x'.join(map(str, shape))}",
                "mode": mode,
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "against": "eager",
                "ours": lambda run=run: run(group_norm_silu),
                "baseline": lambda run=run: run(group_norm_silu_reference),
                "bytes": passes * x.numel() * x.element_size(),
            }
