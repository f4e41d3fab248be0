"""CompVis checkpoints: what is read, what is left alone, and what is said when file and YAML do not fit."""

import re

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ld3m
from ld3m.errors import CheckpointError, ConfigError
from ld3m.priors.architecture import build_denoiser
from ld3m.priors.compvis import read_yaml

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."


def predictions(prior):
    """A noise prediction and a decoded image, which between them read the weights of both models."""
    latents = torch.randn(1, prior.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning = None if prior.num_classes is None else prior.embed(torch.tensor([1]))
    return prior.predict_noise(latents, 500, conditioning), prior.decode(latents), prior.encode(prior.decode(latents))


def assert_same(prior, other):
    for module, wanted in zip(prior.modules(), other.modules(), strict=True):
        weights, wanted = module.state_dict(), wanted.state_dict()
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[key], wanted[key]) for key in wanted)


def test_moving_averages_are_never_taken(checkpoint):
    file = checkpoint("ffhq").save()
    with_averages = file.load()
    assert sum(key.startswith("model_ema.") for key in file.state) > 100
    file.state = {key: value for key, value in file.state.items() if not key.startswith("model_ema.")}
    assert_same(with_averages, file.save().load())


def test_fused_attention_rows_are_head_major(checkpoint, reference_prior):
    """Swapping two heads in the fused rows and in the output's columns is no change to a head-major reading."""
    file = checkpoint("ffhq")
    fused, out = f"{UNET}middle_block.1.qkv", f"{UNET}middle_block.1.proj_out.weight"
    channels = file.state[out].shape[0]
    for key in (f"{fused}.weight", f"{fused}.bias"):
        file.state[key] = file.state[key].unflatten(0, (channels // 16, 48)).flip(0).flatten(0, 1)
    file.state[out] = file.state[out].unflatten(1, (channels // 16, 16)).flip(1).flatten(1, 2)
    for got, want in zip(
        predictions(file.save().load()), predictions(reference_prior("ffhq", torch.float32)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_codebook_is_the_checkpoints(checkpoint):
    file = checkpoint()
    codes = file.state[f"{FIRST_STAGE}quantize.embedding.weight"]
    latents = codes[[5, 9, 0, 63]].reshape(1, 2, 2, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(file.save().load().quantize(latents + 1e-4), latents, rtol=0, atol=1e-6)


def test_safetensors_hold_the_same_model(checkpoint, tmp_path):
    file = checkpoint().save()
    save_file({key: value.clone() for key, value in file.state.items()}, tmp_path / "cin.safetensors")
    assert_same(ld3m.load_prior(tmp_path / "cin.safetensors", config=file.config), file.load())


def test_half_precision_weights_are_cast(checkpoint):
    file = checkpoint()
    file.state = {key: value.half() if value.is_floating_point() else value for key, value in file.state.items()}
    prior = file.save().load(dtype=torch.float64)
    assert prior.dtype == torch.float64
    assert torch.equal(prior.embed(torch.arange(11))[:, 0], file.state["cond_stage_model.embedding.weight"].double())


def test_a_schedule_in_the_checkpoint_wins_and_the_yamls_stands_in(checkpoint):
    file = checkpoint().edit_yaml(linear_start=0.001, linear_end=0.01).save()
    assert torch.equal(file.load().alphas_cumprod, file.state["alphas_cumprod"].double())
    del file.state["alphas_cumprod"]
    betas = torch.linspace(0.001**0.5, 0.01**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(file.save().load().alphas_cumprod, (1 - betas).cumprod(0), rtol=1e-12, atol=0)


def test_scale_factor_of_the_yaml_scales_latents(checkpoint):
    file = checkpoint("kl").save()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = file.load().encode(images)
    doubled = file.edit_yaml(scale_factor=2 * 0.18215).load()
    torch.testing.assert_close(doubled.encode(images), 2 * latents)
    torch.testing.assert_close(doubled.decode(2 * latents), reference := doubled.decode(doubled.encode(images)))
    assert reference.shape == images.shape


def test_a_factor_in_the_checkpoint_wins(checkpoint):
    """It was measured on the first batch (scale_by_std), and the YAML then says none."""
    file = checkpoint("kl").save()
    images, latents = (x := torch.rand(1, 3, 16, 16) * 2 - 1), file.load().encode(x)
    file.state["scale_factor"] = torch.tensor(2 * 0.18215)
    torch.testing.assert_close(file.save().load().encode(images), 2 * latents)


def test_a_schedule_in_half_precision_is_made_anew(checkpoint):
    file = checkpoint()
    exact = file.save().load().alphas_cumprod
    file.state["alphas_cumprod"] = file.state["alphas_cumprod"].half()
    torch.testing.assert_close(file.save().load().alphas_cumprod, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"{UNET}out.2.weight", "conv_out.weight"),
        (f"{UNET}time_embed.0.bias", "time_embedding.linear_1.bias"),
        (
            f"{UNET}input_blocks.3.1.transformer_blocks.0.attn2.to_v.weight",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight",
        ),
        (f"{FIRST_STAGE}decoder.conv_in.weight", "decoder.conv_in.weight"),
        (f"{FIRST_STAGE}quantize.embedding.weight", "quantize.embedding.weight"),
    ],
)
def test_missing_tensor_is_named(checkpoint, key, said):
    file = checkpoint()
    del file.state[key]
    with pytest.raises(CheckpointError, match=f": {re.escape(said)} is missing; check"):
        file.save().load()


def test_missing_first_stage_is_named(checkpoint):
    file = checkpoint()
    file.state = {key: value for key, value in file.state.items() if not key.startswith(FIRST_STAGE)}
    with pytest.raises(CheckpointError, match=r"does not fit VQModel: decoder\.conv_in\.bias is missing;"):
        file.save().load()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"{UNET}out.2.weight", "conv_out.weight is (7, 32, 3, 3), expected (3, 32, 3, 3)"),
        (f"{FIRST_STAGE}decoder.conv_in.weight", "decoder.conv_in.weight is (7, 3, 3, 3), expected (32, 3, 3, 3)"),
        (f"{UNET}out.0.bias", "conv_norm_out.bias is (7,), expected (32,)"),
    ],
)
def test_misshaped_tensor_is_named_with_both_shapes(checkpoint, key, said):
    file = checkpoint()
    file.state[key] = torch.zeros(7, *file.state[key].shape[1:])
    with pytest.raises(CheckpointError, match=f": {re.escape(said)}; check"):
        file.save().load()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f"{UNET}label_emb.weight", f"which has no place for {UNET}label_emb.weight"),
        (f"{UNET}input_blocks.1.1.norm.weight", "down_blocks.0.attentions.0.norm.weight has no place"),
        (
            f"{FIRST_STAGE}encoder.down.3.block.0.conv1.bias",
            f"which has no place for {FIRST_STAGE}encoder.down.3.block.0.conv1.bias",
        ),
    ],
)
def test_tensor_the_configuration_has_no_place_for_is_named(checkpoint, key, said):
    file = checkpoint()
    file.state[key] = torch.ones(32)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        file.save().load()


def test_tensors_of_training_are_left_aside(checkpoint, reference_prior):
    file = checkpoint()
    file.state |= {
        "logvar": torch.zeros(1000),
        "loss.discriminator.weight": torch.ones(3),
        "model_ema.decay": torch.ones(()),
    }
    file.state[f"{FIRST_STAGE}loss.discriminator.main.0.weight"] = torch.ones(3)
    assert_same(file.save(global_step=7, optimizer_states=[{"lr": 0.1}]).load(), reference_prior("cin", torch.float32))


def test_schedule_of_another_length_is_refused(checkpoint):
    file = checkpoint()
    file.state["alphas_cumprod"] = file.state["alphas_cumprod"][:500]
    with pytest.raises(CheckpointError, match=r"alphas_cumprod.*500"):
        file.save().load()


@pytest.mark.parametrize(
    "changes",
    [{"num_res_blocks": 2}, {"channel_mult": [1, 1]}, {"channel_mult": [1]}, {"model_channels": 64},
     {"ch_mult": [1, 2]}, {"n_embed": 32}, {"context_dim": 64}, {"attention_resolutions": [1, 2]}],
    ids=str,
)  # fmt: skip
def test_yaml_of_another_model_does_not_fit(checkpoint, changes):
    with pytest.raises((CheckpointError, ConfigError), match=r"does not fit|layout"):
        checkpoint().edit_yaml(**changes).save().load()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"use_scale_shift_norm": True}, "use_scale_shift_norm"), ({"resblock_updown": True}, "resblock_updown"),
     ({"transformer_depth": [1, 2]}, "transformer_depth"), ({"attn_resolutions": [16]}, "attn_resolutions")],
    ids=str,
)  # fmt: skip
def test_structure_without_a_module_is_refused_by_name(checkpoint, changes, said):
    with pytest.raises(ConfigError, match=said):
        checkpoint().edit_yaml(**changes).save().load()


@pytest.mark.parametrize("parameterization", ["x0", "v"])
def test_prediction_of_something_else_than_noise_is_refused(checkpoint, parameterization):
    file = checkpoint().save()
    text = file.config.read_text()
    file.config.write_text(text.replace("    use_ema: false", f"    parameterization: {parameterization}"))
    with pytest.raises(ConfigError, match="parameterization"):
        file.load()


@pytest.mark.parametrize(
    "text", ["", "just words", "- 1\n- 2", "model: 3", "model:\n  params: {}\n", "model: {params: {unet_config: null}}"]
)
def test_yaml_of_something_else_is_refused(checkpoint, text):
    file = checkpoint().save()
    file.config.write_text(text)
    with pytest.raises(ConfigError, match=f"{file.config.name}.*YAML"):
        file.load()


def test_yaml_that_is_not_there_is_said(checkpoint):
    file = checkpoint().save()
    file.config.unlink()
    with pytest.raises(ConfigError, match=file.config.name):
        file.load()


def test_broken_yaml_is_refused(checkpoint):
    file = checkpoint().save()
    file.config.write_text("model: {params: [")
    with pytest.raises(ConfigError, match="YAML"):
        file.load()


def test_without_a_yaml_an_unknown_shape_asks_for_it(reference):
    with pytest.raises(CheckpointError, match="config="):
        ld3m.load_prior(reference / "cin_tiny.ckpt")


def test_a_yaml_beside_something_else_than_a_checkpoint_is_refused(reference):
    with pytest.raises(ConfigError, match="config"):
        ld3m.load_prior("random:tiny", config=reference / "cin_tiny.yaml")


def test_heads_by_channels_and_deeper_transformers_are_read_as_compvis_counts_them(tmp_path, reference):
    config = yaml.safe_load((reference / "cin_tiny.yaml").read_text())
    unet = config["model"]["params"]["unet_config"]["params"]
    unet |= {"num_heads": -1, "num_head_channels": 16, "transformer_depth": 2}
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(config))

    denoiser = build_denoiser(read_yaml(path, 11))

    blocks = [module for module in denoiser.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert len(blocks) == 2 * 4  # one attention down, one in the middle, two up; two blocks each
    assert {block.attn1.heads for block in blocks} == {64 // 16}
