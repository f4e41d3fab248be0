"""The output folder of a run: opened, written whole, resumed."""

import json
import logging
from pathlib import Path

from torch import Tensor

from ld3m.config import Config, Settings, build, read_yaml, to_yaml
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runtime.storage import clear_write_errors, is_temporary, load_tensors, save_tensors, write_json, write_text

logger = logging.getLogger(__name__)

# The files of a run
CONFIG, METRICS, CHECKPOINT, CHECKPOINT_NOTE = (
    "config.yaml", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.json",
)  # fmt: skip
DISTILLED, GRID, CURVES, FACTS, PAGE = (
    "distilled.safetensors", "grid.png", "curves.png", "result.json", "report.html",
)  # fmt: skip
EVALUATION, EVALUATION_SOFT, EVALUATION_PROGRESS = (
    "evaluation.json", "evaluation-soft.json", "evaluation-progress.json",
)  # fmt: skip
_OWN = (
    CONFIG, METRICS, CHECKPOINT, CHECKPOINT_NOTE, DISTILLED, f"{DISTILLED}.partial", GRID, CURVES, FACTS, PAGE,
    EVALUATION, EVALUATION_SOFT, EVALUATION_PROGRESS,
)  # fmt: skip
# Setting that hands these files in from another run, perhaps from this very folder -> files
_REUSED = {"experts": "experts/expert-*.safetensors", "statistics": "statistics/*.safetensors"}
_MEANT_FOR_THIS_RUN = "choose another --out, go on with it by --resume, or replace it by --overwrite"


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
        self.path, self.fingerprint = path, ""
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
        content = read_yaml(self.path / CONFIG)
        return str(content.pop("data", "builtin")), build(content, kind())

    def start(self, data: str, config: Settings, fingerprint: str) -> None:
        """Make the folder a run with these settings, what is left of another run removed; or go on with the one there.

        Args:
            fingerprint: of the data; checkpoints made with other data are refused.
        """
        self.fingerprint = fingerprint
        if self.is_resumed:
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

    def prolong(self, data: str, config: Settings) -> None:
        """Store the settings of a run that goes on beyond its old end; what was evaluated is the shorter one's."""
        settings = to_yaml(config, data=data)
        if settings != (self.path / CONFIG).read_text(encoding="utf-8"):
            write_text(self.path / CONFIG, settings)

    def drop_evaluations(self) -> None:
        """Remove evaluations of other images than those that are about to be saved."""
        for name in (EVALUATION, EVALUATION_SOFT):
            (self.path / name).unlink(missing_ok=True)

    def log(self, line: dict[str, object]) -> None:
        """Append a line to the metrics."""
        with clear_write_errors(self.path / METRICS), open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def save_checkpoint(self, iteration: int, tensors: dict[str, Tensor]) -> None:
        """Keep the state after `iteration` iterations. The number travels inside the tensors' file, so that the two
        cannot come apart; `checkpoint.json` repeats it for people."""
        save_tensors(self.path / CHECKPOINT, tensors, {"iteration": str(iteration), "data": self.fingerprint})
        write_json(self.path / CHECKPOINT_NOTE, {"iteration": iteration, "tensors": sorted(tensors)})

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return (iterations done, tensors), or None before the first checkpoint; later metrics are dropped."""
        path = self.path / CHECKPOINT
        if not path.is_file():
            self._keep_metrics_before(0)
            return None
        tensors, about = load_tensors(path)
        if not about.get("iteration", "").isdigit():
            raise CheckpointError(f"{path} is not a checkpoint of a run; start again with --overwrite")
        if about.get("data") != self.fingerprint:
            raise ConfigError(
                f"resume needs the data that the run in {self.path} began with; this has other images, labels or "
                "another split. Name that data, or start anew with another --out"
            )
        self._keep_metrics_before(int(about["iteration"]))
        return int(about["iteration"]), tensors

    def _keep_metrics_before(self, iteration: int) -> None:
        path = self.path / METRICS
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["iteration"] < iteration:
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError):
                logger.info("dropped a torn last line of %s", path)
        write_text(path, "".join(kept))
