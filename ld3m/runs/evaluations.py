"""The evaluations of a run side by side: the newest in `evaluation.json`, those before it in `evaluations/`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.runs.folder import EVALUATIONS
from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.storage import remove, write_text

_LONGEST = 200  # of a name without its ending


def readable_name(protocol: str, networks: Sequence[str], seed: object, data: str, digest: str) -> str:
    """Return a file name without ending that tells evaluations apart, by a digest of all that is not said too."""
    shown = "+".join(networks[:4]) + (f"+{len(networks) - 4}" if len(networks) > 4 else "")
    words = _clean(f"{protocol}_{shown}_seed{seed}_{data}")[: _LONGEST - 9]
    return f"{words}_{digest[:8]}"


def earlier_files(folder: Path) -> list[Path]:
    """Return the files of the evaluations before the newest, by name."""
    return sorted((folder / EVALUATIONS).glob("*.json"))


def keep_earlier(path: Path, name: str | None) -> None:
    """Copy the evaluation in a file, unless it is the one of that name, to `evaluations/`, before another is written.

    What is damaged is no evaluation, and not kept.
    """
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        own = _name_of(json.loads(text), text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    if own != name:
        write_text(path.parent / EVALUATIONS / f"{own}.json", text)


def forget_earlier(folder: Path, name: str | None) -> None:
    """Remove an evaluation of that name from `evaluations/`: it has become the newest again."""
    if name is not None:
        remove(folder / EVALUATIONS / f"{name}.json")


def _name_of(content: Mapping[str, Any], text: str) -> str:
    """Return the name of an evaluation as it says, or, of one before evaluations had names, as it would be."""
    if key := content.get("key"):
        return _clean(str(key))[:_LONGEST]
    networks = list(dict.fromkeys(str(row["network"]) for row in content["rows"]))
    protocol, data = content.get("protocol") or {}, content.get("data") or {}
    kind = str(protocol.get("name", "protocol"))
    kind += "-soft" if protocol.get("labels") == "soft" else ""
    return readable_name(kind, networks, content.get("seed", "-"), str(data.get("name", "data")), fingerprint((), text))


def _clean(words: str) -> str:
    """Replace what no file system takes, and what would lead out of the folder."""
    return re.sub(r"[^\w.+-]", "-", words, flags=re.ASCII).lstrip(".")
