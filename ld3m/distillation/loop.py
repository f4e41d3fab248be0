"""The loop: iterate, log, checkpoint, resume; then render, save, evaluate and report."""

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from ld3m.config import DistillConfig
from ld3m.config.keywords import DistillKeywords, keywords_of
from ld3m.distillation.job import Job, objective_of, prepare
from ld3m.distillation.objectives import Objective, rows_of
from ld3m.errors import CheckpointError, MemoryBudgetError, NumericsError
from ld3m.evaluation.finish import finish
from ld3m.memory.plan import Plan, size_text
from ld3m.runs.facts import measured
from ld3m.runs.page import draw_curves
from ld3m.runs.result import PARAMETERS, Result
from ld3m.runtime import seeds
from ld3m.runtime.devices import is_out_of_memory, release_memory
from ld3m.runtime.progress import progress_bar, time_text

logger = logging.getLogger(__name__)

_MOMENTUM = 0.5
_CHECKPOINT_SECONDS = 5.0
_BUDGET = "budget"  # in a checkpoint: what was planned with after memory ran out, so that a resumed run does the same


@keywords_of(DistillConfig)
def distill(
    data: object = "builtin",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Unpack[DistillKeywords],
) -> Result:
    """Distil a data set into a few images per class and, as the protocol says, evaluate them.

    Args:
        data: "builtin", an ImageFolder directory or zip, an (images, labels) pair of tensors, a map-style Dataset of
            (image, label), or a `datasets.Dataset`.
        out: folder for config, metrics, checkpoints, images and report; None keeps the result in memory only.
        resume: go on with the run in `out`; settings that are given must be the stored ones, but iterations, of which
            more may be asked for: the run is then what it would have been with them from the start.
        overwrite: replace the run in `out`.
        progress: show a progress bar.
        **settings: fields of `ld3m.config.DistillConfig`; what is not given comes from the preset, or on `resume` from
            the stored run.

    Returns:
        The distilled set. The same seed on the same CPU gives the same bytes, interrupted or not.

    Raises:
        ConfigError: settings that are unknown, contradict each other, or differ from those of the resumed run.
        DataError: data that cannot be read or is too small.
        NumericsError: a loss or gradient is not finite; the last good state is in the checkpoint.
        MemoryBudgetError: memory runs out with the smallest plan; likewise.
    """
    started = time.perf_counter()
    job = prepare(data, settings, out=out, resume=resume, overwrite=overwrite, progress=progress)
    with job.folder or nullcontext():
        loop = _Loop(job, objective_of(job, progress))
        if loop.iteration < job.config.iterations:
            if job.folder is not None:
                job.folder.prolong(job.data_name, job.config)
            loop.run(progress)
        result = _render(replace(job, plan=loop.plan))
        if job.folder is None:
            return result
        facts = measured(
            job.device,
            seed=job.config.seed,
            seconds=time.perf_counter() - started,
            seconds_per_iteration=loop.seconds_per_iteration,
            iterations=job.config.iterations,
            plan=None if loop.plan is None else loop.plan.facts(),
        )
        run, is_new = job.ended(), loop.seconds_per_iteration is not None
        if is_new:
            job.folder.drop_evaluations()
        result.save(job.folder.path)
        job.folder.forget_previous()
        draw_curves(job.folder.path)
        del job, loop  # what they have on the device, captured graphs among it, gives way to the evaluation
        release_memory(run.device)
        finish(run, facts, is_new=is_new, progress=progress)
        return result


class _Loop:
    """The optimiser, its state on disk, and the iterations."""

    def __init__(self, job: Job, objective: Objective) -> None:
        self.job, self.objective, self.plan = job, objective, job.plan
        self.iteration, self.seconds_per_iteration = 0, None
        rates = {"codes": job.config.lr_codes}
        learnt = {name: p for name, p in job.space.parameters.items() if p.requires_grad}
        groups = [(name, p, rates.get(name, job.config.lr)) for name, p in learnt.items()]
        groups += objective.parameters
        self.parameters = {name: parameter for name, parameter, _ in groups}
        self.optimizer = torch.optim.SGD(
            [{"params": [parameter], "lr": lr} for _, parameter, lr in groups], lr=job.config.lr, momentum=_MOMENTUM
        )
        if job.folder is not None and job.folder.is_resumed and (stored := job.folder.load_checkpoint()) is not None:
            self._restore(job.folder.path, *stored)

    def run(self, progress: bool) -> None:
        """Iterate to the end; whatever stops it, the last whole iteration is kept."""
        job, first, started = self.job, self.iteration, time.perf_counter()
        good, saved_at, second = self._state(), started, started
        last = job.config.iterations
        bar = progress_bar(range(first, last), "distilling", initial=first, total=last, show=progress, unit="it")
        self._say_what_comes(first)
        try:
            for iteration in bar:
                line = self._iterate(iteration)
                bar.set_postfix(loss=f"{line['loss']:.4g}")
                if job.folder is not None:
                    job.folder.log(line)  # before the state counts: a line too many is dropped on resume
                good, self.iteration = self._state(), iteration + 1
                if iteration == first + 1:  # the first one also pays for what is made once
                    self._say_how_long(time.perf_counter() - second, last - first - 2)
                second = time.perf_counter()
                if job.folder is not None and time.perf_counter() - saved_at > _CHECKPOINT_SECONDS:
                    job.folder.save_checkpoint(self.iteration, good)
                    saved_at = time.perf_counter()
        finally:
            bar.close()
            if job.folder is not None:
                job.folder.save_checkpoint(self.iteration, good)
        self.seconds_per_iteration = (time.perf_counter() - started) / (self.iteration - first)

    def _say_what_comes(self, first: int) -> None:
        config, count = self.job.config, len(self.job.dataset.class_names) * self.job.config.ipc
        memory = "" if self.plan is None else f", {size_text(self.plan.peak_bytes)} of memory at most"
        then = "" if config.evaluate == "none" else f", then the evaluation {config.evaluate!r}"
        where = "" if self.job.folder is None else f" in {self.job.folder.path}"
        logger.info(
            "to come: %d iterations%s, %d images of %d px%s%s",
            config.iterations - first, memory, count, config.resolution, where, then,
        )  # fmt: skip

    def _say_how_long(self, seconds: float, left: int) -> None:
        if left > 0:
            logger.info("about %s for %d more iterations of %.2g s", time_text(seconds * left), left, seconds)

    def _iterate(self, iteration: int) -> dict[str, object]:
        started = time.perf_counter()
        loss = self._backward(iteration)
        while loss is None:
            self._plan_less(iteration)
            loss = self._backward(iteration)
        norms = {f"grad_norm_{name}": _grad_norm(p) for name, p in self.parameters.items()}
        _require_finite({"loss": loss, **norms}, iteration)
        self.optimizer.step()
        self.job.space.project()
        _require_finite({name: float(p.detach().abs().max()) for name, p in self.parameters.items()}, iteration)
        return {"iteration": iteration, "loss": loss, **norms, "seconds": round(time.perf_counter() - started, 4)}

    def _backward(self, iteration: int) -> float | None:
        """Compute the iteration's gradients, all of its draws anew, and its loss; None when memory runs out."""
        self.optimizer.zero_grad()
        try:
            with seeds.scoped_global_rng(self.job.config.seed, "dropout", iteration):
                return self.objective.backward(iteration)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error, self.plan.peak_bytes if self.plan else 0):
                raise
            logger.debug("iteration %d", iteration, exc_info=error)
        return None

    def _plan_less(self, iteration: int) -> None:
        """Free what is left of an iteration that ran out of memory, and plan with less."""
        self.optimizer.zero_grad()
        plan = None if self.plan is None else self.plan.smaller()
        if plan is None:
            needed = "" if self.plan is None else f" for what was planned, {size_text(self.plan.peak_bytes)}"
            raise MemoryBudgetError(
                f"{self.job.device} ran out of memory in iteration {iteration}: there is not enough{needed}; the state "
                "before it is kept. Free what other programs hold, or start anew with a lower memory_budget, ipc, "
                "resolution or real_batch, or dtype bfloat16"
            )
        logger.warning("out of memory in iteration %d; it is repeated with less: %s", iteration, plan)
        self._apply_plan(plan)
        release_memory(self.job.device)

    def _apply_plan(self, plan: Plan) -> None:
        self.plan = plan
        self.objective.apply_plan(plan)

    def _state(self) -> dict[str, Tensor]:
        state = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                state[f"momentum/{name}"] = buffer.clone()
        if self.plan is not None and self.plan != self.job.plan:
            state[_BUDGET] = torch.tensor(self.plan.budget_bytes)
        return state

    @torch.no_grad()
    def _restore(self, folder: Path, iteration: int, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(
                    f"the checkpoint in {folder} is damaged: its {name} holds NaN or infinite values; restore it from "
                    "a copy, or start again with --overwrite"
                )
        for name, parameter in self.parameters.items():
            if name not in tensors or tensors[name].shape != parameter.shape:
                raise CheckpointError(
                    f"the checkpoint in {folder} has no {name} of shape {tuple(parameter.shape)}; the "
                    "data or prior changed since. Start again with --overwrite"
                )
            parameter.copy_(tensors[name])
            if (buffer := tensors.get(f"momentum/{name}")) is not None and buffer.shape == parameter.shape:
                self.optimizer.state[parameter] = {"momentum_buffer": buffer.to(parameter)}
        if _BUDGET in tensors and tensors[_BUDGET].numel() == 1 and self.plan is not None:
            self._apply_plan(self.plan.within(int(tensors[_BUDGET])))
        self.iteration = min(iteration, self.job.config.iterations)
        logger.info("going on after iteration %d of %d", iteration, self.job.config.iterations)


def _grad_norm(parameter: Tensor) -> float:
    assert parameter.grad is not None  # every parameter takes part in the loss
    return float(parameter.grad.norm())


def _require_finite(values: dict[str, float], iteration: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise NumericsError(
                f"{name.replace('_', ' ')} is {value} in iteration {iteration}; the state before it is kept. "
                "Lower lr, or look at the data for values out of range"
            )


@torch.no_grad()
def _render(job: Job) -> Result:
    """Render the final images, with a noise draw of their own."""
    dataset, config = job.dataset, job.config
    labels = torch.arange(dataset.train.num_classes)
    groups = [rows_of(part, config.ipc) for part in labels.split(job.plan.classes_in_flight if job.plan else 16)]
    images = [job.space.render(rows.to(job.device), ("final",)).float().cpu() for rows in groups]
    return Result(
        images=torch.cat(images),
        labels=labels.repeat_interleave(config.ipc),
        class_names=tuple(dataset.class_names),
        parameters={name: p.detach().cpu() for name, p in job.space.parameters.items() if name in PARAMETERS},
        config=job.stored_settings(),
        mean=dataset.mean,
        std=dataset.std,
        path=None if job.folder is None else job.folder.path,
    )
