"""A safetensors file that is larger than memory: filled row by row under another name, renamed when it is full."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ld3m.runtime.fingerprints import fingerprint
from ld3m.runtime.locks import make_parent
from ld3m.runtime.reading import clear_read_errors
from ld3m.runtime.storage import DIGEST, clear_write_errors, digest_of, folded

_NO_DIGEST = "-" * 16  # its place in the header until the file is full
_DTYPES = {torch.int64: "I64", torch.float32: "F32"}  # in this order, so that every tensor starts at its own multiple
_NUMPY = {torch.int64: np.int64, torch.float32: np.float32}


class RowFile:
    """Tensors of known shape, on their way into `path`; what was written before a kill is there afterwards.

    Args:
        path: of the whole file; `path`.partial until `finish`.
        shapes: name -> (dtype, shape).
        metadata: as of `save_tensors`.

    Attributes:
        is_new: no row of it has been written.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        self.path, self._partial = path, path.with_name(f"{path.name}.partial")
        self._shapes, self._metadata = dict(shapes), dict(metadata)
        self._places: dict[str, tuple[int, int]] = {}  # name -> (first byte, bytes of a row)
        header: dict[str, object] = {"__metadata__": folded({**metadata, DIGEST: _NO_DIGEST})}
        end = 0
        for dtype, code in _DTYPES.items():
            for name, shape in sorted((n, shape) for n, (kind, shape) in shapes.items() if kind == dtype):
                size = dtype.itemsize * torch.Size(shape).numel()
                header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + size]}
                self._places[name] = end, size // shape[0]
                end += size
        text = json.dumps(header, sort_keys=True).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._digest_at = 8 + text.rindex(_NO_DIGEST.encode())  # a class may be named so
        head = len(text).to_bytes(8, "little") + text
        with clear_write_errors(path):
            make_parent(path)
            with open(self._partial, "rb+" if self._partial.is_file() else "wb+") as file:
                found = bytearray(file.read(len(head)))
                found[self._digest_at : self._digest_at + len(_NO_DIGEST)] = _NO_DIGEST.encode()  # of a full file
                self.is_new = found != head  # or torn by a kill
                file.seek(0)
                file.write(head)
                file.truncate(self._start + end)

    @staticmethod
    def reopen(path: Path) -> None:
        """Take the name of a full file away, so that its rows can be written again."""
        with clear_write_errors(path):
            os.replace(path, path.with_name(f"{path.name}.partial"))

    def write(self, name: str, tensor: Tensor, first_row: int = 0) -> None:
        """Put rows (n, …) at `first_row`; they are on the disk when this returns."""
        place, row = self._places[name]
        with clear_write_errors(self.path), open(self._partial, "rb+") as file:
            file.seek(self._start + place + first_row * row)
            file.write(tensor.detach().cpu().contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str, first_row: int = 0, count: int | None = None) -> Tensor:
        """Return `count` rows from `first_row` on, all of them by default."""
        return self._mapped(name)[first_row : None if count is None else first_row + count].clone()

    def digest(self, first_row: int, count: int, *names: str) -> str:
        """Return what stands for the content of some rows of some tensors."""
        rows = slice(first_row, first_row + count)
        return fingerprint(self._mapped(name)[rows] for name in names)

    def finish(self) -> None:
        """Note the digest of it all, by which `load_tensors` notices damage, and give the file its name."""
        digest = digest_of({name: self._mapped(name) for name in self._shapes}, self._metadata)
        with clear_write_errors(self.path):
            with open(self._partial, "rb+") as file:
                file.seek(self._digest_at)
                file.write(digest.encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._partial, self.path)

    def _mapped(self, name: str) -> Tensor:
        """Return a tensor of the file that is read from the disk as it is used."""
        dtype, shape = self._shapes[name]
        place, _ = self._places[name]
        with clear_read_errors(self._partial):
            content = np.memmap(self._partial, _NUMPY[dtype], "r", self._start + place, shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing may be written to it
            return torch.from_numpy(content)
