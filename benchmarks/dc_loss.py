"""Gradient matching of one class and of ten, with its gradient at the images, against the released code's way.

`dc_loss/compiled` compiles the synthetic side; `first_call_s` of its row is what that took.
"""

from collections.abc import Iterator

import torch

from benchmarks import released_losses
from ld3m import networks
from ld3m.matching import dc_loss

SHAPES = {  # resolution, width, real images, classes
    "cpu": [(32, 128, 64, 1), (32, 128, 64, 10)],
    "gpu": [(32, 128, 256, 10), (128, 128, 256, 10)],
    "smoke": [(16, 8, 4, 2)],
}


def cases(suite: str, device: str) -> Iterator[dict]:
    """Yield what to time and compare: the loss and its gradient at one synthetic image a class."""
    draw = torch.Generator().manual_seed(0)
    for resolution, width, num_real, num_classes in SHAPES[suite]:
        network = networks.build("ConvNet", num_classes=10, resolution=resolution, width=width, generator=draw)
        network = network.to(device)
        real = torch.randn(num_classes, num_real, 3, resolution, resolution, generator=draw).to(device)
        synthetic = torch.randn(num_classes, 1, 3, resolution, resolution, generator=draw).to(device).requires_grad_()
        labels = torch.arange(num_classes, device=device)

        def ours(is_compiled, network=network, real=real, synthetic=synthetic, labels=labels):
            losses = dc_loss(network, real, synthetic, labels, compile=is_compiled)
            return torch.autograd.grad(losses.sum(), synthetic)[0]

        def baseline(network=network, real=real, synthetic=synthetic, labels=labels):
            classes = ((label, lambda images: images, images) for label, images in zip(labels, real, strict=True))
            return released_losses.class_gradient("dc", network, classes, synthetic.flatten(0, 1), 1)[:, None]

        for is_compiled in (False, True) if num_classes == 10 else (False,):
            yield {
                "name": f"dc_loss{'/compiled' if is_compiled else ''}/{num_classes}-class-{resolution}px",
                "mode": "fwd+bwd",
                "shape": (num_classes, num_real, 3, resolution, resolution),
                "dtype": "float32",
                "against": "released code, eager",
                "ours": lambda is_compiled=is_compiled, ours=ours: ours(is_compiled),
                "baseline": baseline,
                # A pixel within rounding of a ReLU's kink moves its channel's gradient; TF32 rounds to 10 bits.
                "tolerance": 0.2 if suite == "gpu" else 2e-2,
                "runs": {"cpu": 8, "gpu": 20, "smoke": 1}[suite],
            }
