"""Fit a module to a loss given step by step: AdamW, warm-up and cosine, averaged weights, checkpoints, curves."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ld3m.errors import CheckpointError, ConfigError, NumericsError
from ld3m.runs import pictures
from ld3m.runs.marker import is_empty
from ld3m.runtime import processes
from ld3m.runtime.progress import progress_bar
from ld3m.runtime.reading import listing, mapping, number, parse_json, read_json, whole
from ld3m.runtime.storage import load_tensors, owning, require_free, save_tensors, sweep, write_json

logger = logging.getLogger(__name__)

_LOG_EVERY, _WARM_UP = 20, 200
_CHECKPOINT_SECONDS = 30.0
_SETTINGS = "training.json"
_MAY_GROW = ("steps",)  # of the last phase: what is trained by the others, it builds on
_PROGRESS = mapping({"step": whole(0, 10**9), "losses": listing(listing(number(-1e300, 1e300), 2, 2))})
_STORED = mapping({}, dict.fromkeys(_MAY_GROW, whole(0, 10**9)))
_AGAIN = "remove it, and --resume trains this phase anew"


@contextlib.contextmanager
def claimed_folder(out: Path, settings: Mapping[str, object], resume: bool) -> Iterator[None]:
    """Own `out` for the block, as the folder of a training with these settings."""
    settings = json.loads(json.dumps(settings))
    check_folder(out, settings, resume)
    with owning(out):
        check_folder(out, settings, resume)  # again: until now another might have written
        sweep(out, "prior", "prior/*")
        write_json(out / _SETTINGS, settings)
        yield


def check_folder(out: Path, settings: Mapping[str, object], resume: bool) -> None:
    """Raise unless `out` is free for a training with these settings, or holds it already."""
    path = out / _SETTINGS
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {out} is a file; choose a folder")
    if resume and not out.is_dir():
        raise ConfigError(f"out {out} is not there, so there is nothing to resume; leave --resume out to start it")
    if not out.is_dir():
        return
    require_free(out)
    is_taken = not is_empty(out)
    if is_taken and not resume:
        raise ConfigError(f"{out} is not empty: choose another --out, or --resume the training in it")
    if is_taken and not path.is_file():
        raise ConfigError(f"{out} holds no training to resume; choose another --out")
    if resume and not is_taken:
        raise ConfigError(f"{out} is empty: no training was begun there; leave --resume out to start one")
    if is_taken:
        stored = read_json(path, _STORED, remedy="restore it, or train in another --out")
        changed = [
            f"{key} {stored.get(key)!r} → {value!r}"
            for key, value in settings.items()
            if stored.get(key) != value and not (key in _MAY_GROW and value > stored.get(key, value))
        ]
        if changed:
            raise ConfigError(
                f"{out} was trained with other settings: {', '.join(changed)}; use those or another --out (more steps "
                "than before may be asked for)"
            )
        for key in _MAY_GROW:
            if stored.get(key) != settings.get(key):
                logger.info("going on beyond the old end: %s %s → %s", key, stored.get(key), settings.get(key))


class Fit:
    """One phase of training with its files `<name>.safetensors`, `<name>.jsonl` and `<name>-loss.png` in a folder.

    Args:
        steps, lr: of AdamW; the rate rises over 200 steps, then falls along a cosine.
        batch: rows of a step, shared out over processes: the loss is the mean of `processes.own_rows(batch)`.
        ema: decay of the averaged weights, which replace the trained ones at the end; None for no averaging.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        steps: int,
        lr: float,
        *,
        batch: int = 1,
        ema: float | None = None,
        progress: bool = True,
    ) -> None:
        rows = processes.own_rows(batch)
        self._weight = (rows.stop - rows.start) / batch
        self.name, self.folder, self.steps, self.lr, self.ema, self.progress = name, folder, steps, lr, ema, progress
        self.losses: list[tuple[float, float]] = []
        self.done: int | None = None  # steps whose state is whole in the module and the optimiser

    def run(
        self,
        module: nn.Module,
        loss_at: Callable[[int], Tensor],
        each: tuple[int, Callable[[int], None]] | None = None,
    ) -> None:
        """Train `module` on `loss_at(step)`; `each` = (n, f) calls f(step) every n steps with the averaged weights."""
        self.parameters = list(module.train().requires_grad_(True).parameters())
        self.averages = [p.detach().clone() for p in self.parameters] if self.ema else []
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self.lr, weight_decay=0.01, betas=(0.9, 0.99))
        first = self.done = self._restore()
        if each and first and first % each[0] == 0 and first < self.steps and processes.is_main():
            self._show(first, each[1])  # a kill may have come between this checkpoint and its picture
        try:
            self._iterate(first, loss_at, each)
        except KeyboardInterrupt:
            if self.done and processes.is_main():
                self._checkpoint(self.done)
            raise
        self._swap_averages()
        module.eval().requires_grad_(False)
        if not processes.is_main():
            return
        chart = pictures.line_chart({self.name: self.losses}, f"{self.name}: loss over steps", log=True)
        pictures.save_png(self.folder / f"{self.name}-loss.png", chart)
        write_json(self.folder / f"{self.name}-loss.json", self.losses)

    def _iterate(
        self, first: int, loss_at: Callable[[int], Tensor], each: tuple[int, Callable[[int], None]] | None
    ) -> None:
        bar = progress_bar(range(first, self.steps), self.name, initial=first, total=self.steps, show=self.progress)
        saved_at = time.perf_counter()
        for step in bar:
            loss = self._step(step, loss_at)
            if step % _LOG_EVERY == 0:
                self.losses.append((step, loss))
                bar.set_postfix(loss=f"{loss:.4f}")
            self.done, is_last = step + 1, step + 1 == self.steps
            if processes.is_main() and (is_last or time.perf_counter() - saved_at > _CHECKPOINT_SECONDS):
                self._checkpoint(step + 1)
                saved_at = time.perf_counter()
            if each and (step + 1) % each[0] == 0 and not is_last and processes.is_main():
                self._show(step + 1, each[1])

    def _show(self, done: int, show: Callable[[int], None]) -> None:
        """Call with the averaged weights in the module."""
        self.done = None
        self._swap_averages()
        show(done)
        self._swap_averages()
        self.done = done

    def _step(self, step: int, loss_at: Callable[[int], Tensor]) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * min((step + 1) / _WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise NumericsError(
                f"the loss of {self.name} is {loss.item()} at step {step}; lower its rate, in another --out"
            )
        self.optimiser.zero_grad()
        loss.backward()
        loss = loss.detach().clone()
        processes.sum_weighted([loss, *(p.grad for p in self.parameters if p.grad is not None)], self._weight)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.done = None
        self.optimiser.step()
        if self.averages and self.ema is not None:
            decay = min(self.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        return loss.item()

    @torch.no_grad()
    def _swap_averages(self) -> None:
        for parameter, average in zip(self.parameters, self.averages, strict=bool(self.averages)):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    def _checkpoint(self, step: int) -> None:
        tensors = {f"parameter/{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"average/{i}": a for i, a in enumerate(self.averages)}
        for i, parameter in enumerate(self.parameters):
            state = self.optimiser.state[parameter]
            tensors |= {f"{key}/{i}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        save_tensors(self._path, tensors, {"step": str(step), "losses": json.dumps(self.losses)})

    def _restore(self) -> int:
        if not self._path.is_file():
            return 0
        tensors, metadata = load_tensors(self._path, _AGAIN)
        about = parse_json(
            f'{{"step": {metadata.get("step")}, "losses": {metadata.get("losses")}}}',
            _PROGRESS,
            source=f"the metadata of {self._path}",
            remedy=_AGAIN,
        )
        step = min(about["step"], self.steps)
        if damaged := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
            raise CheckpointError(f"{self._path} is damaged: {damaged[0]} holds NaN or infinite values; {_AGAIN}")
        with torch.no_grad():
            try:
                for i, parameter in enumerate(self.parameters):
                    parameter.copy_(tensors[f"parameter/{i}"])
                    moments = {key: tensors[f"{key}/{i}"].to(parameter) for key in ("exp_avg", "exp_avg_sq")}
                    self.optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
                for i, average in enumerate(self.averages):
                    average.copy_(tensors[f"average/{i}"])
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(f"{self._path} is of another model ({error}); train in another --out") from error
        self.losses = [tuple(point) for point in about["losses"]]
        return step
