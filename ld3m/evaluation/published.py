"""Published accuracies, shown beside ours where set, protocol and network are recognized.

A set is recognized by its pixels, rounded to 8 bits at 32 px; real images by the classes of a published subset. Figures
are as printed, in percent.
"""

from dataclasses import dataclass

import torch

from ld3m.data import Dataset
from ld3m.data.subsets import wnids_of
from ld3m.networks import base_name
from ld3m.runs.result import Result
from ld3m.runtime.fingerprints import fingerprint


@dataclass(frozen=True)
class Published:
    """An accuracy as printed, of a set of that digest, or of real images of a subset.

    Args:
        column: which of ours it stands beside: "last", or "best of n tests".
    """

    protocol: str
    network: str
    accuracy: float
    std: float | None
    source: str
    digest: str = ""
    subset: str = ""
    images_per_class: int = 0
    column: str = "last"


_DC = "Zhao et al. 2021 (DC), table 1, 1 image per class, all test images"
_MGD3 = "random real images in the tables of Chan-Santiago et al. 2025 (MGD3) and Gu et al. 2024 (Minimax), 224 px"
_RANDOM = {
    "imagenette": {10: 54.2, 20: 63.5, 50: 76.1},
    "imagewoof": {10: 29.4, 20: 32.7, 50: 47.2, 100: 59.4},
    "imageidc": {10: 48.1, 20: 52.5, 50: 68.1},
}
PUBLISHED = (
    Published("dc", "ConvNet", 70.5, 0.6, f"{_DC}, FashionMNIST", digest="622ac2563070c7a2"),
    Published("dc", "ConvNet", 28.3, 0.5, f"{_DC}, CIFAR10", digest="3e1ce066d92da4c0"),
    *(
        Published(
            "minimax-hard", "ResNetAP-10", accuracy, None, _MGD3, subset=subset, images_per_class=count,
            column="best of n tests",
        )
        for subset, figures in _RANDOM.items()
        for count, accuracy in figures.items()
    ),
)  # fmt: skip


def digest_of(result: Result) -> str:
    """Return what a set is recognized by: its pixels but for the two at each edge, which may be a border."""
    pixels = (result.images[..., 2:-2, 2:-2].clamp(0, 1) * 255).round().to(torch.uint8)
    return fingerprint((pixels, result.labels))[:16]


def published_for(
    protocol: str, result: Result, data: Dataset, name: str, network: str, *, is_own: bool
) -> dict[str, object] | None:
    """Return what is published for a row; None where nothing is known.

    Args:
        name: of the set in the row.
        is_own: whether it is the one that is judged, not real images beside it.
    """
    for known in PUBLISHED:
        if (known.protocol, known.network) != (protocol, base_name(network)) or network != known.network:
            continue
        fits = is_own and known.digest and known.digest == digest_of(result)
        is_random = name == "random" and known.subset and known.images_per_class == result.ipc
        if fits or (is_random and data.wnids == wnids_of(known.subset)):
            shown: dict[str, object] = {"accuracy": known.accuracy, "column": known.column, "source": known.source}
            return shown | ({"std": known.std} if known.std is not None else {})
    return None
