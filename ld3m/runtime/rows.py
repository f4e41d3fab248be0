"""A safetensors file that is larger than memory: filled row by row under another name, renamed when it is full."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ld3m.runtime.locks import make_parent
from ld3m.runtime.storage import clear_write_errors, folded

_DTYPES = {torch.int64: "I64", torch.float32: "F32"}  # in this order, so that every tensor starts at its own multiple


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
        self._places: dict[str, tuple[int, int]] = {}  # name -> (first byte, bytes of a row)
        header: dict[str, object] = {"__metadata__": folded(metadata)}
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
        head = len(text).to_bytes(8, "little") + text
        with clear_write_errors(path):
            make_parent(path)
            with open(self._partial, "rb+" if self._partial.is_file() else "wb+") as file:
                self.is_new = file.read(len(head)) != head  # or torn by a kill
                if self.is_new:
                    file.seek(0)
                    file.write(head)
                file.truncate(self._start + end)

    def write(self, name: str, tensor: Tensor, first_row: int = 0) -> None:
        """Put rows (n, …) at `first_row`; they are on the disk when this returns."""
        place, row = self._places[name]
        with clear_write_errors(self.path), open(self._partial, "rb+") as file:
            file.seek(self._start + place + first_row * row)
            file.write(tensor.detach().cpu().contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Give the file its name."""
        with clear_write_errors(self.path):
            os.replace(self._partial, self.path)
