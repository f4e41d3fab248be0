"""Data sets as Hugging Face `datasets` writes them: folders of `save_to_disk`, and parquet files."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ld3m.data.items import Source
from ld3m.data.naming import hinted_role
from ld3m.data.tensors import read_splits
from ld3m.errors import DataError
from ld3m.runtime.devices import is_out_of_memory
from ld3m.runtime.reading import shown_text


def is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(path: Path) -> Source:
    """Read a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    datasets = _import(path)
    try:
        return _source(path, datasets.load_from_disk(str(path)))
    except DataError:
        raise
    except Exception as error:  # of `datasets`, pyarrow, JSON, and what they make of damaged files
        _refuse(path, "a saved data set", error, "save it again")


def is_parquet(path: Path) -> bool:
    if path.is_dir():
        return bool(_parquet_files(path))
    return path.suffix.casefold() == ".parquet"


def read_parquet(path: Path) -> Source:
    """Read a parquet file, or a folder of them named by split as the hub does: train-00000-of-00001.parquet."""
    _import(path)
    import pyarrow
    import pyarrow.parquet
    from datasets import Dataset, concatenate_datasets
    from datasets.table import InMemoryTable

    splits: dict[str, list[Any]] = {}
    for file in _parquet_files(path) if path.is_dir() else [path]:
        try:
            table = Dataset(InMemoryTable(pyarrow.parquet.read_table(file)))
        except Exception as error:  # of `datasets`, whose metadata is JSON in there, and of pyarrow
            _refuse(file, "parquet", error, "fetch it again")
        name = re.split(r"-\d+(?=-of-|$)", file.stem)[0]
        splits.setdefault(name if hinted_role(name) else "", []).append(table)
    try:
        found = {name: concatenate_datasets(parts) for name, parts in splits.items()}
    except ValueError as error:
        raise DataError(f"{path} holds parquet files of different columns; name one of them") from error
    if set(found) == {""}:
        return _source(path, found[""])
    return _source(path, {_key(name): part for name, part in found.items() if name})


def _key(name: str) -> str:
    return {"train": "train", "test": "test", "val": "validation"}[hinted_role(name) or "train"]


def _parquet_files(path: Path) -> list[Path]:
    return sorted(file for where in (path, path / "data") for file in where.glob("*.parquet") if file.is_file())


def _import(path: Path) -> Any:
    try:
        import datasets  # an extra
    except ImportError as error:
        raise DataError(f"data '{path}' needs Hugging Face datasets: pip install 'ld3m[data]'") from error
    return datasets


def _refuse(path: Path, kind: str, error: Exception, remedy: str) -> NoReturn:
    """Raise what a library made of a file as one line; a lack of memory as it is."""
    if is_out_of_memory(error):
        raise error
    reason = shown_text(" ".join(f"{error}".split()) or type(error).__name__, 100)
    raise DataError(f"{path} cannot be read as {kind} ({reason}); {remedy}") from error


def _source(path: Path, content: object) -> Source:
    return replace(read_splits(content), name=path.stem if path.is_file() else path.resolve().name)
