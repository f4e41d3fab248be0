"""What was edited in the settings of a run between its checkpoint and now."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from ld3m.config import read_yaml
from ld3m.config.checks import is_count
from ld3m.runtime.reading import mapping, parse_json, shown

_SHOWN = 5


def settings_in(path: Path) -> str:
    """Return what a file of settings says, for the checkpoint."""
    return json.dumps(read_yaml(path), sort_keys=True, default=str)


def edits(stored: str, found: str, free: Collection[str], remedy: str) -> str:
    """Say what differs between the settings in a checkpoint and those found; "" where nothing does.

    More iterations are no edit, nor is another value of a setting that is free.
    """
    before, now = (parse_json(one, mapping({}), source="settings", remedy=remedy) for one in (stored, found))
    if is_count(before.get("iterations")) and is_count(now.get("iterations"), before["iterations"]):
        free = {*free, "iterations"}
    changed = [name for name in before.keys() | now.keys() if before.get(name, ...) != now.get(name, ...)]
    names = sorted(name for name in changed if name not in free)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"{name} {_said(before, name)} → {_said(now, name)}" for name in names[:_SHOWN]) + more


def _said(settings: Mapping[str, object], name: str) -> str:
    return shown(settings[name]) if name in settings else "not said"
