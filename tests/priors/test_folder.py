"""Priors as diffusers folders: our own written and read back, and those that diffusers' classes write."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import ld3m
from ld3m.errors import CheckpointError
from ld3m.priors.folder import save_prior

BETAS = (0.0015, 0.0195)
SCALED_LINEAR = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}


class MakesFile:
    """Pickled as a call that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def unet(**options):
    """A small U-Net of diffusers, without attention but in the middle."""
    torch.manual_seed(1)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **options,
    )


def first_stage(kind=diffusers.VQModel, **options):
    torch.manual_seed(2)
    return kind(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        **options,
    )


def save_pipeline(folder, denoiser, first_stage, scheduler=None):
    """Save the modules as diffusers does, as an LDM pipeline."""
    scheduler = scheduler or diffusers.DDIMScheduler(**SCALED_LINEAR)
    vae = isinstance(first_stage, diffusers.AutoencoderKL)
    pipeline = diffusers.LDMPipeline(vqvae=first_stage, unet=denoiser, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    if vae:
        (folder / "vqvae").rename(folder / "vae")
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def latents():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["cin", "ffhq", "kl"])
def test_a_saved_prior_comes_back_the_same(reference_prior, tmp_path, name):
    prior = reference_prior(name, torch.float32)
    save_prior(prior, tmp_path, dtype=torch.float32, betas=BETAS)
    again = ld3m.load_prior(tmp_path)
    for fact in ("name", "latent_channels", "downsample", "native_resolution", "num_classes", "conditioning_shape"):
        assert getattr(again, fact) == getattr(prior, fact), fact
    torch.testing.assert_close(again.alphas_cumprod, prior.alphas_cumprod, rtol=0, atol=3e-7)  # betas, not the buffer

    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    images = prior.decode(latents)
    conditioning = None if prior.num_classes is None else prior.embed(torch.tensor([1, 10]))
    if conditioning is not None:
        assert torch.equal(again.embed(torch.tensor([1, 10])), conditioning)
        assert torch.equal(again.null_conditioning(1), prior.null_conditioning(1))
    for got, want in (
        (again.decode(latents), images),
        (again.encode(images), prior.encode(images)),
        (again.quantize(latents), prior.quantize(latents)),
        (again.predict_noise(latents, 321, conditioning), prior.predict_noise(latents, 321, conditioning)),
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_class_names_and_half_precision_come_back(tmp_path):
    prior = ld3m.load_prior("random:tiny")
    prior.class_names = ("a", "b", "c", "d")
    save_prior(prior, tmp_path, dtype=torch.float16, betas=BETAS)
    again = ld3m.load_prior(tmp_path)
    assert again.class_names == prior.class_names and again.name == "random:tiny"
    assert again.dtype == torch.float32
    assert torch.equal(again.embed(torch.arange(5)), prior.embed(torch.arange(5)).half().float())


def test_folder_is_read_by_diffusers_own_classes(reference_prior, tmp_path, latents):
    prior = reference_prior("cin", torch.float32)
    save_prior(prior, tmp_path, dtype=torch.float32, betas=BETAS)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    decoder = diffusers.VQModel.from_pretrained(tmp_path, subfolder="vqvae")
    conditioning = prior.embed(torch.tensor([1, 2]))
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(latents, 9, conditioning).sample, prior.predict_noise(latents, 9, conditioning)
        )
        torch.testing.assert_close(decoder.decode(latents).sample, prior.decode(latents))


def test_class_conditional_folder_of_diffusers(tmp_path, latents, caplog):
    denoiser, vqvae = unet(num_class_embeds=6).eval(), first_stage(num_vq_embeddings=16, vq_embed_dim=3).eval()
    prior = ld3m.load_prior(save_pipeline(tmp_path / "mine", denoiser, vqvae))
    assert (prior.num_classes, prior.latent_channels, prior.downsample) == (5, 3, 2)
    assert "row 5 of its class table is taken for the null class" in caplog.text
    assert (prior.native_resolution, prior.name) == (16, "mine")

    class_ids = torch.tensor([2, 5])
    with torch.no_grad():
        want = denoiser(latents, 77, class_labels=class_ids).sample
        torch.testing.assert_close(prior.predict_noise(latents, 77, prior.embed(class_ids)), want)
    assert torch.equal(prior.null_conditioning(1)[0, 0], denoiser.class_embedding.weight[5])


def test_scaled_latents_of_a_quantising_first_stage(tmp_path, latents):
    """diffusers' LDM pipeline divides by the first stage's scaling factor; codes are meant in the same scale."""
    vqvae = first_stage(num_vq_embeddings=16, vq_embed_dim=3, scaling_factor=0.25).eval()
    vqvae.quantize.embedding.weight.data.normal_()
    prior = ld3m.load_prior(save_pipeline(tmp_path, unet(), vqvae))
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(prior.decode(latents), vqvae.decode(latents / 0.25).sample)
        torch.testing.assert_close(prior.encode(images), vqvae.encode(images).latents * 0.25)
    torch.testing.assert_close(prior.decode(prior.quantize(latents)), prior.decode(latents))
    distances = torch.cdist(
        prior.quantize(latents).permute(0, 2, 3, 1).flatten(0, 2), vqvae.quantize.embedding.weight / 4
    )
    assert distances.min(1).values.max() < 1e-3  # the rounding of cdist


def test_a_quantising_first_stage_that_names_no_factor_has_none(tmp_path, latents):
    """Folders of before December 2022, whose latents were never scaled."""
    folder = save_pipeline(tmp_path, unet(), first_stage(num_vq_embeddings=16, vq_embed_dim=3))
    config = json.loads((folder / "vqvae/config.json").read_text())
    del config["scaling_factor"]
    (folder / "vqvae/config.json").write_text(json.dumps(config))
    assert ld3m.load_prior(folder).scale_factor == 1.0


def test_unconditional_folder_of_diffusers(tmp_path, latents):
    denoiser, vae = unet().eval(), first_stage(diffusers.AutoencoderKL, scaling_factor=0.5).eval()
    prior = ld3m.load_prior(save_pipeline(tmp_path, denoiser, vae))
    assert (prior.num_classes, prior.conditioning_shape) == (None, None)
    with torch.no_grad():
        torch.testing.assert_close(prior.predict_noise(latents, 77), denoiser(latents, 77).sample)
        torch.testing.assert_close(prior.decode(latents), vae.decode(latents / 0.5).sample)
        torch.testing.assert_close(prior.encode(latents), vae.encode(latents).latent_dist.mean * 0.5)
    assert torch.equal(prior.quantize(latents), latents)


def test_cross_attention_folder_with_a_class_table(tmp_path, latents):
    denoiser = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=6, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12, attention_head_dim=2,
    ).eval()  # fmt: skip
    folder = save_pipeline(tmp_path, denoiser, first_stage(num_vq_embeddings=16, vq_embed_dim=3))
    with pytest.raises(CheckpointError, match=r"class_embedding\.safetensors"):
        ld3m.load_prior(folder)
    table = torch.randn(4, 12)
    save_file({"weight": table}, folder / "class_embedding.safetensors")
    prior = ld3m.load_prior(folder)
    assert (prior.num_classes, prior.conditioning_shape) == (3, (1, 12))
    with torch.no_grad():  # six output channels: the noise, then a learned variance, which is left aside
        want = denoiser(latents, 5, table[[3, 0]][:, None]).sample[:, :3]
    torch.testing.assert_close(prior.predict_noise(latents, 5, prior.embed(torch.tensor([3, 0]))), want)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"])
def test_schedule_is_the_schedulers(tmp_path, beta_schedule):
    scheduler = diffusers.DDIMScheduler(beta_start=0.001, beta_end=0.01, beta_schedule=beta_schedule)
    folder = save_pipeline(tmp_path, unet(), first_stage(num_vq_embeddings=16, vq_embed_dim=3), scheduler)
    if beta_schedule == "squaredcos_cap_v2":
        with pytest.raises(CheckpointError, match=r"squaredcos_cap_v2.*scaled_linear"):
            ld3m.load_prior(folder)
    else:
        got = ld3m.load_prior(folder).alphas_cumprod
        assert got.dtype == torch.float64 and got.device.type == "cpu"
        torch.testing.assert_close(got, scheduler.alphas_cumprod.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"trained_betas": [0.1] * 1000}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"num_train_timesteps": 500}, "1,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_scheduler_of_another_model_is_refused(tmp_path, changes, said):
    """Settings that would make every noise prediction mean something else are not passed over."""
    save_prior(ld3m.load_prior("random:tiny"), tmp_path, dtype=torch.float16, betas=BETAS)
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(CheckpointError, match=said):
        ld3m.load_prior(tmp_path)


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        save_prior(ld3m.load_prior("random:tiny"), tmp_path, dtype=torch.float16, betas=BETAS)
        return tmp_path

    def test_missing_tensor_is_named(self, folder):
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        del tensors["conv_out.bias"]
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=r"conv_out\.bias is missing"):
            ld3m.load_prior(folder)

    def test_extra_and_misshaped_tensors_are_named(self, folder):
        path = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        shape = tuple(tensors["quantize.embedding.weight"].shape)
        tensors |= {"stranger": torch.zeros(1), "quantize.embedding.weight": torch.zeros(5, 3)}
        save_file(tensors, path)
        with pytest.raises(CheckpointError) as caught:
            ld3m.load_prior(folder)
        for said in ("stranger", "quantize.embedding.weight", "(5, 3)", str(shape)):
            assert said in str(caught.value)

    @pytest.mark.parametrize("kept", [0, 5, 0.5])
    @pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "class_embedding.safetensors"])
    def test_truncated_weights_are_said(self, folder, file, kept):
        path = folder / file
        whole = path.read_bytes()
        path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
        with pytest.raises(CheckpointError, match=path.name):
            ld3m.load_prior(folder)

    @pytest.mark.parametrize(
        "file",
        ["unet/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json",
         "scheduler/scheduler_config.json"],
    )  # fmt: skip
    def test_missing_file_is_named(self, folder, file):
        (folder / file).unlink()
        with pytest.raises(CheckpointError, match=file.rpartition("/")[2]):
            ld3m.load_prior(folder)

    @pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense"])
    def test_broken_json_is_named(self, folder, text):
        (folder / "unet" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            ld3m.load_prior(folder)

    @pytest.mark.parametrize("name", ["FluxTransformer2DModel", "os.system", None])
    def test_module_of_another_kind_is_refused(self, folder, name):
        edit_json(folder / "unet" / "config.json", _class_name=name)
        with pytest.raises(CheckpointError, match=f"{name!r}.*UNet2DConditionModel"):
            ld3m.load_prior(folder)

    def test_pickled_weights_are_read_as_tensors_only(self, folder, tmp_path):
        """Older folders have no safetensors; what else a pickle holds is refused and not run."""
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors, pickled = load_file(path), path.with_suffix(".bin")
        want = ld3m.load_prior(folder).denoiser.state_dict()
        path.unlink()
        torch.save(tensors, pickled)
        assert all(
            torch.equal(value, want[key]) for key, value in ld3m.load_prior(folder).denoiser.state_dict().items()
        )
        torch.save(tensors | {"conv_in.bias": MakesFile(tmp_path / "executed")}, pickled)
        with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*open"):
            ld3m.load_prior(folder)
        assert not (tmp_path / "executed").exists()

    def test_folder_of_something_else(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(CheckpointError, match=r"model_index\.json"):
            ld3m.load_prior(tmp_path / "empty")
