"""The bytes of the sets of a comparison."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ld3m.evaluation.comparison import Comparison

_SLACK = 1e-3  # of a grey level


def storage_bytes(comparison: "Comparison") -> dict[str, dict[str, int]]:
    """Return the bytes of each set, by part: pixels of 8 bits as bytes, what was distilled in its dtype.

    With soft labels also those of the teacher's answers, as if stored in half precision for every epoch of the longest
    training.
    """
    result = comparison.result
    parts = {"images": result.images, "labels": result.labels, **result.parameters}
    own = {name: tensor.nbytes for name, tensor in parts.items()}
    if _has_8_bits(result.images):
        own["images"] = result.images.numel()
    real = {"images": result.images.numel(), "labels": result.labels.nbytes}
    storage = {comparison.sets[0]: own, **{name: dict(real) for name in comparison.choices}}
    for name, found in storage.items():
        if (weights := comparison.weights_and_tiles(name)[0]) is not None:
            found["weights"] = weights.nbytes
        if comparison.teacher:
            epochs = max(comparison.protocol.recipe(network).epochs for network in comparison.networks)
            found["soft_labels"] = 2 * len(result.labels) * len(comparison.counts) * epochs
    return storage


def _has_8_bits(images: Tensor) -> bool:
    levels = images * 255
    return bool(((levels - levels.round()).abs() < _SLACK).all())
