"""The table of protocols, each as published, with where it comes from and what differs."""

from dataclasses import replace

from ld3m.config import one_of
from ld3m.evaluation.protocol import SCHEDULES as SCHEDULES
from ld3m.evaluation.protocol import Protocol, Recipe
from ld3m.evaluation.protocol import ema_decay as ema_decay
from ld3m.evaluation.protocol import half_cosine as half_cosine
from ld3m.evaluation.protocol import learning_rate as learning_rate
from ld3m.networks import base_name as base_name


def find(protocol: str | Protocol) -> Protocol:
    """Return a protocol by its name, or as it is.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    one_of(protocol, "protocol", PROTOCOLS)
    return PROTOCOLS[protocol]


_CLEAN = (
    "real and distilled images are normalised by one mean and standard deviation, those of the training data",
    "test images are resized with antialiasing, before they are normalised",
    "the distilled images are fixed, not generated anew for every repeat",
    "± is the sample standard deviation over repeats",
    "nothing is chosen by test accuracy: the last iteration of the distillation, the last epoch of each training",
)

_GLAD_EPOCHS, _GLAD_DECAY = 1000, 0.995
_GLAD_HARD = Protocol(
    name="glad-hard",
    networks=("AlexNet", "VGG11", "ResNet18", "ViT"),
    recipes={
        network: Recipe(rate, _GLAD_EPOCHS, _GLAD_DECAY)
        for network, rate in {"AlexNet": 1e-3, "VGG11": 1e-4, "ResNet18": 1e-3, "ViT": 1e-3, "ConvNet": 1e-3}.items()
    },
    source="Cazenavette et al. 2023 (GLaD), Moser et al. 2024 (LD3M)",
    deviations=_CLEAN,
)

# Rates and epochs were found on random real images alone: benchmarks/tune_quick.py, figures in benchmarks/NOTES.md.
_QUICK = Protocol(
    name="quick",
    networks=("AlexNet-w0.5", "VGG11-w0.5", "ResNet18-w0.5"),
    recipes={
        network: Recipe(rate, epochs, _GLAD_DECAY ** (_GLAD_EPOCHS / epochs), max_gradient_norm)
        for network, rate, epochs, max_gradient_norm in (
            ("AlexNet", 0.01, 300, 5.0),  # it has no norms, and diverges on photographs when left alone
            ("VGG11", 0.002, 60, None),
            ("ResNet18", 0.01, 60, None),
            ("ViT", 0.03, 150, None),
            ("ConvNet", 0.01, 60, None),
        )
    },
    ema_scales=True,
    deviations=(
        *_CLEAN,
        "short: few epochs, learning rates to match, and networks of half the width by default",
        "gradients of AlexNet, which has no norms, are clipped to norm 5: without, it diverges on photographs",
    ),
)

# RDED (Sun et al. 2024) as D3HR uses it; 300 epochs are its ImageNet-1K and Tiny-ImageNet, CIFAR has 400.
_D3HR = Protocol(
    name="d3hr",
    source="Zhao et al. 2025 (D3HR), after Sun et al. 2024 (RDED)",
    networks=("ConvNet", "ResNet18"),
    recipes={
        network: Recipe(rate, 300, 0.0)
        for network, rate in {"ConvNet": 1e-3, "ResNet18": 1e-3, "VGG11": 5e-4, "AlexNet": 1e-4, "ViT": 1e-4}.items()
    },
    batch=((50, 100), (10, 50), (0, 15)),
    optimiser="adamw",
    weight_decay=0.01,
    schedule="half-cosine",
    augmentation="crop-cutmix",
    labels="soft",
    temperature=20.0,
    tested=9,
    deviations=(
        *_CLEAN,
        "the last epoch counts; the best of the last nine by test accuracy, as published, stands beside it",
        "the batch follows from the images per class of the set; the published runs all have that of ten",
        "networks with instance norm, and test images at their own size, not a crop of a larger one",
        "every repeat has weights and draws of its own; the published five share one seed, set once",
    ),
)

_HARD = (*_CLEAN[:1], *_CLEAN[3:4], "every repeat has weights and draws of its own, from its seed")

# Code of 969fc6f, which evaluates as Kim et al. 2022 (IDC) do
_MINIMAX_HARD = Protocol(
    name="minimax-hard",
    source="Gu et al. 2024 (Minimax Diffusion), github.com/vimar-gu/MinimaxDiffusion, train.py of 969fc6f",
    networks=("ResNetAP-10", "ConvNet-6", "ResNet18Large"),
    recipes={name: Recipe(0.01, 2000, 0.0) for name in ("ConvNet", "ResNet18", "AlexNet", "VGG11", "ViT")},
    batch=64,
    schedule="fifths",
    augmentation="crop-jitter-cutmix",
    tests="hundredths",
    adapts="minimax",
    normalization="imagenet",
    deviations=(
        *_HARD[1:],
        "images are resampled once, by Lanczos, to the resolution of the evaluation (published: 224 px, bilinear)",
        "the column that is published is the best of all tests by test accuracy; the last test is the one to trust",
        "trainings that diverge are repeated at half the rate",
    ),
)

_DC = Protocol(
    name="dc",
    source="Zhao et al. 2021 (DC), github.com/VICO-UoE/DatasetCondensation, evaluate_synset",
    networks=("ConvNet",),
    recipes={name: Recipe(0.01, 301, 0.0) for name in ("ConvNet", "AlexNet", "VGG11", "ResNet18", "ViT")},
    schedule="tenth",
    augmentation="none",
    frames=True,
    deviations=(
        *_HARD,
        "28 px images get 2 pixels of the mean all around instead of 2 more of padding in the first convolution",
        "the momentum is kept where the rate falls",
    ),
)

# DSA and DM test with the same code and their own augmentation, for longer
_DSA = replace(
    _DC,
    name="dsa",
    source="Zhao and Bilen 2021 (DSA) and 2023 (DM), github.com/VICO-UoE/DatasetCondensation, evaluate_synset",
    recipes={name: replace(recipe, epochs=1001) for name, recipe in _DC.recipes.items()},
    augmentation="dsa",
)

_RDED = Protocol(
    name="rded",
    source="Sun et al. 2024 (RDED), github.com/LINs-lab/RDED, validation/main.py of 3f6453d",
    networks=("ResNet18BN",),
    recipes={
        network: Recipe(rate, 300, 0.0)
        for network, rate in {"ConvNet": 1e-3, "ResNet18": 1e-3, "VGG11": 5e-4, "AlexNet": 1e-4, "ViT": 1e-4}.items()
    },
    batch=((50, 100), (10, 50), (0, 10)),
    doubled=(100, 1000),
    optimiser="adamw",
    weight_decay=0.01,
    schedule="half-cosine",
    augmentation="tiles-cutmix",
    labels="soft",
    temperature=20.0,
    tests="last-fifth",
    adapts="rded",
    normalization="imagenet",
    test_zoom=True,
    deviations=(
        *_HARD[1:],
        "the published column is the best of the tests by test accuracy (6 at 300 epochs); the last stands beside it",
        "the teacher is one of ld3m teacher; published ones are torchvision's, trained on ImageNet",
        "tiles are 2 x 2 from 128 px on; smaller images are not cut, as published for CIFAR",
    ),
)

PROTOCOLS = {protocol.name: protocol for protocol in (_GLAD_HARD, _QUICK, _D3HR, _MINIMAX_HARD, _DC, _DSA, _RDED)}
