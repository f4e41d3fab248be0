"""The output folder of a run: opened, written whole, resumed."""

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ld3m.config import Config, Settings, build, read_yaml, to_yaml
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runtime.reading import clear_read_errors, is_there, mapping, parse_json, shown
from ld3m.runtime.storage import clear_write_errors, is_temporary, load_tensors, save_tensors, write_json, write_text

logger = logging.getLogger(__name__)

# The files of a run
CONFIG, METRICS, CHECKPOINT, CHECKPOINT_NOTE = (
    "config.yaml", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.json",
)  # fmt: skip
PREVIOUS = "checkpoint-previous.safetensors"
DISTILLED, GRID, CURVES, FACTS, PAGE = (
    "distilled.safetensors", "grid.png", "curves.png", "result.json", "report.html",
)  # fmt: skip
EVALUATION, EVALUATION_SOFT, EVALUATION_PROGRESS = (
    "evaluation.json", "evaluation-soft.json", "evaluation-progress.json",
)  # fmt: skip
_OWN = (
    CONFIG, METRICS, CHECKPOINT, PREVIOUS, CHECKPOINT_NOTE, DISTILLED, f"{DISTILLED}.partial", GRID, CURVES, FACTS,
    PAGE, EVALUATION, EVALUATION_SOFT, EVALUATION_PROGRESS,
)  # fmt: skip
# Setting that hands these files in from another run, perhaps from this very folder -> files
_REUSED = {"experts": "experts/expert-*.safetensors", "statistics": "statistics/*.safetensors"}
_MEANT_FOR_THIS_RUN = "choose another --out, go on with it by --resume, or replace it by --overwrite"
_EDITED = "Restore it as the run wrote it, or start anew with another --out or --overwrite"
_DAMAGED = "restore it from a copy, or start again with --overwrite"


class RunFolder:
    """One run's folder. Nothing is written before `start`, so that a refused run leaves nothing behind.

    Args:
        path: the folder; it may be missing or empty, else `resume` or `overwrite` must say what to do with it.
        resume: go on with the run in it.
        overwrite: replace the run in it; files that are not a run's stay.

    Raises:
        ConfigError: the folder's state and what was asked for do not agree.
    """

    def __init__(self, path: Path, *, resume: bool, overwrite: bool) -> None:
        self.path, self.fingerprint, self._said = path, "", ""
        if resume and overwrite:
            raise ConfigError("resume and overwrite exclude each other; choose one")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"out {path} is a file; choose a folder")
        if resume and not path.is_dir():
            raise ConfigError(f"out {path} is not there, so there is nothing to resume; leave --resume out to start it")
        with clear_write_errors(path):
            is_taken = path.is_dir() and any(not is_temporary(entry) for entry in path.iterdir())
        self.is_resumed = resume and (path / CONFIG).is_file()
        if is_taken and resume and not self.is_resumed:
            raise ConfigError(f"out {path} is not empty and holds no {CONFIG}: not a run; {_MEANT_FOR_THIS_RUN}")
        if is_taken and overwrite and not (path / CONFIG).is_file():
            raise ConfigError(f"out {path} holds no {CONFIG}: not a run, so it is not replaced; choose another --out")
        if is_taken and not resume and not overwrite:
            raise ConfigError(f"out {path} exists and is not empty; {_MEANT_FOR_THIS_RUN}")

    def stored(self, kind: type[Config]) -> tuple[str, Config]:
        """Return (data, config) of the run that is resumed."""
        try:
            content = read_yaml(self.path / CONFIG)
            return str(content.pop("data", "builtin")), build(content, kind())
        except ConfigError as error:
            raise ConfigError(f"{error}. {_EDITED}") from error

    def start(self, data: str, config: Settings, fingerprint: str) -> None:
        """Make the folder a run with these settings, what is left of another run removed; or go on with the one there.

        Args:
            fingerprint: of the data; checkpoints made with other data are refused.
        """
        self.fingerprint = fingerprint
        if self.is_resumed:
            self._settings()
            return
        settings = to_yaml(config, data=data)
        with clear_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            made = ["images/*/*.png"]
            for kept, pattern in _REUSED.items():
                made += [] if getattr(config, kept, None) else [pattern]
            found = (path for pattern in made for path in self.path.glob(pattern))
            for path in (*(self.path / name for name in _OWN), *found):
                path.unlink(missing_ok=True)
        write_text(self.path / CONFIG, settings)
        self._settings()

    def log(self, line: dict[str, object]) -> None:
        """Append a line to the metrics."""
        with clear_write_errors(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save_checkpoint(self, iteration: int, tensors: dict[str, Tensor]) -> None:
        """Keep the state after `iteration` iterations. The number travels inside the tensors' file, so that the two
        cannot come apart; `checkpoint.json` repeats it for people."""
        about = {"iteration": str(iteration), "data": self.fingerprint, "settings": self._settings()}
        with contextlib.suppress(OSError):  # the first one, or a file system without links: none to fall back on
            (self.path / PREVIOUS).unlink(missing_ok=True)
            os.link(self.path / CHECKPOINT, self.path / PREVIOUS)
        save_tensors(self.path / CHECKPOINT, tensors, about)
        write_json(self.path / CHECKPOINT_NOTE, {"iteration": iteration, "tensors": sorted(tensors)})

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return (iterations done, tensors), or None before the first checkpoint; later metrics are dropped.

        Where the last checkpoint is damaged, the one before it is taken, which is said.
        """
        stored = self._last_whole_checkpoint()
        if stored is None:
            self._keep_metrics_before(0)
            return None
        path, tensors, about = stored
        if not about.get("iteration", "").isdecimal():
            raise CheckpointError(f"{path} is not a checkpoint of a run; start again with --overwrite")
        if about.get("data") != self.fingerprint:
            raise ConfigError(
                f"resume needs the data that the run in {self.path} began with; this has other images, labels or "
                "another split. Name that data, or start anew with another --out"
            )
        self._require_settings(about.get("settings"))
        self._keep_metrics_before(int(about["iteration"]))
        return int(about["iteration"]), tensors

    def forget_previous(self) -> None:
        """Remove the checkpoint before the last: a run that has ended needs none to fall back on."""
        with clear_write_errors(self.path / PREVIOUS):
            (self.path / PREVIOUS).unlink(missing_ok=True)

    def _last_whole_checkpoint(self) -> tuple[Path, dict[str, Tensor], dict[str, str]] | None:
        there = [path for path in (self.path / CHECKPOINT, self.path / PREVIOUS) if is_there(path)]
        faults: list[CheckpointError] = []
        for path in there:
            try:
                found = (path, *load_tensors(path, _DAMAGED))
            except CheckpointError as error:
                faults.append(error)
                continue
            for fault in faults:
                logger.warning("%s. Going on from the checkpoint before it, %s", fault, path.name)
            return found
        if faults:
            raise faults[0]
        return None

    def _settings(self) -> str:
        """Return what config.yaml said when the run was started or gone on with, for the checkpoint."""
        if not self._said:
            self._said = json.dumps(read_yaml(self.path / CONFIG), sort_keys=True, default=str)
        return self._said

    def _require_settings(self, stored: str | None) -> None:
        """Raise where config.yaml is not as it was when the checkpoint was made; older checkpoints cannot tell."""
        if stored is None or stored == (found := self._settings()):
            return
        check = mapping({})
        before, now = (parse_json(one, check, source="settings", remedy=_DAMAGED) for one in (stored, found))
        names = sorted(name for name in before.keys() | now.keys() if before.get(name, ...) != now.get(name, ...))
        changed = ", ".join(f"{name} {_said(before, name)} → {_said(now, name)}" for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ConfigError(f"{CONFIG} in {self.path} was cut or edited since the run began: {changed}{more}. {_EDITED}")

    def _keep_metrics_before(self, iteration: int) -> None:
        path = self.path / METRICS
        if not is_there(path):
            if iteration:
                logger.warning("%s is gone: the curves begin at iteration %d", path, iteration)
            return
        kept: dict[int, str] = {}
        with clear_read_errors(path):
            lines = path.read_bytes().split(b"\n")
        for line in lines:
            try:
                entry = json.loads(line.decode("utf-8"))
                if isinstance(entry["iteration"], int) and 0 <= entry["iteration"] < iteration:
                    kept[entry["iteration"]] = line.decode("utf-8") + "\n"
            except (ValueError, TypeError, KeyError, RecursionError):
                if line.strip():
                    logger.info("dropped a damaged line of %s", path)
        if len(kept) < iteration:
            logger.warning("%s lacks %d of %d iterations: the curves have gaps", path, iteration - len(kept), iteration)
        write_text(path, "".join(kept.values()))


def _said(settings: Mapping[str, object], name: str) -> str:
    return shown(settings[name]) if name in settings else "not said"
