"""Where the report of a set goes that has no run's folder: a folder of its own, never the set's."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from ld3m.errors import ConfigError
from ld3m.runs.folder import DISTILLED, EVALUATION, EVALUATION_SOFT
from ld3m.runs.opening import require_outside
from ld3m.runs.result import Result, load
from ld3m.runtime.locks import make_parent
from ld3m.runtime.storage import require_writable


def open_out(out: Path, given: object, data: object) -> Path:
    """Make the folder of a report; one that holds something else is refused, and so is one in the set or the data.

    Raises:
        ConfigError: with what is in the way.
    """
    out = out.expanduser()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out {out} is a file; name a folder")
    if isinstance(given, str | os.PathLike) and Path(given).exists():
        own = Path(given).resolve()
        if out.resolve().is_relative_to(own):
            raise ConfigError(f"out {out} lies in the set {own}, which stays as it is; name a folder elsewhere")
    require_outside(data, out)
    is_report = any((out / name).is_file() for name in (EVALUATION, EVALUATION_SOFT)) or _is_kept_set(out)
    if out.is_dir() and any(out.iterdir()) and not is_report:
        raise ConfigError(f"out {out} holds other things than an evaluation; name another folder")
    require_writable(out, "name another --out")
    make_parent(out / DISTILLED)
    return out


def _is_kept_set(out: Path) -> bool:
    return (out / DISTILLED).is_file() and bool(load(out).config.get("foreign"))


def keep_set(result: Result, folder: Path) -> None:
    """Write the set beside its report, for the page, where every class has as many images; values cut to [0, 1]."""
    if not torch.equal(result.labels, torch.arange(len(result.class_names)).repeat_interleave(result.ipc)):
        return
    images = result.images.clamp(0, 1)
    replace(result, images=images, path=None).save(folder)
