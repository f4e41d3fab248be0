"""Fit a module to a loss given step by step: AdamW, warm-up and cosine, averaged weights, checkpoints, curves."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ld3m.errors import CheckpointError, ConfigError, NumericsError
from ld3m.runs import pictures
from ld3m.runtime.reading import listing, mapping, number, parse_json, read_json, whole
from ld3m.runtime.storage import is_temporary, load_tensors, save_tensors, write_json

_LOG_EVERY, _WARM_UP = 20, 200
_CHECKPOINT_SECONDS = 30.0
_PROGRESS = mapping({"step": whole(0, 10**9), "losses": listing(listing(number(-1e300, 1e300), 2, 2))})
_AGAIN = "remove it, and --resume trains this phase anew"


def claim_folder(out: Path, settings: Mapping[str, object], resume: bool) -> None:
    """Make `out` the folder of a training with these settings, or check that it is one already."""
    settings = json.loads(json.dumps(settings))
    path = out / "training.json"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {out} is a file; choose a folder")
    if resume and not out.is_dir():
        raise ConfigError(f"out {out} is not there, so there is nothing to resume; leave --resume out to start it")
    is_taken = out.is_dir() and any(not is_temporary(entry) for entry in out.iterdir())
    if is_taken and not resume:
        raise ConfigError(f"{out} is not empty: choose another --out, or --resume the training in it")
    if is_taken and not path.is_file():
        raise ConfigError(f"{out} holds no training to resume; choose another --out")
    if is_taken:
        stored = read_json(path, remedy="restore it, or train in another --out", error=ConfigError)
        changed = [
            f"{key} {stored.get(key)!r} → {value!r}" for key, value in settings.items() if stored.get(key) != value
        ]
        if changed:
            raise ConfigError(
                f"{out} was trained with other settings: {', '.join(changed)}; use those or another --out"
            )
    write_json(path, settings)


class Fit:
    """One phase of training with its files `<name>.safetensors`, `<name>.jsonl` and `<name>-loss.png` in a folder.

    Args:
        steps, lr: of AdamW; the rate rises over 200 steps, then falls along a cosine.
        ema: decay of the averaged weights, which replace the trained ones at the end; None for no averaging.
    """

    def __init__(
        self, name: str, folder: Path, steps: int, lr: float, *, ema: float | None = None, progress: bool = True
    ) -> None:
        self.name, self.folder, self.steps, self.lr, self.ema, self.progress = name, folder, steps, lr, ema, progress
        self.losses: list[tuple[float, float]] = []

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
        first = self._restore()
        bar = tqdm(range(first, self.steps), self.name, initial=first, total=self.steps, disable=not self.progress)
        saved_at = time.perf_counter()
        for step in bar:
            loss = self._step(step, loss_at)
            if step % _LOG_EVERY == 0:
                self.losses.append((step, loss))
                bar.set_postfix(loss=f"{loss:.4f}")
            is_last = step + 1 == self.steps
            if is_last or time.perf_counter() - saved_at > _CHECKPOINT_SECONDS:
                self._checkpoint(step + 1)
                saved_at = time.perf_counter()
            if each and (step + 1) % each[0] == 0 and not is_last:
                self._swap_averages()
                each[1](step + 1)
                self._swap_averages()
        self._swap_averages()
        module.eval().requires_grad_(False)
        chart = pictures.line_chart({self.name: self.losses}, f"{self.name}: loss over steps", log=True)
        pictures.save_png(self.folder / f"{self.name}-loss.png", chart)
        write_json(self.folder / f"{self.name}-loss.json", self.losses)

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
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
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
