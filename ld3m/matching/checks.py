"""The contract of the matching losses' image arguments, checked at their door, or told when the network fails."""

import contextlib
from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ld3m.errors import InputError
from ld3m.matching.gradient import sees_whole_batches


def check_classes(function: str, network: nn.Module, real: Tensor | Sequence[Tensor], synthetic: Tensor) -> None:
    """Raise InputError unless both are (C, images, 3, H, W), of the same classes and of the dtype of the network.

    Classes with unequally many real images come as a sequence of C tensors (images, 3, H, W).
    """
    reals = [real] if isinstance(real, Tensor) else [images[None] for images in real]
    for name, images in (*(("real", images) for images in reals), ("synthetic", synthetic)):
        if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
            raise InputError(
                f"{function} needs {name} as (classes, images, 3, H, W), none of them 0, got {tuple(images.shape)}; "
                "reshape flat images with .unflatten(0, (classes, images))"
            )
        check_dtype(function, network, name, images)
    for images in reals:
        if len(real) != len(synthetic) or images.shape[2:] != synthetic.shape[2:]:
            raise InputError(
                f"{function} needs real and synthetic images of the same classes and size, "
                f"got {(len(real), *images.shape[1:])} and {tuple(synthetic.shape)}"
            )


def check_dtype(function: str, network: nn.Module, name: str, images: Tensor) -> None:
    """Raise InputError unless the images have the dtype and device of the network's weights."""
    weight = next(network.parameters())
    if (images.dtype, images.device) != (weight.dtype, weight.device):
        raise InputError(
            f"{function} needs {name} like the network's weights, {weight.dtype} on {weight.device}, "
            f"got {images.dtype} on {images.device}; convert one of them with .to(...)"
        )


@contextlib.contextmanager
def clear_network_errors(
    function: str, network: nn.Module, images: Tensor, labels: Tensor | None = None
) -> Generator[None]:
    """Raise InputError in place of what torch raises in the block for images or labels that the network does not take.

    What it takes only a pass can tell, so that it is asked when one has failed. On a GPU a label out of range does not
    raise in the block, and to look for it would wait for the device.

    Args:
        network: what the block calls on images.
        images: (..., 3, H, W).
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        height, width = images.shape[-2:]
        try:
            logits = _logits_without_data(network, images)
        except NotImplementedError:  # of an operation that does not run without data
            raise error from None
        except RuntimeError as misfit:
            raise InputError(
                f"{function} got images of {height}x{width} pixels, which the network does not take "
                f"({str(misfit).splitlines()[0][:150]}); resize them, or build the network for their resolution"
            ) from error
        if isinstance(error, IndexError) and labels is not None:
            num_classes = logits.shape[-1]
            if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
                raise InputError(
                    f"{function} needs labels from 0 to {num_classes - 1}, the classes of the network; "
                    f"got {int(labels.min())} to {int(labels.max())}; number the classes from 0, or build the network "
                    "for all of them"
                ) from error
        raise


def _logits_without_data(network: nn.Module, images: Tensor) -> Tensor:
    state = {name: t.to("meta") for name, t in [*network.named_parameters(), *network.named_buffers()]}
    with torch.no_grad():
        return functional_call(network, state, (images.new_empty(2, *images.shape[-3:], device="meta"),))


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
