"""Images and labels in a file of tensors, .safetensors or .pt; nothing in it is executed.

Published distilled sets are kept so, with images as they were trained: normalized, in [0, 1] or as bytes.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ld3m.data.items import Source
from ld3m.data.tensors import from_pair
from ld3m.errors import CheckpointError, DataError
from ld3m.runtime.storage import load_tensors

_IMAGES = ("images", "image", "imgs", "image_syn", "data", "x")
_LABELS = ("labels", "label", "targets", "label_syn", "y")


def is_tensor_file(path: Path) -> bool:
    return path.suffix.casefold() in (".safetensors", ".pt", ".pth") and path.is_file()


def read_tensor_file(path: Path) -> Source:
    """Read `images` and `labels`, or in a .pt a pair of them; `class_names` in the metadata name the labels."""
    names: Sequence[str] = ()
    if path.suffix.casefold() == ".safetensors":
        content, names = _safetensors(path)
    else:
        content = _pickled(path)
    images, labels = _pair(content, path)
    items, class_names = from_pair(_channels_first(images), labels, names, path.name)
    return Source(path.stem, items, None, class_names)


def _safetensors(path: Path) -> tuple[Mapping[str, Tensor], Sequence[str]]:
    try:
        tensors, metadata = load_tensors(path, "fetch it again")
    except CheckpointError as error:
        raise DataError(str(error)) from error
    try:
        names = json.loads(metadata.get("class_names", "[]"))
    except ValueError as error:
        raise DataError(f"class_names in the metadata of {path} are no JSON; write them as a list of names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[object]", names)):
        raise DataError(f"class_names in the metadata of {path} are no list of names; write them as one")
    return tensors, names


def _pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} holds more than tensors, lists and mappings, and what it holds might run code: it is not read; "
            "save images and labels alone: torch.save({'images': images, 'labels': labels}, path)"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as tensors ({' '.join(str(error).split())[:150]}); fetch it again"
        ) from error


def _pair(content: Any, path: Path) -> tuple[Tensor, Tensor]:
    """Return images and labels of a mapping, a pair, or a list of pairs, of which the last counts."""
    if isinstance(content, Mapping):
        named = cast("Mapping[object, Any]", content)
        images = next((named[name] for name in _IMAGES if name in named), None)
        labels = next((named[name] for name in _LABELS if name in named), None)
        if labels is None and isinstance(images, list | tuple):  # {"data": [[images, labels], …]} of DC's code
            return _pair(images, path)
        content = (images, labels)
    if isinstance(content, list | tuple):
        parts = cast("Sequence[Any]", content)
        if parts and all(isinstance(part, list | tuple) for part in parts):
            return _pair(parts[-1], path)
        if len(parts) == 2 and all(isinstance(part, Tensor) for part in parts):
            return parts[0].detach(), parts[1].detach()
    raise DataError(f"{path} needs tensors images and labels, in a mapping by these names or as a pair")


def _channels_first(images: Tensor) -> Tensor:
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return images.permute(0, 3, 1, 2).contiguous()  # (N, H, W, C) -> (N, C, H, W)
    return images
