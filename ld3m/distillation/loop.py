"""The loop: iterate, log, checkpoint, resume; then render, save, evaluate and report."""

import itertools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from ld3m.config import DistillConfig
from ld3m.config.keywords import DistillKeywords, keywords_of
from ld3m.distillation.job import Job, objective_of, prepare
from ld3m.distillation.objectives import Objective
from ld3m.distillation.optimizer import Descent
from ld3m.errors import CheckpointError, MemoryBudgetError, NumericsError
from ld3m.evaluation.finish import finish
from ld3m.matching import LOSSES
from ld3m.memory.plan import Plan, planned, size_text
from ld3m.runs.facts import measured
from ld3m.runs.page import draw_curves
from ld3m.runs.result import PARAMETERS, Result
from ld3m.runtime import processes, seeds
from ld3m.runtime.devices import is_out_of_memory, release_memory
from ld3m.runtime.progress import progress_bar, time_text
from ld3m.runtime.signals import HeldBack

logger = logging.getLogger(__name__)

_MOMENTUM = 0.5
_CHECKPOINT_SECONDS = 5.0
_CHECKPOINT_SHARE = 50  # times what writing the last one took, at least, from one to the next
_NUMBERS_AT_ONCE = 2**22
_Line = tuple[dict[str, object], bool]  # for the metrics, and whether a checkpoint follows
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
        objective = objective_of(job, progress)
        loop = _Loop(job, objective)
        if loop.iteration < job.config.iterations:
            if job.folder is not None:
                job.folder.prolong(job.data_name, job.config)
            loop.run(progress)
        result = _render(job, objective.groups)
        if job.path is None:
            return result
        facts = measured(
            job.device,
            seed=job.config.seed,
            seconds=time.perf_counter() - started,
            seconds_per_iteration=loop.seconds_per_iteration,
            iterations=job.config.iterations,
            plan=None if loop.plan is None else loop.plan.facts(),
        )
        run, path, is_new = job.ended(), job.path, loop.seconds_per_iteration is not None
        if job.folder is not None:
            if is_new:
                job.folder.drop_evaluations()
            result.save(path)
            job.folder.forget_previous()
            draw_curves(path)
        del job, loop, objective  # what they have on the device, captured graphs among it, gives way to the evaluation
        release_memory(run.device)
        finish(run, path, facts, is_new=is_new, progress=progress)
        return result


class _Loop:
    """The optimiser, its state on disk, and the iterations."""

    def __init__(self, job: Job, objective: Objective) -> None:
        self.job, self.objective, self.plan = job, objective, job.plan
        self.seconds_per_iteration: float | None = None
        self._signals = HeldBack(processes.world_size() > 1)
        rates = {} if job.config.lr_codes is None else {"codes": job.config.lr_codes}
        learnt = {name: p for name, p in job.space.parameters.items() if p.requires_grad}
        groups = [(name, p, rates.get(name, job.config.lr)) for name, p in learnt.items()]
        groups += objective.parameters
        self._is_shared = [LOSSES[job.config.algorithm].is_streamed, *(name in learnt for name, *_ in groups)]
        self.optimizer = Descent(groups, _MOMENTUM)
        self.parameters = self.optimizer.parameters
        folder = job.folder
        stored = processes.from_main(
            lambda: folder.load_checkpoint() if folder is not None and folder.is_resumed else None, "read a checkpoint"
        )
        if stored is not None:
            self._restore(job.path or Path(), *stored)

    @property
    def iteration(self) -> int:
        """Return how many iterations are done."""
        return self.optimizer.iterations

    def run(self, progress: bool) -> None:
        """Iterate to the end; whatever stops it, the last whole iteration is kept."""
        with self._signals:
            self._run(progress)

    def _run(self, progress: bool) -> None:
        job, first, started = self.job, self.iteration, time.perf_counter()
        saved_at, second, last = started, started, job.config.iterations
        bar = progress_bar(range(first, last), "distilling", initial=first, total=last, show=progress, unit="it")
        self._say_what_comes(first)
        is_alone = processes.world_size() == 1
        has_ended_everywhere, patience = is_alone, _CHECKPOINT_SECONDS
        try:
            for iteration in bar:
                try:
                    is_due = time.perf_counter() - saved_at > patience
                    line, is_due = self._iterate(iteration, is_due=is_due)
                except _EndedEverywhere as end:
                    has_ended_everywhere = True
                    raise end.reason from end.reason.__cause__
                bar.set_postfix(loss=f"{line['loss']:.4g}")
                if job.folder is not None:
                    job.folder.log(line)  # before the state counts: a line too many is dropped on resume
                self.optimizer.keep(iteration + 1)
                if iteration == first + 1:  # the first one also pays for what is made once
                    self._say_how_long(time.perf_counter() - second, last - first - 2)
                second = time.perf_counter()
                if is_due:
                    writing = time.perf_counter()
                    self._save()
                    saved_at = time.perf_counter()
                    patience = max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * (saved_at - writing))
            has_ended_everywhere = True
        finally:
            bar.close()
            if has_ended_everywhere:  # else others are gone, and would be waited for
                self._save()
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

    def _iterate(self, iteration: int, *, is_due: bool = False) -> _Line:
        """Do an iteration in all processes; again with less where memory runs out in one.

        Args:
            is_due: whether this process, if it is the main one, wants a checkpoint afterwards.

        Raises:
            _EndedEverywhere: it failed or was interrupted in one process, and ends in all.
        """
        started, names = time.perf_counter(), list(self.parameters)
        while True:
            values, error = self._signals.attempt(lambda: self._step(iteration))
            if error is not None and is_out_of_memory(error, self.plan.peak_bytes if self.plan else 0):
                logger.debug("iteration %d", iteration, exc_info=error)
                error = MemoryError(str(error))  # without the traceback, which holds on to tensors
            rows, error = processes.exchange([is_due, *(values or [0.0] * (1 + len(names)))], error)
            if error is None:
                break
            self.optimizer.undo()  # what others could not do
            if not isinstance(error, MemoryError):
                raise _EndedEverywhere(error)
            try:
                self._plan_less(iteration)
            except MemoryBudgetError as refused:
                raise _EndedEverywhere(refused) from None
        loss, *norms = _combined([row[1:] for row in rows], self._is_shared)
        line = {"iteration": iteration, "loss": loss}
        line |= {f"grad_norm_{name}": norm for name, norm in zip(names, norms, strict=True)}
        return {**line, "seconds": round(time.perf_counter() - started, 4)}, bool(rows[0][0])

    def _step(self, iteration: int) -> list[float]:
        """Step along the iteration's gradient, all of its draws anew; return the loss and each parameter's norm."""
        self.optimizer.zero_grad()
        with seeds.scoped_global_rng(self.job.config.seed, "dropout", iteration):
            loss = self.objective.backward(iteration)
        norms = [_grad_norms(p) for p in self.parameters.values()]
        self.optimizer.step()
        self.job.space.project()
        largest = [torch.linalg.vector_norm(p.detach(), math.inf) for p in self.parameters.values()]
        # The only time in an iteration that a device is waited for.
        found = iter(torch.cat([part.double().flatten() for part in (loss, *norms, *largest)]).tolist())
        values = [next(found), *(math.hypot(*itertools.islice(found, len(parts))) for parts in norms)]
        names = list(self.parameters)
        _require_finite(zip(("loss", *(f"grad_norm_{name}" for name in names)), values, strict=True), iteration)
        _require_finite(zip(names, found, strict=True), iteration)
        return values

    def _plan_less(self, iteration: int) -> None:
        """Free what is left of an iteration that ran out of memory, and plan with less."""
        self.optimizer.zero_grad()
        plan = planned(lambda: None if self.plan is None else self.plan.smaller(), "plan with less")
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

    def _save(self) -> None:
        """Store what was kept last, its rows gathered by the main process."""
        state = self.optimizer.state()
        if self.plan is not None and self.plan != self.job.plan:
            state[_BUDGET] = torch.tensor(self.plan.budget_bytes)
        whole = {name: processes.gather_rows(tensor, self.job.rows) for name, tensor in state.items()}
        if self.job.folder is not None:
            tensors = {name: tensor for name, tensor in whole.items() if tensor is not None}
            self.job.folder.save_checkpoint(self.iteration, tensors)

    def _restore(self, folder: Path, iteration: int, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(
                    f"the checkpoint in {folder} is damaged: its {name} holds NaN or infinite values; restore it from "
                    "a copy, or start again with --overwrite"
                )
        num_rows, own = sum(map(len, self.job.rows)), self.job.rows[processes.rank()]
        state = {}
        for name, parameter in self.parameters.items():
            shape = (num_rows, *parameter.shape[1:]) if parameter.ndim else ()
            if name not in tensors or tensors[name].shape != shape:
                raise CheckpointError(
                    f"the checkpoint in {folder} has no {name} of shape {shape}; the "
                    "data or prior changed since. Start again with --overwrite"
                )
            state[name] = tensors[name][own] if shape else tensors[name]
            momentum = f"momentum/{name}"
            if (buffer := tensors.get(momentum)) is not None and buffer.shape == shape:
                state[momentum] = buffer[own] if shape else buffer
        if _BUDGET in tensors and tensors[_BUDGET].numel() == 1 and (plan := self.plan) is not None:
            smaller = planned(lambda: plan.within(int(tensors[_BUDGET])), "plan with less")
            assert smaller is not None
            self._apply_plan(smaller)
        self.optimizer.restore(min(iteration, self.job.config.iterations), state)
        logger.info("going on after iteration %d of %d", iteration, self.job.config.iterations)


class _EndedEverywhere(Exception):
    """An iteration that no process has done, so that all of them have the state before it."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _combined(parts: list[list[float]], is_shared: Sequence[bool]) -> list[float]:
    """Return the loss and the norms of all processes from theirs, added in their order where each has a share."""
    if len(parts) == 1:
        return parts[0]
    loss, *norms = zip(*parts, strict=True)
    total = math.fsum(loss) if is_shared[0] else loss[0]
    return [
        total,
        *(math.hypot(*norm) if shared else norm[0] for norm, shared in zip(norms, is_shared[1:], strict=True)),
    ]


def _grad_norms(parameter: Tensor) -> Tensor:
    """Return the norms (parts,) of the gradient's parts, of which a copy in float64 is small."""
    assert parameter.grad is not None  # every parameter takes part in the loss
    parts = parameter.grad.flatten().split(_NUMBERS_AT_ONCE)
    return torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts])


def _require_finite(values: Iterable[tuple[str, float]], iteration: int) -> None:
    for name, value in values:
        if not math.isfinite(value):
            raise NumericsError(
                f"{name.replace('_', ' ')} is {value} in iteration {iteration}; the state before it is kept. "
                "Lower lr, or look at the data for values out of range"
            )


@torch.no_grad()
def _render(job: Job, groups: Sequence[Tensor]) -> Result:
    """Render the final images, with a noise draw of their own, in the groups of the iterations.

    The main process has them all, another one those of its rows.
    """
    dataset, config, own = job.dataset, job.config, job.rows[processes.rank()]
    parts = [job.space.render(rows, ("final",)).float().cpu() for rows in groups]
    images = torch.empty(len(own), *parts[0].shape[1:])
    for rows, part in zip(groups, parts, strict=True):
        images[rows] = part
    tensors = {name: p.detach().cpu() for name, p in job.space.parameters.items() if name in PARAMETERS}
    found = {name: processes.gather_rows(t, job.rows) for name, t in {"images": images, **tensors}.items()}
    if processes.is_main():
        own = torch.arange(sum(map(len, job.rows)))
        tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
        images = tensors.pop("images")
    return Result(
        images=images,
        labels=own // config.ipc,
        class_names=tuple(dataset.class_names),
        parameters=tensors,
        config=job.stored_settings(),
        mean=dataset.mean,
        std=dataset.std,
        path=job.path,
    )
