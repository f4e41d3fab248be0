"""Weights whole, in variants and in shards; names of classes; what a trainer's file says; DiffFit's factors."""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ld3m.errors import CheckpointError, ConfigError
from ld3m.priors import load_prior
from ld3m.priors.checkpoint import read_checkpoint, read_state
from ld3m.priors.checkpoint_facts import require_noise_prediction
from ld3m.priors.diffit import with_factors_multiplied
from ld3m.priors.weight_files import read_label_names, read_weights

STATE = {f"layer.{k}.weight": torch.full((2, 2), float(k)) for k in range(4)}
STEM = "diffusion_pytorch_model"


def _shards(folder, name="{}-{:05d}-of-00002.safetensors", index=f"{STEM}.safetensors.index.json", stem=STEM):
    table = {}
    for k in range(2):
        part = dict(list(STATE.items())[2 * k : 2 * k + 2])
        save_file(part, folder / name.format(stem, k + 1))
        table |= dict.fromkeys(part, name.format(stem, k + 1))
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": table}))


LAYOUTS = {
    "whole": lambda folder: save_file(STATE, folder / f"{STEM}.safetensors"),
    "variant": lambda folder: save_file(STATE, folder / f"{STEM}.fp16.safetensors"),
    "averaged before not": lambda folder: [
        save_file(STATE, folder / f"{STEM}.fp16.safetensors"),
        save_file({"x": torch.ones(1)}, folder / f"{STEM}.a_non_ema.safetensors"),
    ],
    "whole before variant": lambda folder: [
        save_file(STATE, folder / f"{STEM}.safetensors"),
        save_file({"x": torch.ones(1)}, folder / f"{STEM}.fp16.safetensors"),
    ],
    "shards": _shards,
    "shards of a variant": lambda folder: _shards(
        folder, index=f"{STEM}.safetensors.index.fp16.json", stem=f"{STEM}.fp16"
    ),
    "old": lambda folder: torch.save(STATE, folder / f"{STEM}.bin"),
    "old variant": lambda folder: torch.save(STATE, folder / f"{STEM}.fp16.bin"),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_of_every_layout(tmp_path, make):
    make(tmp_path)
    found = read_weights(tmp_path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", ["gone.safetensors", "../x.safetensors", 7])
def test_shards_that_are_missing_or_elsewhere_are_refused(tmp_path, name):
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="names shards that are not there"):
        read_weights(tmp_path)


def test_names_of_classes(tmp_path):
    path = tmp_path / "model_index.json"
    assert read_label_names(tmp_path, 2) is None
    path.write_text(json.dumps({"id2label": {"1": "goldfish, Carassius auratus", "0": "tench, Tinca tinca"}}))
    assert read_label_names(tmp_path, 2) == ("tench", "goldfish")
    with pytest.raises(CheckpointError, match="id2label that does not name the 3 classes"):
        read_label_names(tmp_path, 3)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_wrappers_put_before_all_are_taken_off(tmp_path, prefix):
    torch.save({"ema": {prefix + key: value for key, value in STATE.items()}}, tmp_path / "x.pt")
    assert read_state(tmp_path / "x.pt").keys() == STATE.keys()
    save_file({prefix + key: value for key, value in STATE.items()}, tmp_path / "x.safetensors")
    assert read_state(tmp_path / "x.safetensors").keys() == STATE.keys()


SAID = {
    "SiT": {"args": argparse.Namespace(model="SiT-XL/2", path_type="Linear", prediction="velocity")},
    "velocity": {"args": argparse.Namespace(model="DiT-XL/2", prediction="velocity")},
    "score": {"config": {"transport": {"prediction": "score"}}},
    "x0": {"args": {"predict_xstart": True}},
    "v": {"hyper_parameters": {"parameterization": "v"}},
    "cosine": {"args": argparse.Namespace(noise_schedule="cosine")},
    "steps": {"cfg": {"diffusion": {"diffusion_steps": 4000}}},
    "interpolant": {"opt": {"interpolant": "linear"}},
}


@pytest.mark.parametrize("beside", SAID.values(), ids=SAID)
def test_what_a_file_says_of_its_network_is_honoured(tmp_path, beside):
    torch.save({"ema": STATE, **beside}, tmp_path / "x.pt")
    state, settings = read_checkpoint(tmp_path / "x.pt")
    assert state.keys() == STATE.keys()
    with pytest.raises(CheckpointError, match=r"x\.pt says of itself .*predicts something other than the noise"):
        require_noise_prediction(tmp_path / "x.pt", settings)


def test_settings_of_a_dit_are_no_reason(tmp_path):
    args = argparse.Namespace(
        model="DiT-XL/2", image_size=256, num_classes=1000, vae="ema", epochs=1400, predict_xstart=False
    )
    torch.save({"ema": STATE, "args": args}, tmp_path / "x.pt")
    require_noise_prediction(tmp_path / "x.pt", read_checkpoint(tmp_path / "x.pt")[1])


def test_factors_multiply_what_the_layers_give(tmp_path):
    draw = torch.Generator().manual_seed(0)
    sizes = {"attn.qkv": (12, 4), "attn.proj": (4, 4), "mlp.fc1": (16, 4), "mlp.fc2": (4, 16)}
    state = {f"blocks.0.{n}.weight": torch.randn(s, generator=draw, dtype=torch.float64) for n, s in sizes.items()}
    state |= {f"blocks.0.{n}.bias": torch.randn(s[0], generator=draw, dtype=torch.float64) for n, s in sizes.items()}
    factors = {"gamma1": 4, "gamma2": 4, "attn.gamma1": 12, "attn.gamma2": 4}
    factors = {f"blocks.0.{n}": torch.rand(s, generator=draw, dtype=torch.float64) + 0.5 for n, s in factors.items()}
    merged = with_factors_multiplied(state | factors, tmp_path)
    assert merged.keys() == state.keys()

    def layer(weights, name, x):
        return F.linear(x, weights[f"blocks.0.{name}.weight"], weights[f"blocks.0.{name}.bias"])

    x, hidden = torch.randn(3, 4, generator=draw, dtype=torch.float64), torch.randn(3, 16, dtype=torch.float64)
    g1, g2, a1, a2 = (factors[f"blocks.0.{n}"] for n in ("gamma1", "gamma2", "attn.gamma1", "attn.gamma2"))
    torch.testing.assert_close(layer(merged, "attn.qkv", x), a1 * layer(state, "attn.qkv", x))
    torch.testing.assert_close(layer(merged, "attn.proj", x), g1 * (a2 * layer(state, "attn.proj", x)))
    torch.testing.assert_close(layer(merged, "mlp.fc2", hidden), g2 * layer(state, "mlp.fc2", hidden))
    assert torch.equal(merged["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])
    assert with_factors_multiplied(state, tmp_path) is state


def test_a_missing_checkpoint_with_a_configuration_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"prior 'nowhere/x\.ckpt' is not there; correct the path"):
        load_prior("nowhere/x.ckpt", config=tmp_path / "x.yaml")


def test_a_device_that_is_not_there_is_said_in_a_line():
    with pytest.raises(ConfigError, match="device 'mps' cannot be used here") as caught:
        load_prior("random:tiny", device="mps")
    assert len(str(caught.value)) < 250
