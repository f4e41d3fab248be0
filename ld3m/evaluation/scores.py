"""Scores of DD-Ranking: what a distilled set is worth beyond its teacher (lrs) and beyond its augmentation (ars).

With accuracies as fractions, hard label recovery is that of the full real set minus that of the distilled one, both
with hard labels (small is good), and improvement over random is that of the distilled set minus that of random real
images of the same number. Then

    label-robust         alpha = 1/2 improvement - 1/2 recovery
    augmentation-robust  alpha = 1/2 improvement with augmentation + 1/2 improvement without

and the score is (e^alpha - 1/e) / (e - 1/e), in [0, 1]. Unlike DD-Ranking's own code, which takes percent, the best
epoch and the best of five learning rates on the test set: fractions, the protocol's one rate and the last epoch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ld3m.errors import ConfigError
from ld3m.evaluation.protocols import Protocol
from ld3m.evaluation.runner import Training
from ld3m.runs.report import SCORES

FULL = "full"  # the set of all real training images


def label_robust(improvement: float, recovery: float) -> float:
    return normalized(0.5 * improvement - 0.5 * recovery)


def augmentation_robust(improvement: float, plain_improvement: float) -> float:
    return normalized(0.5 * improvement + 0.5 * plain_improvement)


def normalized(alpha: float) -> float:
    """Map alpha in [-1, 1] to [0, 1]."""
    return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


def check(names: Sequence[str], baselines: Sequence[str]) -> None:
    """Raise ConfigError for an unknown score, or where there are no random real images to compare with."""
    if unknown := [name for name in names if name not in SCORES]:
        raise ConfigError(f"scores are of {', '.join(SCORES)}; got {unknown[0]!r}")
    if names and "random" not in baselines:
        raise ConfigError(f"{names[0]} compares with random real images; keep 'random' among the baselines")


def variant(protocol: Protocol, name: str, full_epochs: int) -> Protocol:
    """Return the protocol of a variant: its "own", with "hard" labels, "plain" without augmentation, or the "full" set
    with hard labels."""
    match name:
        case "hard":
            return replace(protocol, labels="hard", tests="last", tested=1)
        case "plain":
            return replace(protocol, augmentation="none", tests="last", tested=1)
        case "full":
            return replace(protocol, labels="hard", tests="last", tested=1).with_epochs(full_epochs)
    return protocol


def trainings(names: Sequence[str], labels: str, distilled: str, network: str, repeats: int) -> list[Training]:
    """Return the trainings that the scores of a network need beyond those of the protocol."""
    needed = []
    if "lrs" in names:
        needed.append(Training(FULL, network, 0, "full"))
        if labels == "soft":
            needed += [Training(distilled, network, repeat, "hard") for repeat in range(repeats)]
    if "ars" in names:
        sets = (distilled, "random")
        needed += [Training(name, network, repeat, "plain") for name in sets for repeat in range(repeats)]
    return needed


def score(name: str, accuracy: Callable[[Training], float], labels: str, own: Training) -> float:
    """Return a score of one repeat.

    Args:
        accuracy: of a training, in percent; NaN, which makes the score NaN, where it diverged.
        own: the training on the distilled set by the protocol itself.
    """

    def improvement(kind: str) -> float:
        distilled, random = (replace(own, set=of, variant=kind) for of in (own.set, "random"))
        return (accuracy(distilled) - accuracy(random)) / 100

    if name == "ars":
        return augmentation_robust(improvement("own"), improvement("plain"))
    hard = replace(own, variant="hard" if labels == "soft" else "own")
    recovery = (accuracy(replace(own, set=FULL, repeat=0, variant="full")) - accuracy(hard)) / 100
    return label_robust(improvement("own"), recovery)
