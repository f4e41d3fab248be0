"""Trainings that diverge are no results: the rule by which their network is trained again at a lower rate."""

from collections.abc import Mapping
from dataclasses import replace

from ld3m.evaluation.protocols import Protocol
from ld3m.evaluation.runner import Training

MOST_HALVINGS = 3  # a rate goes down to an eighth; what diverges still is reported as such
Accuracies = list[float] | None  # after each tested epoch; None where the training diverged


def at_halved_rate(protocol: Protocol, network: str, times: int) -> Protocol:
    """Return the protocol with a network's rate halved so often."""
    recipe = protocol.recipe(network)
    return replace(protocol, recipes={**protocol.recipes, network: replace(recipe, rate=recipe.rate / 2**times)})


def halved(trainings: list[Training], outcomes: Mapping[Training, Accuracies]) -> set[str]:
    """Return the networks of which a training diverged at a rate that may be halved once more.

    All their trainings are done again, whatever the set: sets that were trained on at different rates say nothing of
    each other.
    """
    return {t.network for t in trainings if t.halvings < MOST_HALVINGS and outcomes.get(t, ()) is None}
