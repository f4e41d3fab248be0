"""DiT priors: both key sets against the reference, what is refused, and the conditioning as a vector."""

import argparse
import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import ld3m
from ld3m.errors import CheckpointError, ConfigError, InputError
from ld3m.priors.architecture import DIT_SHAPES
from ld3m.priors.dit import build_dit_modules

DTYPES = {"f64": torch.float64, "f32": torch.float32}
TOLERANCE = {"f64": 1e-10, "f32": 1e-4}


@pytest.fixture
def folder(dit_folder, tmp_path):
    """A copy of the reference's DiTs, to be changed."""
    return shutil.copytree(dit_folder, tmp_path / "dit")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_forward(dit_prior, d3hr, relative_error, kind, precision):
    """Six inputs, the null class among them; the learned variance is dropped."""
    prior = dit_prior(kind, DTYPES[precision])
    inputs = zip(d3hr["fwd/x"].to(prior.dtype), d3hr["fwd/t"].tolist(), d3hr["fwd/y"], strict=True)
    got = torch.cat([prior.predict_noise(x[None], t, prior.embed(y[None])) for x, t, y in inputs])
    assert relative_error(got, d3hr[f"fwd/{kind}_{precision}"][:, :4]) <= TOLERANCE[precision]


@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_the_origin_of_the_weights_decides_the_frequencies(dit_folder, d3hr, kind):
    prior = ld3m.load_prior(dit_folder if kind == "diffusers" else dit_folder / "official.pt")
    got = prior.denoiser.time_projection(d3hr["sched/timesteps_50"])
    both = {name: (got - d3hr[f"temb/{name}_50x256"]).abs().max() for name in ("official", "diffusers")}
    assert both.pop(kind) < 1e-3 and min(both.values()) > 1  # float32 exponentials differ by 6e-8, here times 980


@pytest.mark.parametrize(("kind", "epsilon"), [("official", 1e-6), ("diffusers", 1e-5)])
def test_facts(dit_prior, d3hr, kind, epsilon):
    prior = dit_prior(kind)
    assert (prior.num_classes, prior.null_class, prior.conditioning_shape) == (10, 10, (1, 32))
    assert (prior.latent_channels, prior.downsample, prior.native_resolution) == (4, 2, 16)
    assert prior.latent_multiple == 2 and prior.scale_factor == 1.0
    assert prior.denoiser.dit.transformer_blocks[1].norm3.eps == epsilon
    torch.testing.assert_close(prior.alphas_cumprod, d3hr["sched/alphas_cumprod_f64"], rtol=1e-12, atol=0)
    assert torch.equal(prior.null_conditioning(1)[0, 0], d3hr["w/y_embedder.embedding_table.weight"][10].double())


@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_the_embedders_exist_once(dit_prior, kind):
    names = [name for name, _ in dit_prior(kind).denoiser.named_parameters()]
    assert sum("embedd" in name for name in names) == 4 == sum("time_embedding.linear_" in name for name in names)


def test_parameters_of_xl2():
    """Counted on the meta device: the official model has 675,129,632 with its table of positions, (256, 1152)."""
    _, denoiser, table = build_dit_modules(DIT_SHAPES["dit-xl2"])
    count = sum(weight.numel() for module in (denoiser, table) for weight in module.parameters())
    assert count == 675_129_632 - 256 * 1152


@pytest.mark.slow
def test_random_xl2():
    prior = ld3m.load_prior("random:dit-xl2", dtype=torch.bfloat16)
    assert (prior.num_classes, prior.conditioning_shape) == (1000, (1, 1152))
    assert (prior.downsample, prior.native_resolution, prior.scale_factor) == (8, 256, 0.18215)


def test_latents_of_another_size(dit_prior):
    prior = dit_prior("official")
    conditioning = prior.embed(torch.tensor([1]))
    latents = torch.ones(1, 4, 4, 4, dtype=torch.float64)
    assert prior.predict_noise(latents, 20, conditioning).shape == (1, 4, 4, 4)
    with pytest.raises(InputError, match=r"square.*\(1, 4, 4, 8\)"):
        prior.predict_noise(latents.repeat(1, 1, 1, 2), 20, conditioning)


def test_a_training_checkpoint_gives_its_averaged_weights(folder, dit_prior):
    """As DiT's train.py writes it: two sets of weights, the optimiser's state and a namespace of settings."""
    state = torch.load(folder / "official.pt", weights_only=True)
    raw = {key: 2 * value for key, value in state.items()}
    content = {"model": raw, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4, model="DiT-XL/2")}
    torch.save(content, folder / "0400000.pt")
    prior = ld3m.load_prior(folder / "0400000.pt")
    want = dit_prior("official").class_embedding.weight.float()
    assert prior.name == "0400000" and torch.equal(prior.class_embedding.weight, want)


def test_safetensors_of_official_names(folder, dit_prior):
    save_file(torch.load(folder / "official.pt", weights_only=True), folder / "dit.safetensors")
    prior = ld3m.load_prior(folder / "dit.safetensors", dtype=torch.float64)
    for key, value in dit_prior("official").denoiser.state_dict().items():
        assert torch.equal(prior.denoiser.state_dict()[key], value)


def test_the_autoencoder_is_beside_the_file_or_named(folder, tmp_path):
    path = shutil.move(folder / "official.pt", tmp_path / "alone.pt")
    with pytest.raises(ConfigError, match=r"alone\.pt.*autoencoder.*AutoencoderKL.*vae/.*config="):
        ld3m.load_prior(path)
    assert ld3m.load_prior(path, config=folder).downsample == 2
    with pytest.raises(ConfigError, match=r"autoencoder.*config="):
        ld3m.load_prior(path, config=folder / "transformer")


def test_the_number_of_heads_must_be_known(folder):
    edit_json(folder / "transformer/config.json", num_attention_heads=3)
    with pytest.raises(ConfigError, match=r"32 wide.*num_attention_heads.*config\.json.*3"):
        ld3m.load_prior(folder / "official.pt")
    shutil.rmtree(folder / "transformer")
    with pytest.raises(ConfigError, match=r"32 wide.*num_attention_heads.*config\.json.*None"):
        ld3m.load_prior(folder / "official.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("blocks.1.attn.qkv.bias"), r"blocks\.1\.attn1\.to_q\.bias is missing"),
        (
            lambda state: state.update({"blocks.0.gamma1": torch.ones(9)}),
            r"factor blocks\.0\.gamma1 \(9,\) for no layer",
        ),
        (lambda state: state.update({"head.bias": torch.ones(3)}), r"head\.bias has no place"),
        (lambda state: state.pop("pos_embed"), r"layout of an official DiT.*pos_embed"),
        (lambda state: state["pos_embed"].mul_(1.1), r"pos_embed \(1, 16, 32\)"),
    ],
)
def test_a_damaged_checkpoint(folder, change, said):
    state = torch.load(folder / "official.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "official.pt")
    with pytest.raises(CheckpointError, match=said):
        ld3m.load_prior(folder / "official.pt")


def test_blocks_with_embedders_of_their_own_are_refused(folder):
    def change(tensors):
        tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"][0] += 1

    edit_weights(folder / "transformer/diffusion_pytorch_model.safetensors", change)
    with pytest.raises(CheckpointError, match=r"timestep_embedder\.linear_2\.bias in transformer_blocks\.1"):
        ld3m.load_prior(folder)


def test_another_transformer_is_refused(folder):
    edit_json(folder / "transformer/config.json", norm_type="ada_norm_single")
    with pytest.raises(CheckpointError, match=r"no DiT.*ada_norm_single"):
        ld3m.load_prior(folder)


def test_a_pipeline_of_2022(folder, dit_prior):
    """Weights as pickles, the class named Transformer2DModel, the autoencoder's attention by its old names."""
    edit_json(folder / "transformer/config.json", _class_name="Transformer2DModel", attention_type="default")
    for name in ("transformer", "vae"):
        path = folder / name / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        path.unlink()
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if name == "vae":
                tensors = {key.replace(f"attentions.0.{new}", f"attentions.0.{old}"): v for key, v in tensors.items()}
        torch.save(tensors, path.with_suffix(".bin"))
    prior, want = ld3m.load_prior(folder, dtype=torch.float64), dit_prior("diffusers")
    for module, wanted in zip(prior.modules(), want.modules(), strict=True):
        assert all(torch.equal(module.state_dict()[key], value) for key, value in wanted.state_dict().items())


def test_diffusers_own_pipeline_agrees(dit_folder, dit_prior):
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(dit_folder / "transformer").double()
    prior = ld3m.load_prior(dit_folder, dtype=torch.float64)
    latents, labels = torch.linspace(-1, 1, 512, dtype=torch.float64).view(2, 4, 8, 8), torch.tensor([4, 10])
    with torch.no_grad():
        want = transformer(latents, torch.tensor([77, 77]), labels).sample[:, :4]
        torch.testing.assert_close(prior.predict_noise(latents, 77, prior.embed(labels)), want, rtol=0, atol=1e-12)


def test_distillation_through_a_dit(small, tmp_path):
    status, _, errors = small("--prior random:dit-tiny --steps 2 --out", tmp_path / "run")
    assert status == 0, errors
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["grad_norm_conditioning"] > 0 for line in lines) and len(lines) == 2
