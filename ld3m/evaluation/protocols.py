"""Evaluation protocols: how a network is trained on a small set before it is tested, once, after the last epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ld3m.config import check_epochs, one_of
from ld3m.errors import ConfigError
from ld3m.evaluation.augmentation import AUGMENTATIONS
from ld3m.networks import base_name


@dataclass(frozen=True)
class Recipe:
    """Settings of the training of one network.

    Args:
        rate: the highest learning rate.
        ema_decay: limit of the decay of the average of the weights, which is updated once an epoch; 0 keeps no average.
        max_gradient_norm: gradients of a step of a larger norm, over all weights, are scaled down to it; None leaves
            them as they are.
    """

    rate: float
    epochs: int
    ema_decay: float
    max_gradient_norm: float | None = None

    def __post_init__(self) -> None:
        check_epochs(self.epochs, "epochs")

    def with_epochs(self, epochs: int, ema_scales: bool) -> "Recipe":
        """Return the recipe with another length; the half-life of the average is scaled along, or kept in epochs."""
        changed = replace(self, epochs=epochs)
        return replace(changed, ema_decay=self.ema_decay ** (self.epochs / epochs)) if ema_scales else changed


@dataclass(frozen=True)
class Protocol:
    """The training of the networks: by default SGD with hard labels and DSA on every batch; an average of the weights
    over the epochs (EMA) is tested.

    Args:
        networks: evaluated when the caller names none.
        recipes: by network; a name without width suffix serves every width.
        batch: images per step, or by images per class: the first (images per class, batch) that the set reaches; all
            images where there are fewer.
        optimiser: "sgd" with momentum, or "adamw", which decays only weights of more than one axis.
        schedule: of `SCHEDULES`.
        augmentation: of `AUGMENTATIONS`.
        ema_scales: with other epochs the decay changes so that its half-life stays the same share of the training.
        labels: "hard", or "soft": a teacher's answers to the augmented images of every batch.
        temperature: divides the logits of teacher and student for soft labels. Gradients fall with its square, which
            AdamW does not mind; at 1, rates that were found for hard labels fit.
        dtype: of the layers in training: "float32", or "bfloat16" for what autocast takes into it. Weights, their
            averages, losses and tests stay in float32.
        tested: last epochs after each of which the test is done. The last one is reported, the best one beside it.
        deviations: where this differs from the published code, in words, for the report.
    """

    name: str
    networks: tuple[str, ...]
    recipes: Mapping[str, Recipe]
    batch: int | tuple[tuple[int, int], ...] = 256
    optimiser: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "rise-and-fall"
    augmentation: str = "dsa"
    ema_scales: bool = False
    labels: str = "hard"
    temperature: float = 1.0
    dtype: str = "float32"
    tested: int = 1
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {"optimiser": ("sgd", "adamw"), "schedule": SCHEDULES, "augmentation": AUGMENTATIONS}
        known |= {"labels": ("hard", "soft"), "dtype": ("float32", "bfloat16")}
        for name, words in known.items():
            one_of(getattr(self, name), name, tuple(words))

    def batch_size(self, num_images: int, num_classes: int) -> int:
        """Return the images of a step on a set; a set smaller than that is one batch."""
        if isinstance(self.batch, int):
            return min(self.batch, num_images)
        size = next(size for images_per_class, size in self.batch if num_images // num_classes >= images_per_class)
        return min(size * (2 if num_classes == 100 else 1), num_images)

    def with_epochs(self, epochs: int | None) -> "Protocol":
        """Return the protocol with another length, said among the deviations; None changes nothing."""
        own = sorted({recipe.epochs for recipe in self.recipes.values()})
        if epochs is None or own == [epochs]:
            return self
        recipes = {network: recipe.with_epochs(epochs, self.ema_scales) for network, recipe in self.recipes.items()}
        said = f"{epochs} epochs instead of {' / '.join(map(str, own))}"
        return replace(self, recipes=recipes, deviations=(*self.deviations, said))

    def with_labels(self, labels: str | None) -> "Protocol":
        """Return the protocol with "hard" or "soft" labels, said among the deviations; None changes nothing."""
        if labels in (None, self.labels):
            return self
        said = f"{labels} labels instead of {self.labels}"
        if labels == "soft":
            said += f", at temperature {self.temperature:g}"
        return replace(self, labels=labels, deviations=(*self.deviations, said))

    def with_dtype(self, dtype: object) -> "Protocol":
        """Return the protocol with trainings in another precision, given as a torch dtype or by name and said among the
        deviations; None changes nothing."""
        dtype = None if dtype is None else str(dtype).removeprefix("torch.")
        if dtype in (None, self.dtype):
            return self
        said = f"trainings in {dtype} instead of {self.dtype}"
        return replace(self, dtype=dtype, deviations=(*self.deviations, said))

    def recipe(self, network: str) -> Recipe:
        """Return the recipe of a network.

        Raises:
            ConfigError: there is none for it.
        """
        recipe = self.recipes.get(network, self.recipes.get(base_name(network)))
        if recipe is None:
            raise ConfigError(
                f"protocol {self.name!r} has no recipe for network {network!r}; it knows {', '.join(self.recipes)}, "
                "each also with a width suffix like -w0.5"
            )
        return recipe


def learning_rate(base: float, epoch: int, epochs: int) -> float:
    """Return the rate in force during an epoch, 0-based: a linear rise over the first half, then a cosine.

    The peak holds for two epochs and the last epoch's rate is above 0: what the chain of LinearLR (from 1e-7 of the
    base) and CosineAnnealingLR of the published code comes to.
    """
    half = epochs // 2
    if epoch <= half:
        return base * (1e-7 + (1 - 1e-7) * epoch / half)
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - half - 1) / half))


def half_cosine(base: float, epoch: int, epochs: int) -> float:
    """Return the rate in force during an epoch, 0-based: a cosine that stops half way down, at half of the base."""
    return base * 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))


SCHEDULES = {"rise-and-fall": learning_rate, "half-cosine": half_cosine}


def ema_decay(update: int, limit: float) -> float:
    """Return the weight of the old average at an update, 1-based: a plain mean until `limit` is reached.

    The law of ema-pytorch 0.8.3 with power 1; the first update copies.
    """
    return min(limit, 1 - 1 / update)


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
_RDED = Protocol(
    name="rded",
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
        "the last epoch counts; the best of the last nine by test accuracy, as published, is the column best_epoch",
        "the batch follows from the images per class of the set; the published runs all have that of ten",
        "networks with instance norm, and test images at their own size, not a crop of a larger one",
        "every repeat has weights and draws of its own; the published five share one seed, set once",
    ),
)

PROTOCOLS = {protocol.name: protocol for protocol in (_GLAD_HARD, _QUICK, _RDED)}
