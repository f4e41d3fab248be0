"""Randomness by purpose: every draw comes from a generator derived from the seed and from what the draw is for.

No generator is carried from one iteration to the next, so a resumed run, a repeated iteration and a run with other
logging draw the same numbers as an uninterrupted one.
"""

import contextlib
import hashlib
from collections.abc import Generator

import torch


def derive(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose, e.g. `derive(0, "noise", iteration)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator for one purpose. CPU draws are the same on every device they are then moved to."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextlib.contextmanager
def scoped_global_rng(seed: int, *purpose: object) -> Generator[None]:
    """Seed torch's global generators inside the block and put their states back after it.

    Only for what takes no generator of its own: dropout inside a network.
    """
    # Devices that nothing has used yet are left alone: forking their generators would make a context on each.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *purpose))
        yield
