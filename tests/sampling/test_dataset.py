"""Data sets sampled class by class: what comes out, what is refused, what a kill leaves behind."""

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
import weakref

import pytest
import torch
import yaml
from PIL import Image

import ld3m
from ld3m import chain
from ld3m.chain import sample
from ld3m.errors import ConfigError, DataError, InputError, MemoryBudgetError, NumericsError
from ld3m.runs import opening
from ld3m.runs.folder import RunFolder
from ld3m.runs.result import Result
from ld3m.runtime import storage
from ld3m.sampling import SELECTORS, together
from ld3m.sampling import dataset as synthesis
from ld3m.sampling import job as sampling_job

SETTINGS = {"class_ids": (0, 1, 2), "steps": 6, "stop": 3, "groups": 20, "evaluate": "none", "progress": False}


@pytest.fixture(scope="module")
def go(tiny_prior, coloured):
    """Sample `coloured` through `tiny_prior` in moments."""
    return lambda data=coloured, **settings: ld3m.sample_dataset(data, **{"prior": tiny_prior, **SETTINGS, **settings})


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """A run that nothing interrupted."""
    return go(out=tmp_path_factory.mktemp("whole") / "run", ipc=2).path


def bytes_of(path):
    return (path / "distilled.safetensors").read_bytes()


@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("selector", sorted(SELECTORS.keys() - {"itself"}))  # which is tested in test_refined
def test_every_selector_gives_a_set(selector, ipc, go, coloured):
    result = go(selector=selector, ipc=ipc)
    assert result.images.shape == (3 * ipc, 3, 16, 16)
    assert result.labels.tolist() == [label for label in range(3) for _ in range(ipc)]
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert result.images.flatten(1).std(1).min() > 0.01
    assert result.path is None
    assert {"selector": selector, "ipc": ipc, "real_images": 11, "resolution": 16}.items() <= result.config.items()


def test_images_are_sampled_from_the_latents(go, tiny_prior):
    result = go(ipc=2, guidance_scale=2.0)
    conditioning = tiny_prior.embed(torch.tensor([0, 0, 1, 1, 2, 2]))
    z0 = sample(tiny_prior, result.latents, conditioning, steps=6, start=3, guidance_scale=2.0)
    images = ((tiny_prior.decode(z0) + 1) / 2).clamp(0, 1)
    assert torch.allclose(images, result.images, atol=1e-5)


def test_compat_starts_a_point_higher(go, tiny_prior):
    result = go(ipc=2, compat="d3hr")
    conditioning = tiny_prior.embed(torch.tensor([0, 0, 1, 1, 2, 2]))
    z0 = sample(tiny_prior, result.latents, conditioning, steps=6, start=4, compat="d3hr")
    images = ((tiny_prior.decode(z0) + 1) / 2).clamp(0, 1)
    assert torch.allclose(images, result.images, atol=1e-5)


def test_classes_have_noise_of_their_own(go):
    latents = go(selector="random", ipc=2, statistics=None).latents.unflatten(0, (3, 2)).flatten(2)
    differences = (latents[:, 0] - latents[:, 1]).unbind()
    assert torch.corrcoef(torch.stack(differences)).fill_diagonal_(0).abs().max() < 0.5


def test_the_folder_is_that_of_a_run(whole, coloured):
    result = ld3m.load(whole)
    for label in range(3):
        for k in range(2):
            pixels = torch.tensor(list(Image.open(whole / "images" / str(label) / f"{k}.png").tobytes()))
            expected = (result.images[2 * label + k] * 255).round().permute(1, 2, 0).flatten()
            assert torch.equal(pixels, expected.long())
    facts = json.loads((whole / "result.json").read_text())
    assert facts["seconds_per_class"] > 0 and facts["protocol"] == "none" and facts["seed"] == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == ["0", "1", "2"]
    assert all(line["score"] > 0 and 0 <= line["group"] < 20 for line in lines)
    page = (whole / "report.html").read_text()
    assert "group selection" in page and "Curves" not in page
    names = {entry.name for entry in whole.iterdir()}
    assert {"config.yaml", "grid.png", "statistics", "report.html"} <= names
    assert not any(name.endswith((".partial", ".tmp")) for name in names)
    assert len(list((whole / "statistics").iterdir())) == 3


def test_it_can_be_exported_and_evaluated(whole, coloured, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    ld3m.export(run, "imagefolder", tmp_path / "to")
    assert len(list((tmp_path / "to").glob("*/*.png"))) == 6
    report = ld3m.evaluate(
        run, coloured, protocol="quick", networks=["ConvNet-w0.06"], repeats=1, epochs=2, progress=False
    )
    assert {row["set"] for row in report.rows} >= {"random", "kmeans"}


def test_a_stored_config_runs_again(whole, go, tmp_path):
    settings = yaml.safe_load((whole / "config.yaml").read_text())
    del settings["data"], settings["prior"]
    assert bytes_of(go(out=tmp_path / "again", **settings).path) == bytes_of(whole)


def test_in_memory_it_is_the_same(whole, go):
    result = go(ipc=2)
    assert torch.equal(result.images, ld3m.load(whole).images)
    assert torch.equal(result.latents, ld3m.load(whole).latents)


def test_batches_do_not_change_the_statistics(whole, go, tmp_path):
    path = go(out=tmp_path / "run", ipc=2, micro_batch=5).path
    for name in ("class-00000.safetensors", "class-00002.safetensors"):
        ours, theirs = (storage.load_tensors(folder / "statistics" / name)[0] for folder in (path, whole))
        assert torch.allclose(ours["mean"], theirs["mean"], atol=1e-5)
        assert torch.allclose(ours["std"], theirs["std"], atol=1e-5)


def test_a_subset_of_the_real_images_is_said(go, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "ld3m")
    with monkeypatch.context() as patch:
        patch.setattr("ld3m.config.sample._REAL_IMAGES", 6)
        path = go(out=tmp_path / "unsaid").path
    assert "at most 6 of up to 11 real images of a class are used; --real-images sets how many" in caplog.text
    caplog.clear()
    go(out=path, resume=True)
    path = go(out=tmp_path / "run", real_images=5).path
    assert "real images of a class are used" not in caplog.text
    assert yaml.safe_load((path / "config.yaml").read_text())["real_images"] == 5
    assert storage.load_tensors(path / "statistics" / "class-00000.safetensors")[1]["images"] == "5"


def test_statistics_of_another_run_serve_again(whole, go, tmp_path, monkeypatch):
    monkeypatch.setattr("ld3m.sampling.statistics.invert", None)
    again = go(out=tmp_path / "run", ipc=2, statistics=str(whole / "statistics")).path
    assert torch.equal(ld3m.load(again).images, ld3m.load(whole).images)
    assert not (again / "statistics").exists()
    other = go(selector="moments", ipc=3, statistics=str(whole / "statistics"))
    assert other.images.shape == (9, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inversion_guidance": 1.0}, "statistics in .* are of another run: inversion_guidance '4.0' → '1.0'"),
        ({"class_ids": (0, 2, 1)}, "class_id '1' → '2'"),
        ({"selector": "kmeans"}, "prototypes None → '1'"),
        ({"stop": 4}, "stop '3' → '4'"),
    ],
)
def test_statistics_of_something_else_do_not(settings, message, whole, go):
    with pytest.raises(ConfigError, match=message):
        go(statistics=str(whole / "statistics"), **settings)


def test_statistics_of_another_split_or_of_other_weights_do_not(whole, go, coloured, tiny_prior, tmp_path):
    """Under another split they could be of images that are now tested on."""
    some = str(go(out=tmp_path / "some", real_images=5).path / "statistics")
    for settings in ({"holdout": 0.5}, {"data": (255 - coloured[0], coloured[1])}):
        with pytest.raises(ConfigError, match=r"statistics in .* are of another run: data '\w{16}' → '\w{16}'"):
            go(statistics=some, real_images=5, **settings)
    other = copy.deepcopy(tiny_prior)
    with torch.no_grad():
        next(other.denoiser.parameters()).mul_(2)
    with pytest.raises(ConfigError, match=r"prior 'random:tiny \(\w{16}\)' → 'random:tiny \(\w{16}\)'"):
        go(statistics=str(whole / "statistics"), prior=other)


def test_without_a_folder_nothing_can_be_evaluated(go):
    assert go().config["evaluate"] == "none"
    with pytest.raises(ConfigError, match="evaluate 'quick' needs out=, where its report goes"):
        go(evaluate="quick")


def test_statistics_of_some_images_are_of_one_seed(whole, go, tmp_path):
    """Of all images they are not."""
    assert go(statistics=str(whole / "statistics"), seed=1).images.shape == (3, 3, 16, 16)
    some = go(out=tmp_path / "some", real_images=5).path / "statistics"
    with pytest.raises(ConfigError, match="seed '0' → '1'"):
        go(statistics=str(some), real_images=5, seed=1)
    with pytest.raises(ConfigError, match=r"images '5' → '11'.*leave them out, or use --real-images 5$"):
        go(statistics=str(some))


def test_a_run_refused_for_its_statistics_touches_no_folder(whole, go, tmp_path):
    some = shutil.copytree(whole / "statistics", tmp_path / "some")
    (some / "class-00002.safetensors").unlink()
    for settings in ({"statistics": str(whole / "statistics"), "stop": 4}, {"statistics": str(some)}):
        with pytest.raises(ConfigError, match="statistics"):
            go(out=tmp_path / "new", **settings)
        assert not (tmp_path / "new").exists()
    there = shutil.copytree(whole, tmp_path / "there")
    with pytest.raises(ConfigError, match="statistics"):
        go(out=there, overwrite=True, ipc=3, statistics=str(some))
    assert bytes_of(there) == bytes_of(whole)


def test_statistics_that_are_not_there(go, tmp_path):
    with pytest.raises(ConfigError, match=r"statistics has no class-00000\.safetensors"):
        go(statistics=str(tmp_path))


def test_a_class_that_runs_out_of_memory_is_repeated_with_less_at_once(go, whole, tmp_path, monkeypatch, caplog):
    sizes = []

    def limited(*arguments, micro_batch, **more):
        sizes.append(micro_batch)
        if micro_batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return chain.sample(*arguments, micro_batch=micro_batch, **more)

    monkeypatch.setattr(together, "sample", limited)
    result = go(out=tmp_path / "run", ipc=2)
    assert sizes == [64, 32, 16, 16, 16]
    assert torch.allclose(result.images, ld3m.load(whole).images, atol=1e-5)
    assert "out of memory in class '0'; it is repeated with 16 images at once" in caplog.text
    monkeypatch.setattr(together, "sample", run_out)
    with pytest.raises(MemoryBudgetError, match=r"ran out of memory in class '0', with one image at a time"):
        go()


def run_out(*_, **__):
    raise MemoryError


@pytest.mark.parametrize("name", ["statistics", "images"])
def test_what_is_not_finite_is_not_stored(name, go, tiny_prior, tmp_path, monkeypatch):
    method = {"statistics": "encode", "images": "decode"}[name]
    whole = getattr(type(tiny_prior), method)
    monkeypatch.setattr(type(tiny_prior), method, lambda prior, x: whole(prior, x) * torch.nan)
    with pytest.raises(NumericsError, match=rf"the {name} of class '0' hold NaN or infinite values"):
        go(out=tmp_path / "run")
    assert not [*(tmp_path / "run").rglob("*.png")]
    assert name == "images" or not [*(tmp_path / "run").rglob("class-*.safetensors")]


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (synthesis, "save_tensors", 1, False),  # statistics of the second class
        (synthesis, "save_tensors", 1, True),
        (synthesis.pictures, "save_png", 3, False),
        (synthesis.RowFile, "write", 5, True),  # latents of the second class, its images are not there
        (RunFolder, "log", 1, True),
        (RunFolder, "save_checkpoint", 1, False),
        (RunFolder, "save_checkpoint", 2, True),
        (synthesis.RowFile, "finish", 0, False),
        (synthesis.RowFile, "finish", 0, True),
        (Result, "draw_grid", 0, False),
    ],
)
def test_interrupted_anywhere_it_ends_with_the_same_bytes(
    owner, name, call, after, go, whole, interrupt, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, owner, name, call, after=after)
        go(out=tmp_path, ipc=2)
    assert bytes_of(go(out=tmp_path, resume=True).path) == bytes_of(whole)
    for path in whole.glob("images/*/*.png"):
        assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes()
    assert (tmp_path / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()
    lines = [json.loads(line)["iteration"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [0, 1, 2]


def test_a_run_that_lost_its_rows_starts_again(go, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(synthesis.RowFile, "finish", interrupt)
        go(out=tmp_path, ipc=2)
    (tmp_path / "distilled.safetensors.partial").unlink()
    assert bytes_of(go(out=tmp_path, resume=True).path) == bytes_of(whole)


def interrupt(*_args):
    raise KeyboardInterrupt


def test_a_finished_run_is_left_as_it_is(go, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    go(out=whole, resume=True)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_resume_needs_the_stored_settings(go, whole):
    with pytest.raises(ConfigError, match="these differ: ipc 2 → 3"):
        go(out=whole, resume=True, ipc=3)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        go(out=whole)
    with pytest.raises(ConfigError, match="need out="):
        go(resume=True)


def test_overwrite_removes_the_other_runs_statistics(go, whole, tmp_path):
    go(out=tmp_path, ipc=2, seed=5)
    assert bytes_of(go(out=tmp_path, ipc=2, overwrite=True).path) == bytes_of(whole)


@pytest.mark.parametrize(("device", "dtype"), [("cuda", "bfloat16"), ("cpu", "float32")])
def test_weights_are_coarser_on_a_gpu(device, dtype, coloured, tiny_prior, tmp_path, monkeypatch):
    asked = []

    def load(_source, *, device, dtype):
        asked.append((device.type, dtype))
        return tiny_prior

    monkeypatch.setattr(opening, "resolve_device", lambda _name: torch.device(device))
    monkeypatch.setattr(sampling_job, "load_prior", load)
    settings, where = {"class_ids": (0, 1, 2)}, {"out": None, "resume": False, "overwrite": False}
    job = sampling_job.prepare(coloured, settings, **where, scratch=tmp_path)
    assert asked == [(device, dtype)]
    assert job.config.dtype == dtype


_SLOW = """
import sys, time
from ld3m import cli
from ld3m.runs.folder import RunFolder
log = RunFolder.log
RunFolder.log = lambda *line: (log(*line), time.sleep(60))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_it_ends_with_the_same_bytes(coloured_folder, ld3m_command, tmp_path):
    """By SIGKILL, in a process of its own, once a class is there."""
    options = "--prior random:tiny --device cpu --class-ids 0 1 2 --steps 6 --stop 3 --groups 20"
    options += " --evaluate none --quiet --out"
    assert ld3m_command("sample", coloured_folder, options, tmp_path / "whole")[0] == 0
    command = ["sample", coloured_folder, *options.split(), tmp_path / "run"]
    process = subprocess.Popen([sys.executable, "-c", _SLOW, *command], stderr=subprocess.DEVNULL)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not metrics.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "distilled.safetensors").exists()
    assert ld3m_command("sample --resume --quiet --out", tmp_path / "run")[0] == 0
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


def test_ctrl_c_prints_the_command_to_go_on_with(coloured_folder, ld3m_command, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis.RowFile, "finish", interrupt)
    options = "--prior random:tiny --class-ids 0 1 2 --steps 6 --stop 3 --groups 20 --evaluate none --quiet --out"
    status, _, err = ld3m_command("sample", coloured_folder, options, tmp_path / "run")
    assert status == 130
    assert f"go on with: ld3m sample --out {tmp_path / 'run'} --resume" in err


@pytest.mark.parametrize(
    ("prior", "settings", "error", "message"),
    [
        ("ffhq", {"class_ids": None}, ConfigError, "needs a prior with classes, and .* is unconditional"),
        (
            "random:tiny",
            {"class_ids": None},
            InputError,
            r"no class of .* matches \['0', '1', '2'\]; name .* class_ids",
        ),
        ("random:tiny", {"class_ids": (0, 1)}, InputError, "one id a class: 3 classes, got 2"),
        ("random:tiny", {"class_ids": (0, 1, 9)}, InputError, r"go from 0 to 3.*got \[9\]"),
        ("random:tiny", {"stop": 6}, ConfigError, "stop is a point of the grid of 6 steps, from 1 to 5; got 6"),
        ("random:tiny", {"selector": "kmeans", "ipc": 13}, DataError, "has 11 images, --ipc 13 asks for more"),
        ("random:tiny", {"ipc": 13, "evaluate": "quick", "resolution": 32}, DataError, "--ipc 13 asks for more"),
        ("random:tiny", {"real_images": 1}, DataError, "needs at least 2 real images .*real_images leaves 1"),
        ("random:tiny", {"resolution": 17}, ConfigError, "resolution must be divisible by 2"),
        ("random:tiny", {"evaluate": "quickly"}, ConfigError, "evaluate is one of"),
    ],
)
def test_bad_input_is_one_clear_error(prior, settings, error, message, go, reference_prior, tmp_path):
    prior = reference_prior("ffhq", torch.float32) if prior == "ffhq" else prior
    with pytest.raises(error, match=message):
        go(prior=prior, out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_class_with_a_single_image(go, coloured):
    images, labels = coloured
    keep = (labels != 1) | (torch.arange(len(labels)) == 1)
    with pytest.raises(DataError, match=r"needs at least 2 real images of every class; class '1' has 1: add images"):
        go((images[keep], labels[keep]), holdout=0.0)


def test_classes_in_another_order_than_the_priors(coloured, tmp_path):
    """Matched by name: the data's first class is the prior's last."""
    prior = ld3m.load_prior("random:tiny")
    prior.class_names = ("zero", "one", "two", "three")
    images, labels = coloured
    settings = {**SETTINGS, "class_ids": None, "ipc": 1}
    folder = tmp_path / "data"
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("three", "one", "zero")[label] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    path = ld3m.sample_dataset(folder, prior=prior, out=tmp_path / "run", holdout=0.0, **settings).path
    used = [storage.load_tensors(file)[1] for file in sorted((path / "statistics").iterdir())]
    assert {about["class"]: about["class_id"] for about in used} == {"one": "1", "three": "3", "zero": "0"}


def test_a_diffusion_transformer_serves_as_well(go):
    result = go(prior="random:dit-tiny", ipc=2, resolution=None)
    prior = ld3m.load_prior("random:dit-tiny")
    side = prior.native_resolution
    assert result.images.shape == (6, 3, side, side)
    assert result.latents.shape == (6, 4, side // prior.downsample, side // prior.downsample)


def test_rows_are_written_as_they_are_made(go, tmp_path, monkeypatch):
    """No class's images are kept when the next one is made."""
    made = []
    original = synthesis._sample_class

    def watched(job, label, rows):
        write = rows.write
        rows.write = lambda name, tensor, first=0: (made.append(weakref.ref(tensor)), write(name, tensor, first))
        line = original(job, label, rows)
        rows.write = write
        assert all(reference() is None for reference in made)
        return line

    monkeypatch.setattr(synthesis, "_sample_class", watched)
    go(out=tmp_path / "run", ipc=2)
    assert len(made) == 6


def test_kmeans_images_have_the_shares_of_their_cells_as_weights(go, tmp_path):
    path = go(selector="kmeans", ipc=3, out=tmp_path / "run").path
    weights = ld3m.load(path).weights.view(3, 3)
    assert weights.sum(1).tolist() == pytest.approx([3, 3, 3])
    assert torch.allclose(weights * 11 / 3, (weights * 11 / 3).round(), atol=1e-5)  # whole images of 11
    stored = [storage.load_tensors(file)[0]["weights"] for file in sorted((path / "statistics").iterdir())]
    assert torch.equal(torch.stack(stored), weights)
    again = go(selector="kmeans", ipc=3, statistics=str(path / "statistics"))
    assert torch.equal(again.weights, weights.flatten())
    assert go(ipc=3).weights is None


def test_statistics_without_shares_are_gathered_anew(go, tmp_path):
    path = go(selector="kmeans", ipc=2, out=tmp_path / "run").path
    for file in (path / "statistics").iterdir():  # as an earlier release wrote them
        tensors, about = storage.load_tensors(file)
        del tensors["weights"], about["shares"]
        storage.save_tensors(file, tensors, about)
    with pytest.raises(ConfigError, match="shares None → 'kept'"):
        go(selector="kmeans", ipc=2, statistics=str(path / "statistics"))
