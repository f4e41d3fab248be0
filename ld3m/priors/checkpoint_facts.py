"""The settings in a trainer's file, beside the weights of the network: told apart from what is inert."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ld3m.errors import CheckpointError

_HOLDERS = ("args", "config", "cfg", "hparams", "hyper_parameters", "opt", "settings")
_MAX_DEPTH = 4

# Setting -> the values that a predictor of noise in 1,000 discrete steps has, in lower case.
_NOISE = {
    "prediction": ("noise", "epsilon", "eps"),
    "prediction_type": ("noise", "epsilon", "eps"),
    "parameterization": ("eps", "epsilon", "noise"),
    "parametrization": ("eps", "epsilon", "noise"),
    "objective": ("noise", "epsilon", "eps", "pred_noise"),
    "predict_xstart": ("false", "0", "none"),
    "predict_v": ("false", "0", "none"),
    "v_prediction": ("false", "0", "none"),
    "noise_schedule": ("linear",),
    "schedule": ("linear",),
    "diffusion_steps": ("1000",),
    "num_train_timesteps": ("1000",),
    "path_type": (),
    "interpolant": (),
}
# Of a setting "model", which names a kind of network with DiT's tensors: "SiT-XL/2".
_OTHER_MODELS = ("sit", "mdt", "lightningdit", "uvit", "u-vit", "flag-dit", "repa", "edm", "fit", "mar-", "var-")


def settings_of(content: object) -> dict[str, str]:
    """Return the plain settings that a checkpoint carries, in lower case, from wherever its trainer put them."""
    found: dict[str, str] = {}
    if isinstance(content, Mapping):
        for holder in _HOLDERS:
            _collect(content.get(holder), found, 0)
    return found


def _collect(value: object, found: dict[str, str], depth: int) -> None:
    entries = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
    if not isinstance(entries, Mapping) or depth > _MAX_DEPTH:
        return
    for key, entry in entries.items():
        if isinstance(key, str) and isinstance(entry, str | int | float | bool | None):
            found.setdefault(key.casefold(), str(entry).casefold())
        elif isinstance(key, str):
            _collect(entry, found, depth + 1)


def require_noise_prediction(path: Path, settings: Mapping[str, str], *, also: Sequence[str] = ()) -> None:
    """Raise CheckpointError where a file's own settings say that its network is no DiT that predicts noise."""
    wrong = [
        f"{key} {settings[key]!r}" for key, right in _NOISE.items() if key in settings and settings[key] not in right
    ]
    model = settings.get("model", "")
    if model.startswith(_OTHER_MODELS):
        wrong.append(f"model {model!r}")
    if wrong := [*wrong, *also]:
        raise CheckpointError(
            f"{path} says of itself {', '.join(wrong)}: its network predicts something other than the noise of DiT's "
            "1,000 steps, for which there is no module; choose a checkpoint of DiT itself"
        )
