"""What a run starts from, and what is refused before anything is written."""

import logging
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import ld3m
from ld3m.data.coreset import kmeans_images
from ld3m.distillation.job import prepare
from ld3m.errors import CheckpointError, ConfigError, DataError, InputError
from ld3m.priors import ExecutionConfig
from ld3m.runtime import seeds
from ld3m.spaces import DiffusionSetup


@pytest.fixture
def make(tiny_prior, coloured):
    """Prepare a run on `coloured`; the folder's settings as of `prepare`."""

    def call(data=coloured, *, out=None, resume=False, overwrite=False, **settings):
        defaults = {"prior": tiny_prior, "steps": 2, "width": 4, "class_ids": (2, 0, 1), "evaluate": "none"}
        return prepare(data, defaults | settings, out=out, resume=resume, overwrite=overwrite)

    return call


def test_latents_start_from_different_real_images_of_their_class(make, tiny_prior):
    job = make(ipc=5)
    train, latents = job.dataset.train, job.space.parameters["latents"].detach()
    assert latents.shape == (15, 3, 8, 8)
    assert latents.dtype == torch.float32
    encoded = tiny_prior.encode(train.batch(torch.arange(len(train))) * 2 - 1)
    distances = (latents[:, None] - encoded[None]).flatten(2).abs().amax(2)
    assert distances.amin(1).max() < 1e-4
    nearest = distances.argmin(1)
    assert len(set(nearest.tolist())) == 15
    assert train.labels[nearest].tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_the_start_follows_the_seed(make):
    first, again, other = (make(seed=seed).space.parameters["latents"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_start_may_be_the_images_nearest_to_k_means_centres(make, tiny_prior):
    pixels = make(init="kmeans", space="pixel", ipc=2)
    images = pixels.space.render(torch.arange(6), ()).detach()
    train = pixels.dataset.train
    distances = torch.cdist(images.flatten(1), train.batch(range(len(train))).flatten(1))
    nearest = distances.argmin(1)
    assert distances.gather(1, nearest[:, None]).max() < 0.05
    assert train.labels[nearest].tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest.tolist() == kmeans_images(train, [2] * 3, seeds.generator(0, "initial images")).tolist()
    latents = make(init="kmeans", ipc=2).space.parameters["latents"]
    torch.testing.assert_close(latents, tiny_prior.encode(images * 2 - 1))


@pytest.mark.parametrize("space", ["ld3m", "autoencoder"])
def test_latents_may_start_from_noise(space, make):
    latents = make(init="noise", ipc=10, space=space).space.parameters["latents"].detach()
    assert latents.shape == (30, 3, 8, 8)
    assert abs(latents.mean()) < 0.05
    assert abs(latents.std() - 1) < 0.05


def test_pixels_start_from_noise_of_the_datas_own_statistics(make):
    job = make(init="noise", space="pixel", ipc=10)
    pixels = job.space.parameters["pixels"].detach()
    assert pixels.shape == (30, 3, 16, 16)
    images = job.space.render(torch.arange(30), ()).detach()
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close(images.mean((0, 2, 3)), job.dataset.mean, atol=0.03, rtol=0)


def test_a_distilled_set_may_be_the_start(make, distill_small, tiny_prior, tmp_path):
    given = distill_small(space="pixel", iterations=1, out=tmp_path / "given")
    torch.testing.assert_close(
        make(init=str(given.path), space="pixel").space.render(torch.arange(3), ()), given.images
    )
    latents = make(init=given.path).space.parameters["latents"]
    torch.testing.assert_close(latents, tiny_prior.encode(given.images * 2 - 1))
    with pytest.raises(
        ConfigError, match=r"init .+ holds images \(3, 3, 16, 16\); this run needs 3 classes × 2 at 16 px"
    ):
        make(init=given.path, ipc=2)


def test_a_start_of_other_classes_is_refused(make, distill_small, tmp_path):
    given = distill_small(space="pixel", iterations=1, out=tmp_path / "given")
    replace(given, class_names=("r", "b", "g")).save(tmp_path / "given")
    with pytest.raises(ConfigError, match=r"another order: label \d is '\w' there, and '\w' here"):
        make(init=given.path, space="pixel")


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        ({"injection": "z0"}, "x0"),
        ({"schedule": "cubic"}, "linear"),
        ({"space": "pixels"}, "ld3m, autoencoder, glad, pixel; got 'pixels'; did you mean 'pixel'"),
        ({"algorithm": "mt"}, "dc, dm, mtt; got 'mt'; did you mean 'mtt'"),
    ],
)
def test_names_are_checked_before_a_prior_is_opened(settings, choices, make, monkeypatch):
    monkeypatch.setattr(DiffusionSetup, "open_prior", None)
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"{name} is one of .*{choices}"):
        make(**settings)


def test_an_unknown_start_is_refused(make):
    with pytest.raises(
        ConfigError, match=r"init is 'real', 'kmeans', 'noise' or the folder of a distilled set, got 'zeros'"
    ):
        make(init="zeros")


def test_conditioning_starts_from_the_embedding_of_its_class(make, tiny_prior):
    conditioning = make(ipc=2).space.parameters["conditioning"]
    assert torch.equal(conditioning, tiny_prior.embed(torch.tensor([2, 2, 0, 0, 1, 1])))


def test_conditioning_may_start_from_null_or_noise(make, tiny_prior):
    null = make(init_conditioning="null").space.parameters["conditioning"]
    assert torch.equal(null, tiny_prior.null_conditioning(3))
    normal = make(init_conditioning="normal", ipc=11).space.parameters["conditioning"].detach()
    assert normal.shape == (33, 1, 8)
    assert abs(normal.mean()) < 0.2
    assert abs(normal.std() - 1) < 0.2


def test_classes_without_a_match_start_from_the_null_class(make, tiny_prior, caplog):
    with caplog.at_level(logging.WARNING, "ld3m"):
        conditioning = make(class_ids=None).space.parameters["conditioning"]
    assert torch.equal(conditioning, tiny_prior.null_conditioning(3))
    assert "no class of random:tiny matches ['0', '1', '2']: starting from the null class" in caplog.text


def test_the_autoencoder_space_has_no_conditioning(make):
    assert list(make(space="autoencoder").space.parameters) == ["latents"]


@pytest.mark.parametrize("space", ["ld3m", "autoencoder"])
def test_a_latent_size_is_encoded_to_and_decoded_from(space, make, tiny_prior):
    """Twice the side of 8 x 8: real images are enlarged to 32 px, decoded ones reduced to 16 px."""
    job = make(latent_size=16, space=space)
    latents = job.space.parameters["latents"]
    assert latents.shape == (3, 3, 16, 16)
    train = job.dataset.train
    images = train.batch(torch.arange(len(train)))
    large = F.interpolate(images, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    encoded = tiny_prior.encode(large * 2 - 1)
    assert (latents[:, None] - encoded[None]).flatten(2).abs().amax(2).amin(1).max() < 1e-4
    with torch.no_grad():
        assert job.space.render(torch.arange(3), (0,)).shape == (3, 3, 16, 16)


@pytest.mark.parametrize(("learn", "expected"), [(("latents",), [True, False]), (("conditioning",), [False, True])])
def test_learn_says_what_is_optimised(learn, expected, make):
    assert [p.requires_grad for p in make(learn=learn).space.parameters.values()] == expected


def test_a_prior_that_is_given_keeps_its_dtype(coloured):
    prior = ld3m.load_prior("random:tiny", dtype=torch.float64)
    settings = {"prior": prior, "evaluate": "none", "steps": 1}
    job = prepare(coloured, settings, out=None, resume=False, overwrite=False)
    assert prior.dtype == torch.float64
    assert (job.config.dtype, job.config.prior) == ("float64", "random:tiny")
    assert job.space.parameters["latents"].dtype == torch.float32  # the master copy


def test_every_setting_that_decides_the_outcome_is_resolved(make):
    config = make(memory_budget="10MB").config
    undecided = {name for name, value in vars(config).items() if value is None}
    assert undecided == {
        "prior_config",
        "experts",
        "keep",
        "teacher",
        "device",
        "holdout",
        "latent_size",
        "layer",
        "lr_codes",
        "bit_range",
        "classes",
        "per_class",
        "per_class_seed",
        "decoder_batch",  # whole, as planned
        "real_chunk",
    }
    assert (config.preset, config.resolution, config.memory_budget) == ("builtin", 16, "10MB")
    assert 0 < config.retain < 1
    assert make(memory_budget="10MB", retain=1.0).config.retain == 1.0


def test_settings_that_are_stored_are_plain(make):
    stored = make().stored_settings()
    assert (stored["data"], stored["class_ids"], stored["learn"]) == ("<tuple>", [2, 0, 1], ["latents", "conditioning"])


REFUSED = [
    (
        {"resolution": 15},
        ConfigError,
        "resolution must be divisible by 2, the first stage's factor in random:tiny; got 15",
    ),
    ({"ipc": 12}, DataError, "class '0' has 11 images, --ipc 12 asks for more; lower --ipc or add images"),
    (
        {"class_ids": (0, 1, 5)},
        InputError,
        r"class_ids of random:tiny go from 0 to 3, and 4 is the null class; got \[5\]",
    ),
    ({"class_ids": (0, -1, 1)}, InputError, r"class_ids of random:tiny go from 0 to 3, .+ got \[-1\]"),
    ({"class_ids": (0, 1)}, InputError, "class_ids needs one id a class: 3 classes, got 2 ids"),
    ({"network": "LeNet"}, ConfigError, "unknown network 'LeNet'; did you mean AlexNet.+ConvNet, AlexNet, VGG11"),
    ({"network": "AlexNet", "width": 8}, ConfigError, "AlexNet takes no width; .+ AlexNet-w0.5"),
    (
        {"space": "autoencoder", "learn": ("conditioning",)},
        ConfigError,
        r"space 'autoencoder' has no chain, so learn needs 'latents'; got \['conditioning'\]",
    ),
    ({"prior": "nosuch"}, ConfigError, "prior is one of builtin, random:cin256, .+; got 'nosuch'"),
    ({"prior": "random:nosuch"}, ConfigError, "random priors are .+; got 'random:nosuch'"),
    ({"schedule": "sine"}, ConfigError, "schedule is one of linear, cosine, quadratic, exponential; got 'sine'"),
    ({"injection": "z"}, ConfigError, "injection is one of x0, mean, none; got 'z'"),
    ({"evaluate": "fast"}, ConfigError, "evaluate is one of glad-hard, quick, .*none; got 'fast'"),
    (
        {"evaluate": "quick"},
        ConfigError,
        "evaluate 'quick' cannot be done at 16 px: VGG11 pools five times .+ got 16; choose another resolution, or",
    ),
    (
        {"evaluate": "quick", "holdout": 0.0, "resolution": 32},
        DataError,
        "evaluate 'quick' needs a test split; give holdout above 0",
    ),
    ({"device": "nosuch"}, ConfigError, "device 'nosuch' cannot be used here"),
    ({"memory_budget": "lots"}, ConfigError, "memory_budget is a size such as .+got 'lots'"),
    ({"memory_budget": 1000}, ConfigError, "memory_budget of 0.00 MB does not hold"),
    ({"prior_config": "x.yaml"}, ConfigError, "config goes with a CompVis or DiT checkpoint file"),
    ({"algorithm": "mtt", "experts": "nosuch"}, CheckpointError, "no expert-.+ in nosuch"),
    (
        {"algorithm": "mtt", "expert_training_epochs": 3, "expert_epochs": 2, "max_start_epoch": 3},
        ConfigError,
        r"expert_training_epochs is at least max_start_epoch - 1 \+ expert_epochs = 4, got 3",
    ),
]


@pytest.mark.parametrize(("settings", "error", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_refused_leaves_no_folder(settings, error, message, make, tmp_path):
    if settings.get("prior_config"):
        settings = settings | {"prior": "random:tiny"}
    with pytest.raises(error, match=message):
        make(out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_what_is_refused_leaves_the_run_that_would_be_replaced(make, distill_small, tmp_path):
    path = distill_small(iterations=1, out=tmp_path / "run").path
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for settings, error, message in REFUSED[:6]:
        with pytest.raises(error, match=message):
            make(out=path, overwrite=True, **settings)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "the train split is empty"),
        (lambda x, y: (x[y == 0], y[y == 0]), "expected at least two classes"),
        (lambda x, y: (x.float() / 0, y), "NaN|finite|infinite"),
        (lambda x, y: (x, y.float()), "labels must be integers"),
    ],
)
def test_unusable_data_is_refused(data, message, make, coloured, tmp_path):
    with pytest.raises(DataError, match=message):
        make(data(*coloured), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unconditional_prior_takes_no_classes(make, reference_prior, tmp_path):
    prior = reference_prior("ffhq", torch.float32)
    with pytest.raises(InputError, match=rf"{prior.name} has no classes to match; leave class_ids out"):
        make(prior=prior, class_ids=(0, 1, 2))
    with pytest.raises(ConfigError, match=r"is unconditional, so learn needs 'latents'; got \['conditioning'\]"):
        make(prior=prior, class_ids=None, learn=("conditioning",))
    assert list(make(prior=prior, class_ids=None).space.parameters) == ["latents"]
    with pytest.raises(ConfigError, match=r"side is a multiple of 2, got 5; choose a resolution divisible by 8"):
        make(prior=prior, class_ids=None, resolution=20)


def test_any_resolution_may_be_resized_to_from_a_latent_size(make):
    job = make(latent_size=8, resolution=15, class_ids=(2, 0, 1))
    assert job.space.parameters["latents"].shape == (3, 3, 8, 8)
    assert job.space.render(torch.arange(3), (0,)).shape == (3, 3, 15, 15)


def test_trajectories_need_a_place(make):
    with pytest.raises(ConfigError, match=r"algorithm mtt needs experts=.+ or out= to train and keep them in"):
        make(algorithm="mtt")


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_resume_and_overwrite_need_a_folder(options, make):
    with pytest.raises(ConfigError, match=r"resume and overwrite need out="):
        make(**options)


def test_the_prior_is_run_as_the_settings_say(make, coloured):
    job = make(attention="bmm")
    assert job.space.prior.frozen.denoiser is not None
    assert job.space.prior.frozen.execution == ExecutionConfig(attention="bmm")
    given = ld3m.load_prior("random:tiny").set_execution(ExecutionConfig(fused_norm=True, time_table=False))
    settings = {"prior": given, "evaluate": "none", "steps": 1}
    job = prepare(coloured, settings | {"attention": "sdpa"}, out=None, resume=False, overwrite=False)
    assert job.space.prior.frozen.execution == ExecutionConfig(attention="sdpa", fused_norm=True, time_table=False)
    assert given.frozen.execution == ExecutionConfig(fused_norm=True, time_table=False)  # runs on as it did
    with pytest.raises(ConfigError, match="attention is one of auto"):
        make(attention="flash")
    with pytest.raises(ConfigError, match="cuda_graphs needs a prior on cuda"):
        make(cuda_graphs=True)


def test_weights_are_float32_on_a_cpu_when_nothing_is_said(make):
    job = make()
    assert job.config.dtype == "float32" and job.space.prior.dtype == torch.float32
