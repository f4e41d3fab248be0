"""The prior trainer: fit, resume, what it writes."""

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ld3m
from ld3m import data
from ld3m.errors import CheckpointError, ConfigError, Ld3mError, NumericsError
from ld3m.prior_training import fit, train
from ld3m.prior_training.fit import Fit
from ld3m.prior_training.preview import sample_images, save_samples
from ld3m.prior_training.settings import PriorTraining
from ld3m.prior_training.train import train_prior
from ld3m.runtime import locks, seeds, storage
from ld3m.runtime.storage import load_tensors

SMALL = PriorTraining(
    resolution=16, first_stage_steps=5, first_stage_batch=4, steps=5, batch=6, ch=32, ch_mult=(1, 1), model_channels=32,
    channel_mult=(1,), attention_levels=(0,), num_heads=2, context_dim=8,
)  # fmt: skip
WEIGHTS = ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors")
PRIOR = [*(f"prior/{name}" for name in WEIGHTS), "prior/class_embedding.safetensors"]
OTHERS = ["samples.png", "first-stage-loss.json", "denoiser-loss.json", "first-stage-loss.png", "denoiser-loss.png"]


@pytest.fixture(scope="module")
def dataset(coloured):
    return data.load(coloured, resolution=16, holdout=0)


@pytest.fixture(scope="module")
def go(dataset):
    """Train in a moment, with a checkpoint after every step."""

    def call(out, config=SMALL, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit, "_CHECKPOINT_SECONDS", -1.0)
            patch.setattr(fit, "_LOG_EVERY", 1)
            few = {"progress": False, "preview": few_samples, "preview_every": 3}
            return train_prior(dataset, out, config, **{**few, **options})

    return call


def few_samples(prior, path):
    save_samples(prior, path, 0, per_class=2, steps=2)


@pytest.fixture(scope="module")
def trained(go, tmp_path_factory):
    out = tmp_path_factory.mktemp("prior") / "out"
    assert go(out) == out / "prior"
    return out


def test_what_is_written(trained):
    found = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    expected = {
        *PRIOR,
        *OTHERS,
        "training.json",
        "first-stage.safetensors",
        "denoiser.safetensors",
        "samples-000003.png",
    }
    expected |= {f"prior/{part}/config.json" for part in ("vae", "unet")} | {"prior/scheduler/scheduler_config.json"}
    assert found - {"prior/model_index.json"} == expected
    assert json.loads((trained / "training.json").read_text())["ch_mult"] == [1, 1]
    for name in ("first-stage", "denoiser"):
        losses = json.loads((trained / f"{name}-loss.json").read_text())
        assert [step for step, _ in losses] == [0, 1, 2, 3, 4]
        assert all(0 < loss < 10 for _, loss in losses)
    assert Image.open(trained / "samples.png").size == (2 * 66 + 2, 3 * 66 + 2)
    assert len(np.unique(np.asarray(Image.open(trained / "samples.png")))) > 10


def test_the_prior_is_loaded_in_half_precision_by_us_and_by_diffusers(trained):
    prior = ld3m.load_prior(trained / "prior")
    assert (prior.num_classes, prior.conditioning_shape, prior.native_resolution) == (3, (1, 8), 16)
    assert (prior.downsample, prior.latent_channels, prior.class_names) == (2, 3, ("0", "1", "2"))
    for name in PRIOR:
        assert {tensor.dtype for tensor in load_tensors(trained / name)[0].values()} == {torch.float16}
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for kind, name, module in (
        (AutoencoderKL, "vae", prior.first_stage),
        (UNet2DConditionModel, "unet", prior.denoiser),
    ):
        theirs = kind.from_pretrained(trained / "prior" / name, torch_dtype=torch.float32).state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in module.state_dict().items())


def test_latents_of_the_prior_have_mean_0_and_deviation_1(trained, dataset):
    """In every channel: this is what the denoiser was trained on, and what `encode` gives."""
    prior = ld3m.load_prior(trained / "prior")
    latents = prior.encode(dataset.train.batch(torch.arange(36)) * 2 - 1)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)


@pytest.fixture
def stopped(monkeypatch):
    """Make the n-th optimiser step of a training raise."""

    def install(patch, call):
        step, calls = Fit._step, iter(range(100))

        def stop(self, *args):
            if next(calls) == call:
                raise KeyboardInterrupt
            return step(self, *args)

        patch.setattr(Fit, "_step", stop)

    return install


@pytest.mark.parametrize("calls", [(0,), (3,), (4, 0), (7,), (9, 0)], ids=str)
def test_a_resumed_training_gives_the_same_bytes(calls, go, trained, stopped, tmp_path, monkeypatch):
    """Stopped in the first stage (steps 0 … 4), in the denoiser (5 … 9), and again right after going on."""
    for resume, call in enumerate(calls):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stopped(patch, call)
            go(tmp_path / "out", resume=bool(resume))
    assert not (tmp_path / "out" / "prior").exists()
    go(tmp_path / "out", resume=True)
    for name in PRIOR + OTHERS:
        assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_finished_training_is_resumed_to_the_same(go, trained, monkeypatch):
    before = {name: (trained / name).read_bytes() for name in PRIOR + OTHERS}
    monkeypatch.setattr(Fit, "_step", None)
    go(trained, resume=True)
    assert {name: (trained / name).read_bytes() for name in before} == before


def test_a_last_picture_that_fails_costs_no_prior(go, tmp_path):
    def preview(prior, path):
        if path.name == "samples.png":
            raise MemoryError

    with pytest.raises(MemoryError):
        go(tmp_path / "out", preview=preview)
    assert (tmp_path / "out/prior/model_index.json").is_file()


def test_a_training_goes_on_beyond_its_old_end(go, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fit, "_WARM_UP", 1)  # so that the rate follows the cosine
    caplog.set_level("INFO", logger="ld3m")
    go(tmp_path)
    names = ("first-stage.safetensors", "denoiser-loss.json")
    first_stage, losses = (tmp_path / name for name in names)
    stage, before = first_stage.read_bytes(), json.loads(losses.read_text())
    with pytest.raises(ConfigError, match="first_stage_steps 5 → 9; use those"):
        go(tmp_path, replace(SMALL, first_stage_steps=9), resume=True)
    go(tmp_path, replace(SMALL, steps=8), resume=True)
    after = json.loads(losses.read_text())
    assert after[:5] == before and [step for step, _ in after] == list(range(8))
    assert first_stage.read_bytes() == stage
    assert "steps 5 → 8" in caplog.text
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 8
    assert load_tensors(tmp_path / "denoiser.safetensors")[1]["step"] == "8"


def test_a_resumed_training_has_the_same_images(go, trained, coloured, dataset):
    """Others could be images that are to be tested on."""
    other = data.load(coloured, resolution=dataset.resolution, holdout=0.5)
    with pytest.raises(ConfigError, match=r"was trained with other settings: fingerprint '\w+' → '\w+'; use those"):
        train_prior(other, trained, SMALL, resume=True)


def test_a_picture_that_a_kill_came_before_is_drawn_when_the_training_goes_on(go, trained, tmp_path):
    """The checkpoint after step 3 is there, the picture of step 3 is not."""

    def preview(prior, path):
        raise SystemExit

    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        go(out, preview=preview)
    assert load_tensors(out / "denoiser.safetensors")[1]["step"] == "3" and not list(out.glob("samples*"))
    go(out, resume=True)
    for name in (*PRIOR, *OTHERS, "samples-000003.png"):
        assert (out / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.parametrize("moment", ["loss", "optimiser", "picture"])
def test_an_interrupted_training_keeps_its_last_whole_state(moment, go, trained, dataset, tmp_path, monkeypatch):
    """Without a checkpoint of its own before: in step 8, the fourth of the denoiser, or in the picture before it."""
    losses, steps = iter(range(99)), iter(range(99))
    loss, step = train._denoiser_loss, torch.optim.AdamW.step

    def interrupted_loss(*args):
        if next(losses) == 3 and moment == "loss":
            raise KeyboardInterrupt
        return loss(*args)

    def interrupted_step(self, *args):
        step(self, *args)
        if next(steps) == 8 and moment == "optimiser":
            raise KeyboardInterrupt

    def preview(prior, path):
        if moment == "picture":
            raise KeyboardInterrupt
        few_samples(prior, path)

    out, options = tmp_path / "out", {"progress": False, "preview_every": 3}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit, "_LOG_EVERY", 1)
        patch.setattr(train, "_denoiser_loss", interrupted_loss)
        patch.setattr(torch.optim.AdamW, "step", interrupted_step)
        train_prior(dataset, out, SMALL, preview=preview, **options)
    is_kept = (out / "denoiser.safetensors").is_file()
    assert is_kept == (moment == "loss")  # else the weights are half changed, or the averages are in their place
    if is_kept:
        assert load_tensors(out / "denoiser.safetensors")[1]["step"] == "3"
    go(out, resume=True)
    for name in (*PRIOR, *OTHERS, "samples-000003.png"):
        assert (out / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_training_that_was_not_begun_is_not_resumed(go, tmp_path):
    (tmp_path / ".training.json.12-0123abcd.tmp").touch()
    with pytest.raises(ConfigError, match=r"is empty: no training was begun there; leave --resume out to start one"):
        go(tmp_path, resume=True)


def test_a_training_has_its_folder_for_itself(go, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with storage.owning(tmp_path / "out"), ThreadPoolExecutor(1) as pool:
        error = pool.submit(go, tmp_path / "out").exception()
    assert isinstance(error, ConfigError) and "out is being written by process" in str(error)


def test_a_folder_that_is_removed_while_a_prior_is_trained_is_an_error(go, tmp_path):
    def preview(prior, path):
        shutil.rmtree(tmp_path / "out")

    with pytest.raises(Ld3mError, match="out was removed while it was written"):
        go(tmp_path / "out", preview=preview)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["vae/config.json", "unet/config.json"])
def test_a_configuration_that_cannot_be_written_is_one_clear_error(name, go, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "out")
    replace = storage.os.replace

    def full(source, target):
        if str(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    before = (tmp_path / "out" / "prior" / name).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(Ld3mError, match=rf"could not write .+{name}: .+disk is full"):
        patch.setattr(storage.os, "replace", full)
        go(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "prior" / name).read_bytes() == before
    go(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "prior" / name).read_bytes() == before


def test_a_checkpoint_is_written_every_so_often(tmp_path, monkeypatch):
    saved, clock = [], iter(range(0, 1000, 20))
    monkeypatch.setattr(fit.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(Fit, "_checkpoint", lambda self, step: saved.append(step))
    fit_line(tmp_path)
    assert saved == [2, 4, 6]


def test_another_seed_gives_another_prior(go, trained, tmp_path):
    go(tmp_path / "out", replace(SMALL, seed=1))
    assert (tmp_path / "out" / PRIOR[1]).read_bytes() != (trained / PRIOR[1]).read_bytes()


def test_folders_are_claimed_as_runs_are(go, trained, tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(ConfigError, match=r"is not empty: choose another --out, or --resume the training in it"):
        go(trained)
    with pytest.raises(ConfigError, match=r"holds no training to resume; choose another --out"):
        go(tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"out .+none is not there, so there is nothing to resume"):
        go(tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match=r"out .+x is a file; choose a folder"):
        go(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"was trained with other settings: steps 5 → 4, lr 0.001 → 0.5; use those"):
        go(trained, replace(SMALL, steps=4, lr=0.5), resume=True)
    with pytest.raises(ConfigError, match="preview_every is at least 1 step, got 0"):
        go(tmp_path / "new", preview_every=0)
    with pytest.raises(ConfigError, match="device 'nosuch' cannot be used here"):
        go(tmp_path / "new", device="nosuch")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"steps": 5', r"training.json is damaged: it is not JSON \(.+\); restore it"),
        (b"\xff\xfe", r"training.json is damaged: it is not UTF-8 text \(.+\); restore it"),
        (b"[5]", r"training.json: expected an object of names and values, got \[5\]; restore it"),
        (b'{"steps": "5"}', "training.json: steps is a whole number from 0 to 1,000,000,000, got '5'; restore it"),
    ],
)
def test_damaged_settings_of_a_training_are_named(tmp_path, content, message):
    (tmp_path / "training.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        fit.check_folder(tmp_path, {"steps": 5}, resume=True)
    assert (tmp_path / "training.json").read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is a whole number, at least 1; got 0"),
        ({"batch": -1}, "batch is a whole number, at least 1; got -1"),
        (
            {"resolution": 30},
            r"resolution must be divisible by 4, the first stage's factor with ch_mult \(1, 2, 2\); got 30",
        ),
        ({"ch": 20}, "ch is a multiple of 32, the groups of the norms; got 20"),
        ({"model_channels": 48}, "model_channels is a multiple of 32"),
        ({"lr": -1e-3}, r"^lr is a learning rate above 0, got -0.001; the default is 1e-3"),
        ({"lr": 0.0}, "^lr is a learning rate above 0, got 0.0"),
        ({"first_stage_lr": math.nan}, "first_stage_lr is a learning rate above 0, got nan"),
        ({"first_stage_lr": math.inf}, "first_stage_lr is a learning rate above 0, got inf"),
        ({"kl_weight": -1.0}, "kl_weight is a weight, 0 or above, got -1.0; the default is 1e-4"),
        ({"label_dropout": 1.5}, r"label_dropout is in \[0, 1\]"),
        ({"ema": 1.0}, r"ema in \[0, 1\)"),
        ({"attention_levels": (0, 2)}, r"attention_levels are of 0 to 1, .+ got \(0, 2\)"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        PriorTraining(**changes)


def fit_line(folder, ema=0.5, each=None, bad_step=None):
    """Fit w from 0 to 3 + step in six steps; return it."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    phase = Fit("line", folder, 6, 0.1, ema=ema, progress=False)

    def loss(step):
        return (module.weight - 3 - step).square().mean() * (float("nan") if step == bad_step else 1)

    phase.run(module, loss, each)
    return module.weight


def test_a_fit_is_adamw_with_warm_up_cosine_clipping_and_averages(tmp_path):
    weight = nn.Parameter(torch.zeros(1, 1))
    average, optimiser = weight.detach().clone(), torch.optim.AdamW([weight], 0.1, weight_decay=0.01, betas=(0.9, 0.99))
    seen = []
    for step in range(6):
        optimiser.param_groups[0]["lr"] = 0.1 * min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * step / 6))
        optimiser.zero_grad()
        (weight - 3 - step).square().mean().backward()
        weight.grad.clamp_(-1, 1)
        optimiser.step()
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight.detach()
        seen.append(average.item())
    calls = []
    fitted = fit_line(tmp_path, each=(2, calls.append))
    torch.testing.assert_close(fitted.detach(), average)
    assert calls == [2, 4]
    assert not fitted.requires_grad
    assert json.loads((tmp_path / "line-loss.json").read_text()) == [[0, 9.0]]


def test_samples_are_made_with_the_averages(tmp_path):
    module, seen = nn.Linear(1, 1, bias=False), []
    phase = Fit("line", tmp_path, 5, 0.1, ema=0.9, progress=False)
    during = []

    def loss(step):
        during.append(module.weight.item())
        return (module.weight - 3).square().mean()

    phase.run(module, loss, (2, lambda _step: seen.append(module.weight.item())))
    assert seen[0] not in during
    assert len(set(during)) == 5  # training went on from its own weights


def test_without_averages_the_last_weights_are_the_result(tmp_path):
    fit_line(tmp_path, ema=None)
    stored = load_tensors(tmp_path / "line.safetensors")[0]
    assert set(stored) == {"parameter/0", "exp_avg/0", "exp_avg_sq/0"}
    assert torch.equal(stored["parameter/0"], fit_line(tmp_path, ema=None).detach())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "_CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(NumericsError, match="the loss of line is nan at step 2; lower its rate, in another --out"):
        fit_line(tmp_path, bad_step=2)
    tensors, about = load_tensors(tmp_path / "line.safetensors")
    assert about["step"] == "2"
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    fit_line(tmp_path)
    with pytest.raises(CheckpointError, match=r"line.safetensors is of another model .+; train in another --out"):
        Fit("line", tmp_path, 6, 0.1, ema=0.5, progress=False).run(nn.Linear(2, 2), lambda _step: torch.zeros(()))


def test_the_first_stage_learns(go, dataset, tmp_path):
    out = tmp_path / "out"
    go(out, replace(SMALL, first_stage_steps=30, first_stage_lr=0.02, steps=1, first_stage_batch=8))
    losses = [loss for _, loss in json.loads((out / "first-stage-loss.json").read_text())]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_labels_are_dropped_for_guidance(trained, dataset, monkeypatch):
    """The share of rows that see the null class, and the labels of the others."""
    prior = ld3m.load_prior(trained / "prior")
    latents = prior.encode(dataset.train.batch(torch.arange(36)) * 2 - 1)
    seen, embed = [], prior.class_embedding.forward
    monkeypatch.setattr(prior.class_embedding, "forward", lambda ids: (seen.append(ids), embed(ids))[1])
    config = replace(SMALL, batch=400, label_dropout=0.1)
    monkeypatch.setattr(prior, "denoiser", lambda noisy, *_: type("Output", (), {"sample": noisy}))
    with torch.no_grad():
        losses = [train._denoiser_loss(prior, latents, dataset.train.labels, config, step).item() for step in (0, 0, 1)]
        train._denoiser_loss(prior, latents, dataset.train.labels, replace(config, label_dropout=0.0), 0)
    counts = torch.bincount(seen[0], minlength=4)
    assert 20 <= counts[3] <= 60
    assert counts[:3].min() > 80
    assert torch.bincount(seen[3], minlength=4)[3] == 0
    assert torch.equal(seen[0].where(seen[0] < 3, seen[3]), seen[3])
    assert losses[0] == losses[1] != losses[2]


def test_samples_follow_their_generator_and_class(trained):
    prior = ld3m.load_prior(trained / "prior")

    def sample(ids, seed, **options):
        draw = seeds.generator(seed)
        return sample_images(prior, torch.tensor(ids), draw, **{"steps": 2, "guidance_scale": 2.0, **options})

    first = sample([0, 2], 0)
    assert first.shape == (2, 3, 16, 16)
    assert 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, sample([0, 2], 0))
    other = sample([0, 1], 0)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])
    assert not torch.equal(first, sample([0, 2], 1))


def test_the_progress_names_both_phases(go, tmp_path, capsys):
    go(tmp_path / "out", progress=True)
    bars = capsys.readouterr().err
    assert "first-stage: 5 of 5" in bars
    assert "denoiser: 5 of 5" in bars
