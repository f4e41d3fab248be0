"""What every prior promises, on random ones."""

import pytest
import torch

import ld3m
from ld3m.errors import ConfigError, InputError, Ld3mError
from ld3m.priors.architecture import SHAPES, LdmShape


@pytest.fixture(scope="module")
def tiny():
    return ld3m.load_prior("random:tiny", dtype=torch.float64)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def weights(prior):
    return {f"{k}.{name}": w for k, module in enumerate(prior.modules()) for name, w in module.state_dict().items()}


@pytest.mark.parametrize("name", ["tiny", "builtin", "dit-tiny"])
def test_random_priors_are_the_same_for_everybody(name):
    torch.manual_seed(1)
    one = weights(ld3m.load_prior(f"random:{name}"))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = weights(ld3m.load_prior(f"random:{name}"))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    wide = weights(ld3m.load_prior(f"random:{name}", dtype=torch.float64))
    assert all(torch.equal(wide[key], one[key].double()) for key in one)


@pytest.mark.parametrize("name", ["tiny", "builtin", "dit-tiny"])
def test_no_tensor_of_a_random_prior_is_zero(name):
    for key, weight in weights(ld3m.load_prior(f"random:{name}")).items():
        assert weight.isfinite().all() and weight.any(), key


@pytest.mark.parametrize(
    ("name", "channels", "downsample", "resolution", "num_classes"),
    [("tiny", 3, 2, 16, 4), ("builtin", 3, 4, 32, 10), ("dit-tiny", 4, 2, 16, 4)],
)
def test_facts_of_random_priors(name, channels, downsample, resolution, num_classes):
    prior = ld3m.load_prior(f"random:{name}")
    assert (prior.latent_channels, prior.downsample, prior.native_resolution) == (channels, downsample, resolution)
    assert (prior.num_classes, prior.name, prior.dtype) == (num_classes, f"random:{name}", torch.float32)
    tokens, dim = prior.conditioning_shape
    assert prior.embed(torch.tensor([0, num_classes])).shape == (2, tokens, dim)
    assert prior.alphas_cumprod.shape == (1000,) and prior.alphas_cumprod.dtype == torch.float64
    assert prior.alphas_cumprod.diff().max() < 0 < prior.alphas_cumprod.min() < prior.alphas_cumprod.max() < 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "num_classes", "conditioning_shape"),
    [("cin256", 400_920_579 + 55_322_782 + 1001 * 512, 1000, (1, 512)), ("ffhq256", None, None, None)],
)
def test_large_random_priors(name, parameters, num_classes, conditioning_shape):
    prior = ld3m.load_prior(f"random:{name}", dtype=torch.bfloat16)
    assert (prior.num_classes, prior.conditioning_shape) == (num_classes, conditioning_shape)
    assert (prior.latent_channels, prior.downsample, prior.native_resolution) == (3, 4, 256)
    if parameters is not None:
        assert sum(weight.numel() for weight in weights(prior).values()) == parameters
    assert all(weight.any() for weight in weights(prior).values())


def test_parameters_of_the_shape_of_cin256():
    """Counted on the meta device: the official model's U-Net, first stage and class table."""
    from ld3m.priors.architecture import build_modules

    first_stage, denoiser, table = build_modules(SHAPES["cin256"])
    counts = [sum(p.numel() for p in module.parameters()) for module in (first_stage, denoiser, table)]
    assert counts == [55_322_782, 400_920_579, 1001 * 512]


class TestReleasedRandomPrior:
    """The released code's random generator, on a shape that is quickly built."""

    @pytest.fixture
    def released(self, monkeypatch):
        shape = LdmShape(
            resolution=32, first_stage="vq", ch=32, ch_mult=(1, 1, 1), first_stage_res_blocks=1, latent_channels=3,
            num_codes=32, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,),
            head_channels=16,
        )  # fmt: skip
        monkeypatch.setitem(SHAPES, "ffhq256", shape)
        return ld3m.load_prior("random:ffhq256-released", dtype=torch.float64)

    def test_it_predicts_no_noise(self, released, draw):
        latents = torch.randn(2, 3, 8, 8, generator=draw, dtype=torch.float64)
        assert released.num_classes is None
        assert not released.predict_noise(latents, 400).any()
        assert ld3m.load_prior("random:ffhq256").predict_noise(latents, 400).std() > 0.01

    @pytest.mark.parametrize("steps", [2, 5])
    def test_its_chain_is_a_round_trip_through_the_first_stage(self, released, draw, steps):
        latents, noise = torch.randn(2, 2, 3, 8, 8, generator=draw, dtype=torch.float64)
        z0 = ld3m.reverse_chain(released, latents, steps=steps, noise=noise)
        want = released.alphas_cumprod[0].sqrt() * released.quantize(latents)
        torch.testing.assert_close(z0, want, rtol=1e-12, atol=1e-12)


def test_null_conditioning_is_the_last_row(tiny):
    assert torch.equal(tiny.null_conditioning(3), tiny.embed(torch.tensor([4, 4, 4])))
    assert len({tuple(row.flatten().tolist()) for row in tiny.embed(torch.arange(5))}) == 5


@pytest.mark.parametrize("class_ids", [[5], [0, -1], [1000]])
def test_class_ids_out_of_range_are_refused(tiny, class_ids):
    with pytest.raises(InputError, match=rf"class_ids.*0.*4.*{class_ids[-1]}"):
        tiny.embed(torch.tensor(class_ids))


@pytest.mark.parametrize(
    ("class_ids", "got"),
    [
        (torch.tensor([1.0]), r"torch.float32 \(1,\)"),
        (torch.tensor([True]), r"torch.bool \(1,\)"),
        (torch.tensor([[1, 2]]), r"torch.int64 \(1, 2\)"),
        (torch.tensor(1), r"torch.int64 \(\)"),
    ],
)
def test_class_ids_are_whole_numbers_in_a_row(tiny, class_ids, got):
    with pytest.raises(InputError, match=rf"class_ids are int64 of shape \(B,\), got {got}; convert them with .long"):
        tiny.embed(class_ids)


@pytest.mark.parametrize("timestep", [1000, -1, 3.5])
def test_timesteps_out_of_range_are_refused(tiny, timestep):
    latents, conditioning = torch.zeros(1, 3, 4, 4), tiny.embed(torch.tensor([0]))
    message = rf"timestep is a whole number from 0 to 999, an index into alphas_cumprod; got {timestep}"
    with pytest.raises(InputError, match=message):
        tiny.predict_noise(latents, timestep, conditioning)
    with pytest.raises(InputError, match=message):
        tiny.evaluate(latents, timestep, conditioning, wants=(False, False))
    assert tiny.predict_noise(latents, 999, conditioning).shape == latents.shape


def test_conditioning_must_go_with_the_kind_of_prior(tiny, reference_prior):
    latents = torch.zeros(1, 3, 4, 4)
    with pytest.raises(InputError, match=r"conditional.*conditioning"):
        tiny.predict_noise(latents, 1)
    unconditional = reference_prior("ffhq")
    with pytest.raises(InputError, match="unconditional"):
        unconditional.predict_noise(latents, 1, torch.zeros(1, 1, 32))
    with pytest.raises(InputError, match="ffhq_tiny"):
        unconditional.embed(torch.tensor([0]))
    with pytest.raises(InputError, match="ffhq_tiny"):
        unconditional.null_conditioning(1)


@pytest.mark.parametrize("size", [(15, 16), (16, 17), (1, 2)])
def test_images_must_be_divisible_by_the_factor(tiny, size):
    with pytest.raises(Ld3mError, match=rf"divisible by 2.*{size[0]}x{size[1]}"):
        tiny.encode(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 16, 16, 3)])
def test_images_must_be_a_batch_of_three_channels(tiny, shape):
    with pytest.raises(InputError, match=r"images.*\(B, 3, H, W\)"):
        tiny.encode(torch.zeros(shape))


def test_encoding_is_without_gradient_and_sized_by_the_factor(tiny, draw):
    images = torch.rand(2, 3, 8, 12, generator=draw, dtype=torch.float64, requires_grad=True)
    latents = tiny.encode(images)
    assert latents.shape == (2, 3, 4, 6) and not latents.requires_grad
    assert not torch.equal(latents, tiny.quantize(latents))  # before quantisation


def test_quantising_takes_the_nearest_code_straight_through(tiny, draw):
    latents = torch.randn(2, 3, 4, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    quantised = tiny.quantize(latents)
    codes = tiny.first_stage.quantize.embedding.weight
    nearest = codes[torch.cdist(latents.detach().permute(0, 2, 3, 1).reshape(-1, 3), codes).argmin(1)]
    want = nearest.reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(quantised.detach(), want, rtol=0, atol=1e-14)
    cotangent = torch.randn(latents.shape, generator=draw, dtype=torch.float64)
    assert torch.equal(torch.autograd.grad(quantised, latents, cotangent)[0], cotangent)


def test_decoding_quantises_first_and_does_not_clamp(tiny, draw):
    latents = 3 * torch.randn(2, 3, 4, 6, generator=draw, dtype=torch.float64)
    images = tiny.decode(latents)
    assert images.shape == (2, 3, 8, 12)
    torch.testing.assert_close(images, tiny.decode(tiny.quantize(latents)), rtol=1e-12, atol=1e-12)
    assert images.abs().max() > 1 and images.clamp(-1, 1).unique().numel() > 100


def test_a_kl_prior_quantises_nothing_and_scales_latents(reference_prior, draw):
    prior = reference_prior("kl")
    latents = torch.randn(1, 4, 8, 8, generator=draw, dtype=torch.float64)
    assert torch.equal(prior.quantize(latents), latents)
    images = torch.rand(1, 3, 16, 16, generator=draw, dtype=torch.float64)
    mean = prior.first_stage.encode(images).latent_dist.mean
    torch.testing.assert_close(prior.encode(images), 0.18215 * mean)


def test_results_have_the_dtype_of_the_inputs(tiny, draw):
    prior = ld3m.load_prior("random:tiny", dtype=torch.bfloat16)
    latents = tiny.quantize(torch.randn(2, 3, 8, 8, generator=draw))  # codes, which rounding does not exchange
    conditioning = tiny.embed(torch.tensor([0, 1])).float()
    images = torch.rand(2, 3, 16, 16, generator=draw)
    for got, want in (
        (prior.predict_noise(latents, 300, conditioning), tiny.predict_noise(latents, 300, conditioning)),
        (prior.decode(latents), tiny.decode(latents)),
        (prior.encode(images), tiny.encode(images)),
    ):
        assert got.dtype == want.dtype == torch.float32
        assert (got - want).abs().mean() < 0.1 * want.abs().mean()
    assert prior.quantize(latents).dtype == torch.float32
    assert tiny.predict_noise(latents.bfloat16(), 300, conditioning).dtype == torch.bfloat16


def test_gradients_pass_the_casts_in_the_dtype_of_the_inputs(tiny, draw):
    latents = torch.randn(1, 3, 4, 4, generator=draw, requires_grad=True)
    wide = latents.detach().double().requires_grad_()
    conditioning, cotangent = tiny.embed(torch.tensor([2])), torch.randn(1, 3, 4, 4, generator=draw)
    tiny.predict_noise(latents, 100, conditioning).backward(cotangent)
    tiny.predict_noise(wide, 100, conditioning).backward(cotangent.double())
    assert latents.grad.dtype == torch.float32
    torch.testing.assert_close(latents.grad, wide.grad.float())


def test_weights_are_frozen(draw):
    prior = ld3m.load_prior("random:tiny")
    latents = torch.randn(1, 3, 4, 4, generator=draw, requires_grad=True)
    out = prior.predict_noise(latents, 5, prior.null_conditioning(1)).mean() + prior.decode(latents).mean()
    out.backward()
    for module in prior.modules():
        assert not module.training
        assert all(not p.requires_grad and p.grad is None for p in module.parameters())


def test_timesteps_matter_and_rows_do_not_mix(tiny, draw):
    latents = torch.randn(3, 3, 4, 4, generator=draw, dtype=torch.float64)
    conditioning = tiny.embed(torch.tensor([0, 1, 2]))
    whole = tiny.predict_noise(latents, 700, conditioning)
    torch.testing.assert_close(tiny.predict_noise(latents[1:2], 700, conditioning[1:2]), whole[1:2])
    assert (tiny.predict_noise(latents, 1, conditioning) - whole).abs().max() > 1e-3
    assert (tiny.predict_noise(latents, 700, conditioning.flip(0)) - whole).abs().max() > 1e-3


def test_a_prior_given_is_cast_and_returned():
    prior = ld3m.load_prior("random:tiny")
    assert ld3m.load_prior(prior, dtype=torch.float64) is prior
    assert {weight.dtype for weight in weights(prior).values()} == {torch.float64}


@pytest.mark.parametrize("load", [ld3m.load_prior, ld3m.priors.load_stylegan])
def test_precision_goes_by_name_and_what_cannot_be_had_is_refused(load):
    source = {"load_prior": "random:tiny", "load_stylegan": "random:stylegan-32"}[load.__name__]
    loaded = load(source, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    for given in (source, loaded):
        with pytest.raises(ConfigError, match=r"dtype is one of float32, bfloat16, float64, .* got 'half'"):
            load(given, dtype="half")
        with pytest.raises(ConfigError, match="device 'gpu' cannot be used here"):
            load(given, device="gpu")
    assert loaded.dtype == torch.bfloat16


def test_a_hub_id_may_hold_dots(monkeypatch):
    from ld3m import priors

    asked = []
    monkeypatch.setattr(priors, "_download", lambda name: (asked.append(name), priors._EMBEDDED)[1])
    assert ld3m.load_prior("owner/model-v1.4").native_resolution == 32
    assert asked == ["owner/model-v1.4"]
    with pytest.raises(ConfigError, match=r"got 'folder/model.ckpt', which is neither a name nor a path"):
        ld3m.load_prior("folder/model.ckpt")


def test_a_config_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="config"):
        ld3m.load_prior("builtin", config=tmp_path / "x.yaml")


def test_the_embedded_prior_knows_the_embedded_sets_classes():
    from ld3m.data import load
    from ld3m.priors.classes import match_classes

    prior, dataset = ld3m.load_prior("builtin"), load("builtin", resolution=32)
    assert (prior.num_classes, prior.native_resolution, prior.dtype) == (10, 32, torch.float32)
    assert match_classes(prior, dataset.class_names, dataset.wnids) == list(range(10))
    images = dataset.train.batch(torch.arange(64)) * 2 - 1
    latents = prior.encode(images)
    assert latents.std() == pytest.approx(1, abs=0.3)  # of unit scale, as diffusion needs them
    assert (prior.decode(latents) - images).abs().mean() < 0.15
