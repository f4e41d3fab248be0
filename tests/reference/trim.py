"""Cut the reference tensors of the generators down to what a repository can carry: `python trim.py FOLDER`.

FOLDER holds {cin,ffhq,kl}_tiny.{ckpt,yaml,safetensors}: three tiny latent diffusion models with seeded random weights,
and what the authors' release of LD3M (its `latentdiff`, `taming` and `glad_utils` parts, commit unknown) computes with
them on a CPU with torch 2.13, in float32 (`f32/*`) and float64 (`f64/*`). Checkpoints and YAMLs are copied byte for
byte; of the tensors those in `KEPT` stay, unchanged. The tests go over the keys they find, so
`LD3M_REFERENCE=FOLDER pytest` runs them on everything.

A chain's tag is T{steps}/g{guidance}/{inj|plain} (ffhq has no g): `inj` is the official chain, `plain` the same with
the injection's weight 0. `grad_raw_*` are gradients of <decoded, in/cot_raw>, `grad_01_*` of
<clamp((decoded + 1)/2, 0, 1), in/cot_01>.

`d3hr_tiny.safetensors` is what the authors' release of D3HR (commit 8ba351d6) computes with tiny diffusion transformers
of random and of trained weights: forward passes, inversion, class statistics, group selection, samples.
It also holds stylegan_tiny.{safetensors,json} and stylegan_xl_layers.json: a tiny generator of StyleGAN-XL with random
weights and what the official modules compute with it in float64, and the layers that they construct at the sizes of
ImageNet. Of the tensors those in float32 that repeat float64 ones are left out, of the tables what no test reads.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

CHAIN = r"T\d+/(g\d/)?(inj|plain)"
KEPT = (
    r"in/(?!images_norm|cot_res24).*",
    r"ddim/.*",
    rf"({CHAIN}/.*|qZ_idx|dec/quant/idx|enc/pm1/quant_idx)",
    r"f(32|64)/(unet/(eps|vjp_.)|dec/\w+/vjp_z|class_embeddings|qZ|enc/pm1/(prequant|mean|Z))",
    r"f64/dec/(quant|kl)/image",
    rf"f64/{CHAIN}/(x_start|z0|grad_raw_.)",
    r"f64/T\d+/(g3/)?inj/grad_01_.",
    r"f64/T5/(g3/)?inj/(e_t|e_cond|z)",
    r"f32/T(5|10)/(g3/)?inj/(z0|grad_raw_.)",
)
KEPT_OF_STYLEGAN = r"(?!.*\.f32$|out/layer\.L(0|4)\.).*"
KEPT_OF_LAYERS = (
    "name", "in_channels", "out_channels", "in_size", "out_size", "in_sampling_rate", "out_sampling_rate", "in_cutoff",
    "out_cutoff", "in_half_width", "out_half_width", "up_factor", "down_factor", "up_taps", "down_taps",
    "padding_x0x1y0y1", "conv_kernel", "is_torgb",
)  # fmt: skip

D3HR_KEPT = r"(w|toy_w|toy|temb|fwd|lat|group|sched|stats|sample)/.*|inv/\w+_f(32|64)/traj_c3|inv/\w+/all20_.*"


def trim(folder: Path, to: Path) -> None:
    """Copy the models from one folder to another and trim their tensors on the way."""
    for name in ("cin_tiny", "ffhq_tiny", "kl_tiny"):
        for suffix in (".ckpt", ".yaml"):
            shutil.copyfile(folder / (name + suffix), to / (name + suffix))
        trim_tensors(folder / f"{name}.safetensors", to, KEPT)
    trim_tensors(folder / "d3hr_tiny.safetensors", to, (D3HR_KEPT,))


def trim_tensors(path: Path, to: Path, patterns: tuple[str, ...]) -> None:
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if any(re.fullmatch(kept, key) for kept in patterns)]  # noqa: SIM118
        save_file({key: file.get_tensor(key) for key in keys}, to / path.name, file.metadata())


def trim_stylegan(folder: Path, to: Path) -> None:
    """Copy the tiny generator's tensors and the tables of layers from one folder to another, trimmed."""
    with safe_open(folder / "stylegan_tiny.safetensors", framework="pt") as file:
        keys = [key for key in file.keys() if re.fullmatch(KEPT_OF_STYLEGAN, key)]  # noqa: SIM118
        save_file({key: file.get_tensor(key) for key in keys}, to / "stylegan_tiny.safetensors", file.metadata())
    tiny = json.loads((folder / "stylegan_tiny.json").read_text())
    kept = {"layers": _layers(tiny["layers"]), "unit_meta": tiny["unit_meta"]}
    (to / "stylegan_tiny.json").write_text(json.dumps(kept) + "\n")
    models = json.loads((folder / "stylegan_xl_layers.json").read_text())["models"]
    names = ("imagenet128", "imagenet256", "random_unconditional_128", "random_unconditional_256")
    kept = {
        "models": {
            name: {"layers": _layers(models[name]["layers"]), "params_total": models[name]["params_total"]}
            for name in names
        }
    }
    (to / "stylegan_xl_layers.json").write_text(json.dumps(kept) + "\n")


def _layers(table: list[dict]) -> list[dict]:
    return [{key: layer[key] for key in KEPT_OF_LAYERS} for layer in table]


if __name__ == "__main__":
    trim(Path(sys.argv[1]), Path(__file__).parent)
    trim_stylegan(Path(sys.argv[1]), Path(__file__).parent)
