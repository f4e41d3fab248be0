"""Short names for contents, by which data, weights and splits are told apart where a name or a path would not do."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def fingerprint(tensors: Iterable[Tensor], *facts: object) -> str:
    """Return 16 hexadecimal digits that follow from the tensors' bytes, in order, and from what JSON makes of facts."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that follow from the content of files, in order; one that is not there counts."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        content = path.read_bytes() if path.is_file() else None
        digest.update(b"-" if content is None else hashlib.blake2b(content, digest_size=16).digest())
    return digest.hexdigest()
