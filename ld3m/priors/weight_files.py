"""The files of a module in a diffusers folder: weights whole, in shards or in another precision, and JSON."""

import logging
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ld3m.errors import CheckpointError
from ld3m.priors.checkpoint import read_state
from ld3m.runtime import reading
from ld3m.runtime.reading import Check, is_there

logger = logging.getLogger(__name__)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # autoencoders of 2022
_AGAIN = "restore it or fetch it again"
_STEM = "diffusion_pytorch_model"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read a module's weights: safetensors, or where there are none the `.bin` of older folders."""
    old = re.compile(rf"(?<=\.attentions\.\d\.)({'|'.join(_OLD_ATTENTION)})(?=\.)")
    tensors = {key: value for path in _weight_files(folder) for key, value in read_state(path).items()}
    return {old.sub(lambda found: _OLD_ATTENTION[found[0]], key): value for key, value in tensors.items()}


def _weight_files(folder: Path) -> list[Path]:
    """Return the file or the shards; of several precisions ("variants") the full one, else the averaged weights."""
    for ending in ("safetensors", "bin"):
        whole = folder / f"{_STEM}.{ending}"
        if whole.is_file():
            return [whole]
        if (index := folder / f"{_STEM}.{ending}.index.json").is_file():
            return _shards(index)
        variants = [path for path in folder.glob(f"{_STEM}.*.{ending}") if not _SHARD.search(path.name)]
        variants += folder.glob(f"{_STEM}.{ending}.index.*.json")
        if variants:
            chosen = min(variants, key=lambda path: ("non_ema" in path.name, path.name))
            logger.info("%s: weights are read from %s", folder, chosen.name)
            return _shards(chosen) if chosen.suffix == ".json" else [chosen]
    return [folder / f"{_STEM}.safetensors"]  # whose absence is reported where it is read


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, dict) and all(map(_is_plain, table.values())) else []
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"{index} names shards that are not there ({missing[:3] or 'none'}); fetch them again")
    return [index.parent / name for name in names]


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and "\0" not in name


def read_label_names(folder: Path, num_classes: int) -> tuple[str, ...] | None:
    """Return the names of a pipeline's classes, the `id2label` of its index, first of the synonyms; None without."""
    path = folder / "model_index.json"
    table = read_json(path).get("id2label") if path.is_file() else None
    if not table:
        return None
    if not isinstance(table, dict) or set(table) != {str(k) for k in range(num_classes)}:
        raise CheckpointError(f"{path} has an id2label that does not name the {num_classes} classes; correct it")
    return tuple(str(table[str(k)]).partition(",")[0].strip() for k in range(num_classes))


def read_json(path: Path, check: Check | None = None) -> dict[str, Any]:
    """Read a JSON file of a diffusers folder, and check it."""
    if not is_there(path):
        raise CheckpointError(f"{path} is not there: a diffusers folder has one")
    return reading.read_json(path, check, remedy=_AGAIN)
