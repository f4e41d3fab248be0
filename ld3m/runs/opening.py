"""Opening a run: from data, settings and a folder, or none, to what every run has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch

from ld3m import __version__
from ld3m import data as data_room
from ld3m.config import (
    INITS,
    ResolvedDistillConfig,
    ResolvedSampleConfig,
    ResolvedSelectConfig,
    RunConfig,
    SetConfig,
    build,
    differences,
    to_plain,
)
from ld3m.data import Dataset
from ld3m.errors import ConfigError, DataError, InputError
from ld3m.priors import Prior, StyleGAN
from ld3m.runs.folder import SOURCES, RunFolder
from ld3m.runtime import processes
from ld3m.runtime.devices import resolve_device
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.reading import expanded, is_there, require_utf8
from ld3m.runtime.storage import require_writable

_PATHS = (
    "prior",
    "prior_config",
    "experts",
    "init",
    "statistics",
    "teacher",
    "scores_from",
)  # settings that may name a file or a folder

AnyConfig = TypeVar("AnyConfig", bound=SetConfig)
WithPrior = TypeVar("WithPrior", bound=RunConfig)
AnyResolved = ResolvedDistillConfig | ResolvedSampleConfig | ResolvedSelectConfig


@dataclass(frozen=True)
class Opening(Generic[AnyConfig]):
    """A run whose settings are known, its prior and data not yet loaded.

    Args:
        prior: the one that was passed as an object, else None.
        folder: None for a run that is kept in memory only, and in all processes but the main one.
        path: of the folder, in every process.
    """

    config: AnyConfig
    data: object
    data_name: str
    prior: Prior | StyleGAN | None
    folder: RunFolder | None
    path: Path | None
    device: torch.device
    said: str

    def load_data(self, config: AnyResolved) -> Dataset:
        """Load the data as the settings say, with a test split where the run ends with an evaluation."""
        names = ("resolution", "holdout", "strict", "bit_range", "classes", "per_class", "per_class_seed")
        reading = {name: getattr(config, name) for name in names}
        dataset = data_room.load(self.data, **reading)
        ids, count = getattr(config, "class_ids", None), len(dataset.class_names)
        if ids is not None and len(ids) != count:  # before anything is planned or encoded
            raise InputError(f"class_ids needs one id a class: {count} classes, got {len(ids)} ids")
        if config.evaluate != "none" and dataset.test is None:
            raise DataError(f"evaluate {config.evaluate!r} needs a test split; give holdout above 0, or evaluate none")
        facts = {"the release": f"ld3m {__version__} with torch {torch.__version__}", "what was asked for": self.said}
        processes.require_same({**facts, "the fingerprint of the data": dataset.fingerprint})
        return dataset


@dataclass(frozen=True)
class Run:
    """A run that is ready. `config` is resolved: it says everything that decides the outcome."""

    config: AnyResolved
    data_name: str
    dataset: Dataset
    folder: RunFolder | None
    device: torch.device

    def stored_settings(self) -> dict[str, object]:
        """Return what is stored with the set that is made: nothing that differs between equal runs."""
        return {"data": self.data_name, **to_plain(self.config)}


def open_run(
    data: object,
    settings: Mapping[str, object],
    kind: type[AnyConfig],
    *,
    out: str | Path | None,
    resume: bool,
    overwrite: bool,
) -> Opening[AnyConfig]:
    """Check folder, settings and device, in this order; nothing is written yet. The folder is the main process's."""
    folder: RunFolder | None = None
    whole, prior = _split_prior(_with_whole_paths(settings))

    def look() -> AnyConfig:
        nonlocal folder
        folder = open_folder(out, resume=resume, overwrite=overwrite)
        if folder is not None:
            require_outside(data, folder.path)
            require_writable(folder.path, "choose another --out")
        return _stored_or_given(folder, _in_memory(whole) if folder is None else whole, kind)

    config = processes.from_main(look, "open the run")
    device = resolve_device(config.device)
    if device.type == "meta":
        raise ConfigError(
            "device 'meta' has shapes and no values, so nothing can be made on it; leave it out, or say cpu"
        )
    said = repr((sorted(whole.items(), key=str), resume, overwrite))
    path = None if out is None else Path(out)
    return Opening(config, data, _name_of(data), prior, folder, path, device, said)


def open_folder(out: str | Path | None, *, resume: bool, overwrite: bool) -> RunFolder | None:
    """Open the folder of a run; None for one that is kept in memory only."""
    if out is not None:
        path = expanded(out, "out")
        is_there(path, ConfigError)  # a name that no file system takes is refused here
        return RunFolder(path, resume=resume, overwrite=overwrite)
    if resume or overwrite:
        raise ConfigError("resume and overwrite need out=, the folder of the run")
    return None


def require_outside(data: object, out: Path, option: str = "out") -> None:
    """Raise ConfigError where what is written to `out` would become part of the data."""
    if data_room.would_read(data, out):
        raise ConfigError(
            f"{option} {out} lies in the data {data}, where it would be read as a class; choose an --{option} elsewhere"
        )


def with_dtype(config: WithPrior, device: torch.device, on_gpu: str = "bfloat16") -> WithPrior:
    """Fill the dtype of the prior's weights by the device where the settings leave it open."""
    return replace(config, dtype=config.dtype or (on_gpu if device.type == "cuda" else "float32"))


def sources_of(prior: object, **others: str | None) -> dict[str, str]:
    """Return fingerprints of what a run follows from beside its data: of the prior's weights, and others by setting."""
    found: dict[str, str | None] = {"prior": prior_fingerprint(prior), **others}
    return {name: value for name, value in found.items() if value is not None}


def prior_fingerprint(prior: object) -> str | None:
    """Return a fingerprint of a prior's weights and noise schedule; None where there is no prior."""
    if isinstance(prior, StyleGAN):
        return fingerprint(prior.state_dict().values())
    if not isinstance(prior, Prior):
        return None
    weights = (tensor for module in prior.modules() for tensor in module.state_dict().values())
    return fingerprint((*weights, prior.alphas_cumprod), prior.scale_factor, prior.null_class)


def _name_of(data: object) -> str:
    """Return what stands for the data in a run's files: the whole path of a file or folder."""
    if not isinstance(data, str | Path):
        return f"<{type(data).__name__}>"
    path = expanded(data, "path")
    if str(data) == "builtin" or not is_there(path, ConfigError):
        return str(data)
    require_utf8(path.resolve())  # of a link that leads there
    return str(path.resolve())


def _with_whole_paths(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings with paths from the root: a run can be resumed from another folder."""
    return {
        name: _name_of(value) if name in _PATHS and isinstance(value, str | Path) and value not in INITS else value
        for name, value in settings.items()
    }


def _in_memory(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of a run without a folder: it ends without evaluation, whose report would have no place."""
    if settings.get("evaluate") not in (None, "none"):
        raise ConfigError(
            f"evaluate {settings['evaluate']!r} needs out=, where its report goes; or pass the result to ld3m.evaluate"
        )
    return {**settings, "evaluate": "none"}


def _split_prior(settings: dict[str, object]) -> tuple[dict[str, object], Prior | StyleGAN | None]:
    """Take a loaded prior out of the settings; its name stands for it in what is stored, and it keeps its dtype."""
    prior = settings.get("prior")
    if not isinstance(prior, Prior | StyleGAN):
        return settings, None
    return settings | {"prior": prior.name, "dtype": settings.get("dtype") or prior.dtype}, prior


def _stored_or_given(folder: RunFolder | None, settings: Mapping[str, object], kind: type[AnyConfig]) -> AnyConfig:
    """Make the config of a new run, or take that of the resumed one, from which iterations alone may differ: grow."""
    if folder is None or not folder.is_resumed:
        return build(settings, kind())
    _, stored = folder.stored(kind)
    given = build({k: v for k, v in settings.items() if v is not None}, base=stored)
    moved = {name: getattr(given, name) for name in SOURCES if _is_path(getattr(given, name, None))}
    here = _prolonged(replace(stored, **moved), given)
    changed = differences(here, given)
    if changed:
        raise ConfigError(
            f"resume needs the settings of the stored run; these differ: {', '.join(changed)}. Leave them out (more "
            "iterations than before may be asked for), or start anew with another --out"
        )
    for name in ("prior", "prior_config", "experts", "init", "teacher"):
        value, option = getattr(here, name, None), name.replace("_", "-")
        if value and Path(value).is_absolute() and not _is_path(value):
            raise ConfigError(f"{name} {value} of the run is not there; if it was moved, say where to: --{option} PATH")
    return here


def _is_path(value: object) -> bool:
    """Whether a setting names a file or folder that is there; whether it is what it was shows once it is open."""
    return isinstance(value, str) and Path(value).is_absolute() and Path(value).exists()


def _prolonged(stored: AnyConfig, given: AnyConfig) -> AnyConfig:
    """Return the stored settings, with more iterations where more are asked for."""
    before, now = (getattr(one, "iterations", None) or 0 for one in (stored, given))
    return build({"iterations": now}, stored) if now > before else stored
