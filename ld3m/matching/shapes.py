"""The contract of the matching losses' image arguments, checked at their door."""

from torch import Tensor, nn

from ld3m.errors import InputError
from ld3m.matching.gradient import sees_whole_batches


def check_classes(function: str, network: nn.Module, real: Tensor, synthetic: Tensor) -> None:
    """Raise InputError unless both are (C, images, 3, H, W), of the same classes and of the dtype of the network."""
    for name, images in (("real", real), ("synthetic", synthetic)):
        if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
            raise InputError(
                f"{function} needs {name} as (classes, images, 3, H, W), none of them 0, got {tuple(images.shape)}; "
                "reshape flat images with .unflatten(0, (classes, images))"
            )
        check_dtype(function, network, name, images)
    if real.shape[0] != synthetic.shape[0] or real.shape[2:] != synthetic.shape[2:]:
        raise InputError(
            f"{function} needs real and synthetic images of the same classes and size, "
            f"got {tuple(real.shape)} and {tuple(synthetic.shape)}"
        )


def check_dtype(function: str, network: nn.Module, name: str, images: Tensor) -> None:
    """Raise InputError unless the images have the dtype and device of the network's weights."""
    weight = next(network.parameters())
    if (images.dtype, images.device) != (weight.dtype, weight.device):
        raise InputError(
            f"{function} needs {name} like the network's weights, {weight.dtype} on {weight.device}, "
            f"got {images.dtype} on {images.device}; convert one of them with .to(...)"
        )


def check_chunk(function: str, network: nn.Module, real_chunk: int | None) -> None:
    """Raise InputError unless cutting the real images into chunks leaves the result as it is."""
    if real_chunk is None:
        return
    if real_chunk < 1:
        raise InputError(f"{function} needs real_chunk as at least 1 image, got {real_chunk!r}")
    if sees_whole_batches(network):
        raise InputError(
            f"{function} got real_chunk={real_chunk} and a network with batch norm or active dropout, whose results "
            "depend on what is in a batch; leave real_chunk out, or take the network's eval mode"
        )
