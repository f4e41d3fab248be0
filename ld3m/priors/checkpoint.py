"""Files of weights, read as tensors only: nothing in them is executed."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.errors import CheckpointError
from ld3m.runtime.storage import load_tensors

_STATES = ("state_dict", "ema", "model")

# Trainers leave objects of their own beside the weights. These modules' classes are replaced by an inert one; any other
# global makes the file refused.
_INERT_MODULES = (
    "argparse", "pytorch_lightning", "lightning", "lightning_fabric", "ldm", "taming", "latentdiff", "omegaconf",
)  # fmt: skip


class _Inert:
    """Stands where a trainer's object stood in a pickle; takes anything, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's state dict: tensors only, nothing in the file is executed.

    A file of several state dicts gives the one under "state_dict", else the averaged weights under "ema", else "model".
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, OSError):
        unsafe = []  # not the zip format: the load below decides
    inert = [name for name in unsafe if name.split(".")[0] in _INERT_MODULES]
    if refused := sorted(set(unsafe) - set(inert)):
        raise CheckpointError(
            f"{path} wants to call {', '.join(refused[:5])} when opened, which a file of weights has no need of; "
            "it was not opened. Get it from a source you trust, as safetensors if possible"
        )
    stubs: list[Any] = [(type("Inert", (_Inert,), {}), name) for name in inert]
    try:
        with torch.serialization.safe_globals(stubs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on the pickle protocol of a file that is refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        # torch's message wraps what is wrong in advice on how to run the file's code after all.
        said = str(error).partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0] or str(error)
        reason = " ".join(said.split())[:150]
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read as tensors only ({reason}); fetch it again from a source you "
            "trust, or convert it to safetensors"
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in _STATES if key in content), content)
    items = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
