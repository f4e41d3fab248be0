"""What an evaluation protocol is: how a network is trained on a small set, and after which epochs it is tested."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ld3m.config import check_epochs, one_of
from ld3m.data.normalizations import NORMALIZATIONS
from ld3m.errors import ConfigError
from ld3m.evaluation.augmentation import AUGMENTATIONS
from ld3m.networks import base_name

# Networks that train as another one does where a protocol says nothing of them
_LIKE = {
    "ConvNet-6": "ConvNet", "ConvNetBN": "ConvNet", "ResNet18BN": "ResNet18", "ResNet50BN": "ResNet18",
    "ResNet18Large": "ResNet18", "ResNetAP-10": "ResNet18",
}  # fmt: skip


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
        tests: of `TESTS`: after which epochs the test is done. The last one is reported, the best one beside it.
        tested: how many epochs "last" tests.
        adapts: of `ADAPTATIONS`: what follows from the set, such as the epochs from its images per class.
        doubled: numbers of classes with which batches by images per class are twice as large.
        normalization: "data" for mean and standard deviation of the training data, or a name of `NORMALIZATIONS`.
        frames: the black border of 28 px images is at the mean, which is zero for the networks, and grey images have
            one channel.
        test_zoom: test images are read at resolution // 7 * 8 pixels, and their centre is cut out.
        source: publication and code that this follows.
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
    tests: str = "last"
    tested: int = 1
    adapts: str = "none"
    doubled: tuple[int, ...] = (100,)
    normalization: str = "data"
    frames: bool = False
    test_zoom: bool = False
    source: str = ""
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {"optimiser": ("sgd", "adamw"), "schedule": SCHEDULES, "augmentation": AUGMENTATIONS}
        known |= {"labels": ("hard", "soft"), "dtype": ("float32", "bfloat16"), "tests": TESTS, "adapts": ADAPTATIONS}
        known |= {"normalization": ("data", *NORMALIZATIONS)}
        for name, words in known.items():
            one_of(getattr(self, name), name, tuple(words))
        if self.augmentation == "crop-jitter-cutmix" and self.normalization != "imagenet":
            raise ConfigError("augmentation 'crop-jitter-cutmix' needs normalization 'imagenet', in which it is made")

    def for_set(self, images_per_class: int, num_classes: int, resolution: int) -> "Protocol":
        """Return the protocol as it is published for sets of that size."""
        return ADAPTATIONS[self.adapts](self, images_per_class, num_classes, resolution)

    def tested_epochs(self, epochs: int) -> frozenset[int]:
        """Return the epochs of a training, 0-based, after which the test is done; the last one is among them."""
        return frozenset({*TESTS[self.tests](epochs, self.tested), epochs - 1})

    def with_own(self, names: Sequence[str]) -> "Protocol":
        """Return the protocol with recipes for the user's own networks, said among the deviations."""
        unknown = [name for name in names if name not in self.recipes]
        if not unknown:
            return self
        pattern = next(
            (name for name in ("ResNet18", *self.networks) if name in self.recipes), next(iter(self.recipes))
        )
        recipes = {**self.recipes, **dict.fromkeys(unknown, self.recipe(pattern))}
        said = f"{', '.join(unknown)}: no network of the protocol, trained by its recipe for {pattern}"
        return replace(self, recipes=recipes, deviations=(*self.deviations, said))

    def batch_size(self, num_images: int, num_classes: int) -> int:
        """Return the images of a step on a set; a set smaller than that is one batch."""
        if isinstance(self.batch, int):
            return min(self.batch, num_images)
        size = next(size for images_per_class, size in self.batch if num_images // num_classes >= images_per_class)
        return min(size * (2 if num_classes in self.doubled else 1), num_images)

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
        base = base_name(network)
        names = (network, base, _LIKE.get(base, base))
        recipe = next((self.recipes[name] for name in names if name in self.recipes), None)
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


def fifths(base: float, epoch: int, epochs: int) -> float:
    """Return the rate in force during an epoch, 0-based: a fifth from 2/3 of the epochs on, a fifth of it from 5/6."""
    return base * 0.2 ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6))


def tenth(base: float, epoch: int, epochs: int) -> float:
    """Return the rate in force during an epoch, 0-based, of E + 1: a tenth after the epoch E // 2 + 1."""
    return base * 0.1 ** (epoch > (epochs - 1) // 2 + 1)


SCHEDULES = {"rise-and-fall": learning_rate, "half-cosine": half_cosine, "fifths": fifths, "tenth": tenth}

# By name: the epochs that are tested, 0-based, of a training of so many, of which "last" tests as many as it is told
TESTS: dict[str, Callable[[int, int], Sequence[int]]] = {
    "last": lambda epochs, count: range(max(0, epochs - count), epochs),
    "hundredths": lambda epochs, _: range(max(1, epochs // 100) - 1, epochs, max(1, epochs // 100)),
    "last-fifth": lambda epochs, _: [e for e in range(9, epochs, 10) if e > 0.8 * epochs],
}


def _by_size_of_set(protocol: Protocol, images_per_class: int, num_classes: int, resolution: int) -> Protocol:
    """Gu et al. 2024: epochs by images per class, two thirds of them at 100 classes; other rates above."""
    lengths = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
    epochs = next((length for most, length in lengths if images_per_class <= most), 300)
    if num_classes == 100:
        epochs = 2 * epochs // 3 // 100 * 100
    is_large = num_classes > 100
    recipes = {
        name: replace(recipe, epochs=epochs, rate=0.1 if is_large else recipe.rate)
        for name, recipe in protocol.recipes.items()
    }
    return replace(protocol, recipes=recipes, **({"weight_decay": 1e-4, "batch": 128} if is_large else {}))


def _by_size_of_image(protocol: Protocol, images_per_class: int, num_classes: int, resolution: int) -> Protocol:
    """Sun et al. 2024: small images are no tiles, and are not cut."""
    return protocol if resolution >= 128 else replace(protocol, augmentation="flip-cutmix")


ADAPTATIONS: dict[str, Callable[[Protocol, int, int, int], Protocol]] = {
    "none": lambda protocol, *_: protocol,
    "minimax": _by_size_of_set,
    "rded": _by_size_of_image,
}


def ema_decay(update: int, limit: float) -> float:
    """Return the weight of the old average at an update, 1-based: a plain mean until `limit` is reached.

    The law of ema-pytorch 0.8.3 with power 1; the first update copies.
    """
    return min(limit, 1 - 1 / update)
