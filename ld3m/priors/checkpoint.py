"""Files of weights, read as tensors only: nothing in them is executed."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ld3m.errors import CheckpointError
from ld3m.priors.checkpoint_facts import settings_of
from ld3m.runtime.devices import is_out_of_memory
from ld3m.runtime.reading import clear_read_errors, shown_text
from ld3m.runtime.storage import load_tensors

_WRAPPERS = ("module.", "_orig_mod.")
_STATES = ("state_dict", "ema", "model")

# Trainers leave objects of their own beside the weights. These modules' classes are replaced by an inert one; any other
# global makes the file refused.
_INERT_MODULES = (
    "argparse", "pytorch_lightning", "lightning", "lightning_fabric", "ldm", "taming", "latentdiff", "omegaconf",
)  # fmt: skip


class _Inert:
    """Stands where a trainer's object stood in a pickle; takes anything, keeps its plain settings, does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint's state dict: tensors only, nothing in the file is executed.

    A file of several state dicts gives the one under "state_dict", else the averaged weights under "ema", else "model".
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a checkpoint's state dict, like `read_state`, and the settings its trainer left beside it."""
    if path.suffix == ".safetensors":
        tensors, metadata = load_tensors(path, "fetch it again")
        return _unwrapped(tensors), {key.casefold(): str(value).casefold() for key, value in metadata.items()}
    with clear_read_errors(path):
        open(path, "rb").close()
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not the zip format, or a pickle that is damaged in any way: the load below decides
        unsafe = []
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
        if is_out_of_memory(error):
            raise
        # torch's message wraps what is wrong in advice on how to run the file's code after all.
        said = str(error).partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0] or str(error)
        reason = shown_text(" ".join(said.split()) or type(error).__name__, 150)
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read as tensors only ({reason}); fetch it again from a source you "
            "trust, or convert it to safetensors"
        ) from error
    settings = settings_of(content)
    if isinstance(content, dict):
        content = next((content[key] for key in _STATES if key in content), content)
    items = content.items() if isinstance(content, dict) else ()
    return _unwrapped({k: value for k, value in items if isinstance(k, str) and isinstance(value, Tensor)}), settings


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the names that DistributedDataParallel and torch.compile put before all of them."""
    while prefix := next((p for p in _WRAPPERS if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
