"""Data sets as Hugging Face `datasets` writes them: folders of `save_to_disk`, and parquet files."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ld3m.data.items import Source
from ld3m.data.naming import hinted_role
from ld3m.data.tensors import read_splits
from ld3m.errors import DataError


def is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(path: Path) -> Source:
    """Read a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    datasets = _import(path)
    try:
        return _source(path, datasets.load_from_disk(str(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a saved data set ({error}); save it again") from error


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
            table = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read as parquet ({str(error)[:100]}); fetch it again") from error
        name = re.split(r"-\d+(?=-of-|$)", file.stem)[0]
        splits.setdefault(name if hinted_role(name) else "", []).append(Dataset(InMemoryTable(table)))
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


def _source(path: Path, content: object) -> Source:
    return replace(read_splits(content), name=path.stem if path.is_file() else path.resolve().name)
