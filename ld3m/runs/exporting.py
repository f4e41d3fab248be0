"""A finished run as a data set of its own: images, labels and a card, to be read without ld3m."""

import contextlib
import html
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from ld3m.errors import ConfigError, Ld3mError
from ld3m.runs import pictures
from ld3m.runs.evaluations import earlier_files
from ld3m.runs.opening import require_outside
from ld3m.runs.page import read_mapping
from ld3m.runs.report import FILES, cell_text, layout, most_repeats, remarks, spread_text
from ld3m.runs.result import Result, folder_names, load
from ld3m.runtime.exchange import exchange, held_open, restore, sweep_beside, temporary_beside
from ld3m.runtime.reading import shown_text
from ld3m.runtime.storage import clear_write_errors, owning, save_tensors, write_text

_TENSORS, _TAGS = "images.safetensors", {"dataset-distillation", "ld3m"}
_SPLIT_WORD = re.compile(
    r"(^|[-._ 0-9])(?=(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?:$|[-._ 0-9]))", re.I
)
_EXPORTED = re.compile(rf"README\.md|{re.escape(_TENSORS)}|[^/]+/\d+\.png")
_ALL_PICTURES = [{"config_name": "default", "data_files": [{"split": "train", "path": "*/*.png"}]}]


def export(folder: str | Path, format: str, to: str | Path, *, overwrite: bool = False) -> Path:
    """Write the images of a finished run, rounded to 8 bits, and a README.md with what one needs to use them.

    The export appears in `to` whole or not at all.

    Args:
        folder: output folder of a finished run.
        format: "imagefolder" for `to/<class>/<k>.png`, "safetensors" for `to/images.safetensors` with images, uint8
            (N, 3, H, W), and labels, int64 (N,).
        to: folder to make; it may exist if it is empty.
        overwrite: replace an earlier export in `to`; a folder with anything else in it is refused.

    Raises:
        ConfigError: the format is unknown, or `to` is in the way.
        CheckpointError: `folder` is not a finished run.
    """
    if format not in _WRITERS:
        raise ConfigError(f"format must be one of {', '.join(_WRITERS)}, got {format!r}")
    result, target = load(folder), Path(to).resolve()
    require_outside(result.config.get("data"), target, "to")
    with clear_write_errors(target), owning(target, is_file=True):
        restore(target)
        _check_target(target, Path(folder).resolve(), overwrite)
        with _whole_folder(target) as building:
            loading = _WRITERS[format](result, building)
            write_text(building / "README.md", _card(result, loading, format, Path(folder)))
    return Path(to)


def _check_target(target: Path, run: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ConfigError(f"to={target} is a file; name a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"to={target} is not empty; name another folder, or replace an export that is in it by --overwrite"
        )
    for kind, inside in {"the run itself": run, "the current folder": Path.cwd()}.items():
        if inside.is_relative_to(target):
            raise ConfigError(f"to={target} holds {kind}, which --overwrite would delete; name another folder")
    if (foreign := _foreign(target)) is not None:
        raise ConfigError(
            f"to={target} holds {foreign}, which no export wrote and --overwrite would delete; name another folder"
        )


def _foreign(target: Path) -> str | None:
    """Return the first file or folder in a folder that is not of an export; None where all are."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError, yaml.YAMLError):
        with open(target / "README.md", encoding="utf-8") as file:
            head = file.read(10_000).split("---\n")
        if set(yaml.safe_load(head[1]).get("tags", ())) >= _TAGS:
            for path in sorted(target.rglob("*")):
                name = path.relative_to(target).as_posix()
                is_kind = path.is_dir() if "/" not in name and not _EXPORTED.fullmatch(name) else path.is_file()
                if path.is_symlink() or not is_kind or ("/" in name and not _EXPORTED.fullmatch(name)):
                    return name
            return None
    return next((path.name for path in sorted(target.iterdir()) if path.name != "README.md"), "README.md")


@contextlib.contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which takes its place at the end; on failure `target` stays as it was."""
    sweep_beside(target)
    building = temporary_beside(target)
    with clear_write_errors(target):
        try:
            building.mkdir()
            with held_open(building) as is_there:
                yield building
                if not is_there():
                    raise Ld3mError(f"{building}, where the export was written, was removed meanwhile; export again")
            if target.exists():
                exchange(building, target)
            else:
                building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _write_images(result: Result, folder: Path) -> str:
    """Write the pictures; return the code that reads them."""
    names = _folders(result.class_names)
    for label, name in enumerate(names):
        pictures.save_numbered(folder / name, result.images[result.labels == label])
    return (
        "import numpy, PIL.Image\n"
        f'files = [f"{{name}}/{{k}}.png" for name in {names} for k in range({result.ipc})]\n'
        "images, labels = numpy.stack([PIL.Image.open(file) for file in files]), "
        f"numpy.arange({len(names)}).repeat({result.ipc})  # {(len(result.labels), *result.images.shape[2:], 3)} uint8"
    )


def _write_tensors(result: Result, folder: Path) -> str:
    """Write the tensors; return the code that reads them."""
    images = (result.images.clamp(0, 1) * 255).round().to(torch.uint8)
    about = {"class_names": result.class_names, "mean": result.mean.tolist(), "std": result.std.tolist()}
    metadata = {key: json.dumps(value) for key, value in about.items()}
    save_tensors(folder / _TENSORS, {"images": images, "labels": result.labels}, metadata)
    return (
        "from safetensors.torch import load_file\n"
        f'tensors = load_file("{_TENSORS}")\n'
        f'images, labels = tensors["images"], tensors["labels"]  # {tuple(images.shape)} uint8'
    )


def _folders(class_names: Sequence[str]) -> list[str]:
    """Return the folders of the classes; the hub's loader would take "bullet train" for a part of the training split.

    It looks for the words after a separator or at the start of a name, so that a mark before them is enough.
    """
    return [_SPLIT_WORD.sub(r"\1~", name) for name in folder_names(class_names)]


_WRITERS = {"imagefolder": _write_images, "safetensors": _write_tensors}
FORMATS = tuple(_WRITERS)


def _card(result: Result, loading: str, format: str, run: Path) -> str:
    """Compose the README.md, whose head a hub reads as a data set card."""
    count, num_classes = len(result.labels), len(result.class_names)
    source = Path(str(result.config.get("data", "an image set"))).name
    head = {
        "license": "unknown",
        "pretty_name": f"{source}, distilled",
        "task_categories": ["image-classification"],
        "tags": sorted(_TAGS),  # by which an export is known that may be replaced
    }
    if format == "imagefolder":
        head["configs"] = _ALL_PICTURES  # one split, whatever the classes are called
    mean, std = ([round(value, 6) for value in moments.tolist()] for moments in (result.mean, result.std))
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---

# {_text(source)}, distilled

{count} synthetic images of {result.images.shape[-2]} × {result.images.shape[-1]} pixels, {result.ipc} for each of \
{num_classes} classes, distilled by ld3m to train networks on them alone.

The licence is not known to the program that wrote this card: the terms of the source data apply.

## Loading

From within this folder:

```python
{loading}
```

Networks see `(images / 255 - mean) / std`, by channel, with the mean and std of the training images:

    mean = {mean}
    std = {std}

## Classes

**Loaders of the ImageFolder kind number classes by sorted folder name, not by the labels of this set.** The code above
gives the labels; the last column is what such a loader makes of folders of these names.

{_class_table(result.class_names)}

## Scores

{_all_scores(run)}

## Recipe

```yaml
{yaml.safe_dump(_public(result.config), allow_unicode=True)}```
"""


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the folders of the machine that they were used on."""
    public = {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in config.items()}
    # Nothing that a folder is called may end the card's fence: a line of its own, or one that begins it anew.
    return {k: shown_text(v, 4096).replace("`", "'") if isinstance(v, str) else v for k, v in public.items()}


def _class_table(class_names: Sequence[str]) -> str:
    folders = _folders(class_names)
    number = {name: k for k, name in enumerate(sorted(folders))}
    rows = [
        [str(label), _text(name), _text(folder), str(number[folder])]
        for label, (name, folder) in enumerate(zip(class_names, folders, strict=True))
    ]
    return _table(["label", "class", "folder", "number by sorted folder name"], rows)


def _all_scores(run: Path) -> str:
    """Return the tables of the run's evaluations: the newest, hard labels first, then those before."""
    found = (read_mapping(path) for path in (*(run / name for name in FILES.values()), *earlier_files(run)))
    return "\n\n".join(_scores(evaluation) for evaluation in found if evaluation.get("rows")) or "Not evaluated."


def _scores(evaluation: Mapping[str, Any]) -> str:
    columns, table = layout(evaluation["rows"], evaluation.get("unseen") or {}, evaluation.get("distilled_with"))
    repeats = most_repeats(evaluation["rows"])
    rows = [
        [_text(name), *(cell_text(*one, repeats) for one in zip(columns, cells, strict=True))]
        for name, cells in table.items()
    ]
    settings = evaluation.get("protocol") or {}
    protocol = _text(settings.get("name", "not named"))
    about = f"Test accuracy in percent of networks trained on each set, {spread_text(repeats)}; protocol: {protocol}."
    about = " ".join([about, *map(_text, remarks(evaluation["rows"], settings))])
    return f"{about}\n\n{_table(['trained on', *map(_text, columns)], rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _text(value: object) -> str:
    """Escape for Markdown, on one line."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(str(value).split())))
