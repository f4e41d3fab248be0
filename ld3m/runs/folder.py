"""The output folder of a run: opened, owned, written whole, resumed."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import yaml
from torch import Tensor

from ld3m.config import Config, Settings, build, read_yaml, to_yaml
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runs.edits import edits, settings_in
from ld3m.runs.marker import (
    CONFIG,
    NEXT_CONFIG,
    is_empty,
    is_run,
    read_marker,
    settings_digest,
    settings_path,
    write_marker,
)
from ld3m.runtime.locks import make_parent
from ld3m.runtime.reading import clear_read_errors, is_there
from ld3m.runtime.storage import (
    clear_write_errors,
    load_tensors,
    owning,
    remove,
    require_free,
    save_tensors,
    sweep,
    write_json,
    write_text,
)  # fmt: skip

logger = logging.getLogger(__name__)

# The files of a run
METRICS, CHECKPOINT, CHECKPOINT_NOTE = "metrics.jsonl", "checkpoint.safetensors", "checkpoint.json"
PREVIOUS = "checkpoint-previous.safetensors"
DISTILLED, GRID, CURVES, FACTS, PAGE = (
    "distilled.safetensors", "grid.png", "curves.png", "result.json", "report.html",
)  # fmt: skip
EVALUATION, EVALUATION_SOFT, EVALUATION_PROGRESS = (
    "evaluation.json", "evaluation-soft.json", "evaluation-progress.json",
)  # fmt: skip
TEACHER, SCORES = "teacher.safetensors", "scores"  # a file, and a folder of scores by class
EVALUATIONS = "evaluations"  # folder of those before the newest
_OWN = (
    DISTILLED, METRICS, CHECKPOINT, PREVIOUS, CHECKPOINT_NOTE, f"{DISTILLED}.partial", GRID, CURVES, FACTS, PAGE,
    EVALUATION, EVALUATION_SOFT, EVALUATION_PROGRESS, "evaluations/*.json", "images/*/[0-9]*.png",
)  # fmt: skip
# Setting that hands these files in from another run, perhaps from this very folder -> files
_REUSED = {
    "experts": "experts/expert-[0-9]*.safetensors", "statistics": "statistics/class-[0-9]*.safetensors",
    "teacher": TEACHER, "scores_from": f"{SCORES}/class-[0-9]*.safetensors",
}  # fmt: skip
_NUMBERED = tuple(pattern for pattern in (_OWN[-1], *_REUSED.values()) if "[0-9]" in pattern)
# Setting that may name the same thing in another place when a run is gone on with -> what has its fingerprint
SOURCES = {"prior": "prior", "prior_config": "prior", "init": "init", **{name: name for name in _REUSED}}
_PLACES = ("images/*", "evaluations", "experts", "statistics", SCORES)  # where a run writes, beside the folder itself
_MEANT_FOR_THIS_RUN = "choose another --out, go on with it by --resume, or replace it by --overwrite"
_EDITED = "Restore it as the run wrote it, or start anew with another --out or --overwrite"
_DAMAGED = "restore it from a copy, or start again with --overwrite"
_Checkpoint = tuple[Path, dict[str, Tensor], dict[str, str]]  # file, tensors, metadata


class RunFolder:
    """One run's folder. Nothing is written before `start`, so that a refused run leaves nothing behind.

    From `start` on it is owned, to be let go of by `with`, or `close`.

    Args:
        path: the folder; it may be missing or empty, else `resume` or `overwrite` must say what to do with it.
        resume: go on with the run in it.
        overwrite: replace the run in it; files that are not a run's stay.

    Raises:
        ConfigError: the folder's state and what was asked for do not agree, or another command is writing there.
    """

    def __init__(self, path: Path, *, resume: bool, overwrite: bool) -> None:
        self.path, self.fingerprint, self.sources = path, "", dict[str, str]()
        self.is_resumed, self._overwrite = resume, overwrite
        self._owned = contextlib.ExitStack()
        self._said = ""  # by config.yaml, as far as this run knows
        self._found: _Checkpoint | None = None
        self._is_fallen_back = False
        if resume and overwrite:
            raise ConfigError("resume and overwrite exclude each other; choose one")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"out {path} is a file; choose a folder")
        if resume and not path.is_dir():
            raise ConfigError(f"out {path} is not there, so there is nothing to resume; leave --resume out to start it")
        require_free(path)
        self._require_agreement()
        self._seen = settings_path(path).read_bytes() if resume else b""

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._owned.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Let go of the folder.

        Raises:
            Ld3mError: it was removed meanwhile.
        """
        self._owned.close()

    def stored(self, kind: type[Config]) -> tuple[str, Config]:
        """Return (data, config) of the run that is resumed."""
        try:
            content = read_yaml(settings_path(self.path))
            found = str(content.pop("data", "builtin")), build(content, kind())
        except ConfigError as error:
            raise ConfigError(f"{CONFIG} in {self.path}: {error}. {_EDITED}") from error
        self._require_whole_settings()
        return found

    def start(self, data: str, config: Settings, fingerprint: str, sources: Mapping[str, str] | None = None) -> None:
        """Own the folder, and make it a run with these settings, what is left of another run removed; or go on with
        the one there.

        Args:
            fingerprint: of the data; checkpoints made with other data are refused.
            sources: fingerprints of what else the outcome follows from, by the setting that names it; a run that began
                with others is not gone on with.
        """
        self.fingerprint, self.sources = fingerprint, dict(sources or {})
        self._owned.enter_context(owning(self.path))
        try:
            self._require_agreement()  # again: until now another might have written
            sweep(self.path, *_PLACES)
            if self.is_resumed:
                self._go_on()
                self._found = self._last_whole_checkpoint()
                about = self._found[2] if self._found else {}
                self._require_same_settings(about)
                self._require_same_sources(config, about)
            else:
                self._begin(to_yaml(config, data=data), [name for name in _REUSED if self._lies_here(config, name)])
            self._said = settings_in(self.path / CONFIG)
        except BaseException as error:
            self._owned.__exit__(type(error), error, error.__traceback__)
            raise

    def _require_agreement(self) -> None:
        """Raise unless what lies in the folder is what was asked for."""
        path = self.path
        with clear_write_errors(path):
            is_taken = path.is_dir() and not is_empty(path)
            has_settings = path.is_dir() and settings_path(path).is_file()
            if self.is_resumed and not is_taken:
                raise ConfigError(f"out {path} is empty: no run was begun there; leave --resume out to start one")
            if not is_taken:
                return
            if not self.is_resumed and not self._overwrite:
                raise ConfigError(f"out {path} exists and is not empty; {_MEANT_FOR_THIS_RUN}")
            missing = f"holds a {CONFIG} that is not of a run" if has_settings else f"holds no {CONFIG}: not a run"
            is_known = is_run(path)
            if self.is_resumed and is_known and not has_settings:
                raise ConfigError(f"out {path} has lost its {CONFIG}: restore it, or start again with --overwrite")
            if self.is_resumed and not (is_known and has_settings):
                raise ConfigError(
                    f"out {path} is not empty and {missing}; choose another --out, only a run takes --overwrite"
                )
            if self._overwrite and not is_known:
                raise ConfigError(f"out {path} {missing}, so it is not replaced; choose another --out")

    def _require_whole_settings(self) -> None:
        """Raise where the settings were cut or edited and no checkpoint could tell, for there is none yet."""
        known = read_marker(self.path).get("settings")
        if not isinstance(known, list) or settings_digest(self._seen) in known or "replacing" in read_marker(self.path):
            return
        if not any(is_there(self.path / name) for name in (CHECKPOINT, PREVIOUS)):
            raise ConfigError(
                f"{CONFIG} in {self.path} was cut or edited before the first checkpoint, so there is nothing to go on "
                "with: start again with --overwrite and the options that were meant, or restore the file"
            )

    def _go_on(self) -> None:
        with clear_write_errors(self.path):
            if settings_path(self.path).read_bytes() != self._seen:
                raise ConfigError(f"{self.path / CONFIG} was changed while this run was getting ready; start again")
        if "replacing" in read_marker(self.path):  # by a run that was killed meanwhile: this one
            self._finish_replacing()
        elif not read_marker(self.path):  # of an earlier release
            write_marker(self.path)

    def _begin(self, settings: str, reused: list[str]) -> None:
        """Store the settings; another run in the folder is whole until the marker says otherwise, then gone."""
        known = [settings_digest(settings.encode())]
        if not self._overwrite or is_empty(self.path):
            write_marker(self.path, settings=known)
            write_text(self.path / CONFIG, settings)
            return
        write_text(self.path / NEXT_CONFIG, settings)
        write_marker(self.path, replacing=reused, settings=known)
        self._finish_replacing()

    def _finish_replacing(self) -> None:
        """Remove what the former run wrote; the settings that are in store take their place."""
        marker = read_marker(self.path)
        reused = marker["replacing"]
        with clear_write_errors(self.path):
            for path in self._files_of_a_run(reused if isinstance(reused, list) else []):
                path.unlink(missing_ok=True)
            if (self.path / NEXT_CONFIG).is_file():
                os.replace(self.path / NEXT_CONFIG, self.path / CONFIG)
        write_marker(self.path, settings=marker.get("settings"))

    def _files_of_a_run(self, reused: list[object]) -> Iterator[Path]:
        root = self.path.resolve()
        for pattern in (*_OWN, *(pattern for name, pattern in _REUSED.items() if name not in reused)):
            for path in list(self.path.glob(pattern)):
                is_numbered = pattern not in _NUMBERED or path.stem.rpartition("-")[2].isdecimal()
                if is_numbered and path.parent.resolve().is_relative_to(root):  # not through a link
                    yield path

    def _lies_here(self, config: Settings, name: str) -> bool:
        """Whether a setting names something in this folder."""
        return bool(value := getattr(config, name, None)) and Path(value).resolve().is_relative_to(self.path.resolve())

    def _require_same_settings(self, about: Mapping[str, str]) -> None:
        """Raise where config.yaml is not as it was when the checkpoint was made; older checkpoints cannot tell.

        More iterations, and another place of what has its fingerprint in the checkpoint, are no such change.
        """
        free = {"data", *(name for name, source in SOURCES.items() if source in about)}
        if "settings" in about and (
            changed := edits(about["settings"], settings_in(self.path / CONFIG), free, _DAMAGED)
        ):
            raise ConfigError(f"{CONFIG} in {self.path} was cut or edited since the run began: {changed}. {_EDITED}")

    def _require_same_sources(self, config: Settings, stored: Mapping[str, str]) -> None:
        """Refuse a prior and the like that are not those the run began with; note where those that moved are now."""
        for name, own in self.sources.items():
            if stored.get(name, own) != own:
                here = getattr(config, name, "it")
                raise ConfigError(
                    f"resume needs the {name} that the run in {self.path} began with; {here} holds "
                    "other weights or values now. Put those back, or start anew with another --out"
                )
        content = read_yaml(self.path / CONFIG)
        here = {name: getattr(config, name, None) for name in SOURCES if name in content}
        moved = {name: value for name, value in here.items() if content[name] != value}
        if unknown := [name for name in moved if stored.get(SOURCES[name]) is None]:
            name = unknown[0]
            raise ConfigError(
                f"resume needs the settings of the stored run; these differ: {name} {content.get(name)!r} → "
                f"{moved[name]!r}, and the run has no fingerprint to compare. Leave them out, or start anew "
                "with another --out"
            )
        if moved:
            self._write_settings(yaml.safe_dump({**content, **moved}, sort_keys=False))

    def prolong(self, data: str, config: Settings) -> None:
        """Store the settings of a run that goes on beyond its old end; what was evaluated is the shorter one's."""
        settings = to_yaml(config, data=data)
        if settings != (self.path / CONFIG).read_text(encoding="utf-8"):
            self._write_settings(settings)
            self._said = settings_in(self.path / CONFIG)

    def _write_settings(self, text: str) -> None:
        """Store other settings; a kill between the two files leaves either as they were."""
        before = (self.path / CONFIG).read_bytes()
        write_marker(self.path, settings=[settings_digest(before), settings_digest(text.encode())])
        write_text(self.path / CONFIG, text)

    def drop_evaluations(self) -> None:
        """Remove evaluations of other images than those that are about to be saved."""
        for name in (EVALUATION, EVALUATION_SOFT):
            remove(self.path / name)

    def log(self, line: dict[str, object]) -> None:
        """Append a line to the metrics."""
        with clear_write_errors(self.path / METRICS):
            make_parent(self.path / METRICS)
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def save_checkpoint(self, iteration: int, tensors: dict[str, Tensor]) -> None:
        """Keep the state after `iteration` iterations. The number travels inside the tensors' file, so that the two
        cannot come apart; `checkpoint.json` repeats it for people."""
        with contextlib.suppress(OSError):  # what is lost of the metrics all the same, resuming says
            descriptor = os.open(self.path / METRICS, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        about = {"iteration": str(iteration), "data": self.fingerprint, "settings": self._said} | self.sources
        if not self._is_fallen_back:  # else the last one is damaged, and the one before it stays until it is replaced
            with contextlib.suppress(OSError):  # the first one, or a file system without links: none to fall back on
                (self.path / PREVIOUS).unlink(missing_ok=True)
                os.link(self.path / CHECKPOINT, self.path / PREVIOUS)
        save_tensors(self.path / CHECKPOINT, tensors, about)
        self._found, self._is_fallen_back = None, False
        self._note(iteration, tensors)

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor]] | None:
        """Return (iterations done, tensors), or None before the first checkpoint; later metrics are dropped.

        Where the last checkpoint is damaged, the one before it is taken, which is said.
        """
        stored, self._found = self._found or self._last_whole_checkpoint(), None
        if stored is None:
            self.keep_metrics_before(0)
            return None
        path, tensors, about = stored
        if not about.get("iteration", "").isdecimal():
            raise CheckpointError(f"{path} is not a checkpoint of a run; start again with --overwrite")
        if about.get("data") != self.fingerprint:
            raise ConfigError(
                f"resume needs the data that the run in {self.path} began with; this has other images, labels or "
                "another split. Name that data, or start anew with another --out"
            )
        iteration = int(about["iteration"])
        self.keep_metrics_before(iteration)
        self._note(iteration, tensors)  # a kill may have come between the two files
        return iteration, tensors

    def forget_previous(self) -> None:
        """Remove the checkpoint before the last: a run that has ended needs none to fall back on."""
        remove(self.path / PREVIOUS)

    def _last_whole_checkpoint(self) -> _Checkpoint | None:
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
            self._is_fallen_back = bool(faults)
            return found
        if faults:
            raise faults[0]
        return None

    def keep_metrics_before(self, iteration: int) -> None:
        """Drop lines of metrics that are torn, doubled, or of iterations that are done again; say which are missing."""
        path, kept = self.path / METRICS, dict[int, str]()
        if is_there(path):
            with clear_read_errors(path):
                text = path.read_text(encoding="utf-8", errors="replace")
            for line in text.splitlines():
                number = _iteration_of(line)
                if number is None:
                    logger.info("dropped a torn line of %s", path)
                elif number < iteration:
                    kept[number] = line  # of an iteration logged twice, the later line holds
            whole = "".join(f"{line}\n" for _, line in sorted(kept.items()))
            if whole != text:
                write_text(path, whole)
        if len(kept) < iteration:
            logger.warning("%s lacks %d of %d iterations that are done", path, iteration - len(kept), iteration)

    def _note(self, iteration: int, tensors: dict[str, Tensor]) -> None:
        path, text = self.path / CHECKPOINT_NOTE, {"iteration": iteration, "tensors": sorted(tensors)}
        try:
            is_there = json.loads(path.read_bytes()) == text
        except (OSError, ValueError, RecursionError):
            is_there = False
        if not is_there:
            write_json(path, text)


def _iteration_of(line: str) -> int | None:
    try:
        number = json.loads(line)["iteration"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return number if type(number) is int and number >= 0 and "\ufffd" not in line else None
