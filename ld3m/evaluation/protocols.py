"""Evaluation protocols: how a network is trained on a small set before it is tested, once, after the last epoch."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ld3m.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """What is set for each network.

    Args:
        rate: the highest learning rate.
        ema_decay: limit of the decay of the average of the weights, which is updated once an epoch.
    """

    rate: float
    epochs: int
    ema_decay: float

    def __post_init__(self) -> None:
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 2:
            raise ConfigError(
                f"epochs is a whole number, at least 2 (one warms up, one cools down); got {self.epochs!r}"
            )

    def with_epochs(self, epochs: int, ema_scales: bool) -> "Recipe":
        """Return the recipe with another length; the half-life of the average is scaled along, or kept in epochs."""
        changed = replace(self, epochs=epochs)
        return replace(changed, ema_decay=self.ema_decay ** (self.epochs / epochs)) if ema_scales else changed


@dataclass(frozen=True)
class Protocol:
    """SGD with hard labels and DSA on every batch; an average of the weights over the epochs (EMA) is tested.

    Args:
        networks: evaluated when the caller names none.
        recipes: by network; a name without width suffix serves every width.
        batch: images per step, or all images where there are fewer.
        ema_scales: with other epochs the decay changes so that its half-life stays the same share of the training.
        deviations: where this differs from the published code, in words, for the report.
    """

    name: str
    networks: tuple[str, ...]
    recipes: Mapping[str, Recipe]
    batch: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema_scales: bool = False
    deviations: tuple[str, ...] = ()

    def with_epochs(self, epochs: int | None) -> "Protocol":
        """Return the protocol with another length, said among the deviations; None changes nothing."""
        own = sorted({recipe.epochs for recipe in self.recipes.values()})
        if epochs is None or own == [epochs]:
            return self
        recipes = {network: recipe.with_epochs(epochs, self.ema_scales) for network, recipe in self.recipes.items()}
        said = f"{epochs} epochs instead of {' / '.join(map(str, own))}"
        return replace(self, recipes=recipes, deviations=(*self.deviations, said))

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


def ema_decay(update: int, limit: float) -> float:
    """Return the weight of the old average at an update, 1-based: a plain mean until `limit` is reached.

    The law of ema-pytorch 0.8.3 with power 1; the first update copies.
    """
    return min(limit, 1 - 1 / update)


def base_name(network: str) -> str:
    """Return a network's name without width suffix: "AlexNet-w0.5" and "AlexNetCIFAR" are AlexNets."""
    return network.partition("-")[0].removesuffix("CIFAR")


def find(protocol: str | Protocol) -> Protocol:
    """Return a protocol by its name, or as it is.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        close = difflib.get_close_matches(str(protocol), PROTOCOLS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"protocol is one of {', '.join(PROTOCOLS)}; got {protocol!r}{hint}")
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
        network: Recipe(rate, epochs, _GLAD_DECAY ** (_GLAD_EPOCHS / epochs))
        for network, rate, epochs in (
            ("AlexNet", 0.01, 150),
            ("VGG11", 0.002, 60),
            ("ResNet18", 0.01, 60),
            ("ViT", 0.03, 150),
            ("ConvNet", 0.01, 60),
        )
    },
    ema_scales=True,
    deviations=(*_CLEAN, "short: few epochs, learning rates to match, and networks of half the width by default"),
)

PROTOCOLS = {protocol.name: protocol for protocol in (_GLAD_HARD, _QUICK)}
