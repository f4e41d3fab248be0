"""The marker in a run's folder, by which ownership is told, and the settings beside it."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ld3m import __version__
from ld3m.config import RESOLVED, read_yaml
from ld3m.errors import ConfigError
from ld3m.runtime.storage import is_temporary, write_json

CONFIG = "config.yaml"
MARKER, NEXT_CONFIG = ".ld3m.json", ".ld3m.config.yaml"
SHARDS = "shards"  # folder of the parts of a run, which are merged into the folder that it lies in
# What every release has written into config.yaml
ALWAYS_STORED = frozenset({"data", "prior", "ipc", "resolution", "device", "dtype", "seed", "evaluate"})


def settings_path(folder: Path) -> Path:
    """Return where the settings of the run in a folder are: apart while another run is being replaced by it."""
    path = folder / NEXT_CONFIG
    return path if "replacing" in read_marker(folder) and path.is_file() else folder / CONFIG


def read_marker(folder: Path) -> dict[str, Any]:
    """Return what the marker in a folder says, which this package alone writes; nothing where there is none."""
    try:
        with open(folder / MARKER, "rb") as file:
            about = json.loads(file.read(10_000))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) and "ld3m" in about else {}


def write_marker(folder: Path, **more: object) -> None:
    """Mark a folder as a run, whose files `overwrite` may remove."""
    write_json(folder / MARKER, {"ld3m": __version__, "kind": "run", **more})


def is_empty(folder: Path) -> bool:
    """Whether nothing but shards, and what a killed command left, is in a folder."""
    return all(is_temporary(entry) or entry.name in (MARKER, NEXT_CONFIG, SHARDS) for entry in folder.iterdir())


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of this package: by its marker, or of an earlier release by all of its settings."""
    try:
        names = read_yaml(folder / CONFIG).keys()
    except ConfigError:
        return read_marker(folder).get("kind") == "run"
    if read_marker(folder).get("kind") == "run":
        return "data" in names  # else the file was put there since
    known = {field.name for kind in RESOLVED for field in fields(kind)}
    return names >= ALWAYS_STORED and names <= known | {"data"}


def settings_digest(settings: bytes) -> str:
    """Return what stands for settings in the marker."""
    return hashlib.blake2b(settings, digest_size=8).hexdigest()
