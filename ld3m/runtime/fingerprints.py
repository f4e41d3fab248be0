"""Short names for contents, by which data, weights and splits are told apart where a name or a path would not do."""

import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor


def fingerprint(tensors: Iterable[Tensor], *facts: object) -> str:
    """Return 16 hexadecimal digits that follow from the tensors' bytes, in order, and from what JSON makes of facts."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
