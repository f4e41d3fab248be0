"""Configurations of diffusers folders with a key left out, or set to what no network has: a clear line, or a prior."""

import json
import shutil
import time

import pytest
import torch

import ld3m
from ld3m.errors import CheckpointError, Ld3mError
from ld3m.priors.folder import save_prior

VALUES = {
    "left out": ...,
    "null": None,
    "a word": "x",
    "negative": -1,
    "zero": 0,
    "huge": 10**12,
    "of 400 digits": 10**400,
    "not whole": 0.5,
    "NaN": float("nan"),
    "true": True,
    "an empty list": [],
    "a list of words": ["x", "y"],
    "a nested list": [[1], [[2]]],
    "an object": {"a": 1},
}
_SECONDS = 10.0  # of work, whatever a configuration asks for


@pytest.fixture(scope="module")
def folders(reference_prior, dit_folder, tmp_path_factory):
    """Whole folders: a U-Net by cross-attention with a VQ and a KL first stage, an unconditional one, and a DiT."""
    found = {"dit": dit_folder}
    for name in ("cin", "ffhq", "kl"):
        found[name] = tmp_path_factory.mktemp(name) / "prior"
        save_prior(reference_prior(name, torch.float32), found[name], dtype=torch.float32, betas=(0.0015, 0.0195))
    return found


def load(folder):
    """Load a prior and use it, or return what is said against it; anything but a line of ld3m's own is raised."""
    began = time.process_time()
    try:
        prior = ld3m.load_prior(folder)
    except Ld3mError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 900, text
        return text
    finally:
        assert time.process_time() - began < _SECONDS
    side = 2 * prior.latent_multiple
    with torch.no_grad():
        images = prior.decode(torch.zeros(2, prior.latent_channels, side, side))
    assert images.shape[1] == 3
    return None


QUICK = [(name, kind) for name in ("dit",) for kind in ("null", "a word", "huge")]
ALL = [(name, kind) for name in ("cin", "ffhq", "kl", "dit") for kind in VALUES]


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL]
)
def test_no_value_of_any_key_ends_in_a_traceback(name, kind, folders, tmp_path):
    folder = shutil.copytree(folders[name], tmp_path / "prior")
    files = [*folder.glob("*/*config.json"), *folder.glob("*.json")]
    assert len(files) == 4
    for path in files:
        whole = path.read_text()
        for key in json.loads(whole):
            content = json.loads(whole)
            content[key] = VALUES[kind]
            if VALUES[kind] is ...:
                del content[key]
            path.write_text(json.dumps(content))
            try:
                load(folder)
            except Exception as error:
                raise AssertionError(f"{path.relative_to(folder)}: {key} {kind}") from error
        path.write_text(whole)
    assert load(folder) is None


LARGEST_QUICK = "deep transformers"
LARGEST = {
    "twelve levels": {
        "block_out_channels": [32] * 12, "layers_per_block": 41,
        "down_block_types": ["CrossAttnDownBlock2D"] * 12, "up_block_types": ["CrossAttnUpBlock2D"] * 12,
    },
    "deep transformers": {
        "transformer_layers_per_block": 125, "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    },
    "wide": {"block_out_channels": [65_536, 65_536], "cross_attention_dim": 65_536},
    "just above": {"layers_per_block": 128, "block_out_channels": [32] * 12},
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == LARGEST_QUICK else pytest.mark.slow) for kind in LARGEST]
)
def test_the_largest_that_is_built_is_built_soon(kind, folders, tmp_path):
    """And then refused, since the weights do not fit it."""
    folder = shutil.copytree(folders["cin"], tmp_path / "prior")
    path = folder / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **LARGEST[kind]}))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"does not fit|expected at most|cannot be built"):
        ld3m.load_prior(folder)
    assert time.process_time() - began < _SECONDS
