"""The memory plan of the spaces of a latent diffusion model.

An iteration renders a group of n images, matches them, and back-propagates. With K the activations kept from the chain,
S the states of its steps and H what the decoder keeps, the most that is held is the largest of

    the chain, forward            K + S + one micro-batch
    decoding                      K + S + H + one batch of the decoder, forward
    matching                      K + S + H + the real images, and the network on them or on the synthetic ones
    the decoder, backward         K + S + H + one batch of the decoder, backward
    the chain, backward, kept     K + S + one micro-batch's gradients
    ... and recomputed            S + one micro-batch, forward and backward

on top of what is always there. As CUDA graphs, all evaluations that are kept, and one micro-batch that is not, hold
throughout what they take in their backward pass. `costs` counts each part on a few images; they grow with the number of
images. The network meets the synthetic images of all classes in flight at once, the real ones in chunks: of one class
in gradient matching, whose gradient then stays until all are matched. What is compiled is counted as if it ran eager.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from ld3m.config import one_of
from ld3m.errors import ConfigError
from ld3m.matching import LOSSES
from ld3m.memory.costs import Costs, Workload, count_costs
from ld3m.memory.plan import Plan, budget_of, even_size, images_in_flight, real_chunks, size_text
from ld3m.priors import Prior

# Forward passes that an evaluation and its backward pass cost, its activations kept or not (counted, cin256's shape).
_KEPT, _RECOMPUTED = 2.01, 3.01

# Copies of a synthetic image that wait while others are made: rendered, normalised, augmented, its gradient.
_COPIES = 4


def plan_memory(
    prior: Prior,
    *,
    resolution: int,
    steps: int,
    ipc: int,
    num_classes: int,
    algorithm: str,
    budget: str | int | None = None,
    guidance_scale: float = 3.0,
    network: str = "ConvNet",
    width: int | None = None,
    real_batch: int = 256,
    student_steps: int = 20,
    latent_size: int | None = None,
    retain: float | None = None,
) -> Plan:
    """Choose what is kept, evaluated and decoded at once so that all that ld3m allocates on the device fits a budget.

    Of the plans that fit, the one with the fewest calls of the denoiser, then the fastest. It depends on the arguments
    and on the kernels of the prior's device alone. Gradient and feature matching stream classes; trajectory matching
    needs all images at once.

    Args:
        prior: on the device that is planned for, or on the meta device.
        resolution: of the images, in pixels; divisible by the first stage's factor where `latent_size` is not given.
        steps: T of the chain; 0 for no chain.
        budget: "8GB" or bytes, weights included; 0.8 of a GPU's memory or a quarter of the machine's when None.
        network, width: what is matched.
        real_batch: real images per class.
        student_steps: of trajectory matching.
        latent_size: side of the latents, where decoded images are resized to `resolution`.
        retain: the fraction to retain, if that is not to be chosen.

    Raises:
        ConfigError: an argument is out of range, or not even the smallest plan fits.
    """
    work = Workload(
        resolution=resolution,
        steps=steps,
        ipc=ipc,
        num_classes=num_classes,
        algorithm=algorithm,
        real_batch=real_batch,
        guidance_scale=guidance_scale,
        network=network,
        width=width,
        student_steps=student_steps,
        latent_size=latent_size,
    )
    return plan_work(prior, work, budget, retain)


def plan_work(prior: Prior, work: Workload, budget: str | int | None, retain: float | None) -> Plan:
    """Choose the plan as `plan_memory` does."""
    one_of(work.algorithm, "algorithm", tuple(LOSSES))
    for name in ("resolution", "ipc", "num_classes", "steps", "real_batch", "student_steps"):
        count, least = getattr(work, name), 0 if name == "steps" else 1
        if count < least:
            raise ConfigError(f"{name} is a whole number, at least {least}; got {count!r}")
    if work.latent_size is None:
        prior.require_resolution(work.resolution)
    if not work.is_streamed:
        work = replace(work, real_batch=0)
    planner = DiffusionPlanner(count_costs(prior, work), work, images_in_flight(prior.device), retain)
    return planner.plan(budget_of(budget, prior.device))


@dataclass(frozen=True)
class DiffusionPlanner:
    """Planner of the spaces of a latent diffusion model.

    Args:
        most_images: that a call of the denoiser takes.
    """

    costs: Costs
    work: Workload
    most_images: int
    retain: float | None = None

    def plan(self, budget: int) -> Plan:
        """Return the plan of `plan_memory` within a budget in bytes; raise where not even the smallest fits."""
        smallest = self.smallest
        if smallest.peak_bytes > budget:
            raise ConfigError(
                f"memory_budget of {size_text(budget)} does not hold the smallest plan, which needs "
                f"{size_text(smallest.peak_bytes)}, {size_text(self.costs.resident)} of it for weights and states; "
                "raise it, or lower ipc or resolution, or take dtype bfloat16"
            )
        for only_large_chunks in (True, False):
            for level in self._levels:
                filled = (self._fill(plan, budget, only_large_chunks) for plan in level)
                best = min((plan for plan in filled if plan is not None), key=_preference, default=None)
                if best is not None:
                    return replace(best, budget_bytes=budget)
        raise AssertionError("the smallest plan is among those looked at")

    @cached_property
    def smallest(self) -> Plan:
        classes = 1 if self.work.is_streamed else self.work.num_classes
        chunk = 1 if self.costs.cuts_real_batch else None
        return self._rated(Plan(self.retain or 0.0, 1, classes, 1, chunk))

    def _rated(self, plan: Plan) -> Plan:
        return replace(
            plan,
            peak_bytes=_peak(self.costs, self.work, plan),
            saved_bytes=_peak(self.costs.saved_only(), self.work, plan),
            slow_down=_slow_down(self.costs, self.work, plan),
            planner=self,
        )

    @cached_property
    def _levels(self) -> list[list[Plan]]:
        """Plans with nothing retained and the real batch whole, by calls of the denoiser in a step, fewest first."""
        work = self.work
        levels: dict[int, list[Plan]] = {}
        classes = {work.num_classes}
        if work.is_streamed:
            classes = _even_sizes(work.num_classes, max(1, self.most_images // work.ipc))
        for in_flight in sorted(classes):
            images = in_flight * work.ipc
            sizes = _even_sizes(images, self.most_images)
            for micro_batch in sorted(sizes) if work.steps else [images]:
                calls = math.ceil(work.num_classes / in_flight) * math.ceil(images / micro_batch)
                plans = [Plan(0.0, micro_batch, in_flight, batch, None) for batch in (None, *sizes)]
                levels.setdefault(calls, []).extend(plans)
        return [levels[calls] for calls in sorted(levels)]

    def _fill(self, plan: Plan, budget: int, only_large_chunks: bool) -> Plan | None:
        """Retain as much as fits, then cut the real batch no further than it needs; None when nothing fits."""

        def fits(retain: float, chunk: int | None) -> bool:
            return _peak(self.costs, self.work, replace(plan, retain=retain, real_chunk=chunk)) <= budget

        chunks = list(self._chunks(plan, only_large_chunks))
        fractions = [k / 100 for k in range(101 if self.work.steps else 1)] if self.retain is None else [self.retain]
        retain = fractions.pop()
        if not fits(retain, chunks[-1]):  # the peak grows up to there, where nothing is recomputed any more
            fitting = bisect_left(fractions, True, key=lambda fraction: not fits(fraction, chunks[-1]))
            if not fitting:
                return None
            retain = fractions[fitting - 1]
        chunk = next(chunk for chunk in chunks if fits(retain, chunk))
        return self._rated(replace(plan, retain=retain, real_chunk=chunk))

    def _chunks(self, plan: Plan, only_large: bool) -> Iterable[int | None]:
        size = self.work.real_batch * (plan.classes_in_flight if self.work.joins_classes else 1)
        return real_chunks(size, self.costs.real_map, only_large=only_large) if self.costs.cuts_real_batch else [None]


def _preference(plan: Plan) -> tuple[float, ...]:
    """Order plans of equally many calls of the denoiser, the best first.

    The peak comes last: what a larger budget gains was out of the reach of the smaller one, so its peak is higher.
    """
    decoder_batch, chunk = (-(size or math.inf) for size in (plan.decoder_batch, plan.real_chunk))
    return plan.slow_down, decoder_batch, chunk, plan.peak_bytes, plan.micro_batch, plan.classes_in_flight


def _slow_down(costs: Costs, work: Workload, plan: Plan) -> float:
    """Predict the time of chain and decoder over that with everything kept, by their operations."""
    chain, decoding = work.steps * costs.chain.flops, costs.decoding.flops
    took = chain * (plan.retain * _KEPT + (1 - plan.retain) * _RECOMPUTED)
    took += decoding * (_KEPT if plan.decoder_batch is None else _RECOMPUTED)
    return took / (_KEPT * (chain + decoding))


def _peak(costs: Costs, work: Workload, plan: Plan) -> int:
    """Return the most bytes of all phases of an iteration, as in the module's text."""
    images = plan.classes_in_flight * work.ipc
    chain, decoding = costs.chain, costs.decoding
    phases, kept, num_evaluations = [], 0, work.steps * images
    if work.steps:
        num_kept = round(plan.retain * num_evaluations)
        passing = min(plan.micro_batch, num_evaluations - num_kept)
        kept, block = num_kept * chain.held, min(plan.micro_batch, num_kept)
        phases += [
            images * costs.quantising,
            kept + max(plan.micro_batch * costs.chain_free, block * (chain.forward - chain.held)),
            kept + block * (chain.peak - chain.held),
            passing * chain.peak,
        ]
        if costs.is_graphed:
            kept = (num_kept + passing) * chain.peak
            phases += [kept]
    if plan.decoder_batch is None:
        decoded = images * decoding.held
        phases += [kept + images * decoding.peak]
    else:
        decoded = images * 2 * costs.picture
        phases += [kept + decoded + plan.decoder_batch * max(costs.decoding_free, decoding.peak)]
    return (
        costs.resident
        + num_evaluations * costs.latent
        + images * _COPIES * costs.picture
        + max(*phases, kept + decoded + _matching(costs, work, plan))
    )


def _matching(costs: Costs, work: Workload, plan: Plan) -> int:
    """Return the most bytes that matching takes: stacking the real images, and either side of the network."""
    joined = plan.classes_in_flight if work.joins_classes else 1
    real = work.real_batch * costs.picture
    chunk = min(plan.real_chunk or math.inf, joined * work.real_batch)
    sides = max(costs.real(chunk), costs.synthetic(plan.classes_in_flight)) + plan.classes_in_flight * costs.gradients
    return plan.classes_in_flight * real + max(plan.classes_in_flight * real, sides)


def _even_sizes(total: int, most: int) -> set[int]:
    return {even_size(total, size) for size in range(1, min(total, most) + 1)}
