"""Distillation from the part of the real images that a teacher has the lowest loss on."""

import json

import pytest
import torch
import yaml

import ld3m
from ld3m.config import TeacherTraining
from ld3m.data import load
from ld3m.distillation.job import prepare
from ld3m.errors import ConfigError, DataError
from ld3m.evaluation import load_teacher, train_teacher
from ld3m.evaluation.measuring import Judges
from ld3m.runs.folder import RunFolder
from ld3m.spaces import SPACES

CALM = {"out": None, "resume": False, "overwrite": False}


@pytest.fixture(autouse=True)
def tiny_judges(monkeypatch):
    monkeypatch.setattr(Judges, "_network", "ConvNet-w0.03")


@pytest.fixture(scope="module")
def teacher(coloured, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    train_teacher(load(coloured, resolution=16), path, TeacherTraining("ConvNet-w0.03", epochs=2), progress=False)
    return path


def easiest(data, teacher, count):
    """The images of lowest loss of each class, by position."""
    network, kept = load_teacher(teacher).network, []
    for label in range(3):
        members = data.train.of_class(label)
        with torch.inference_mode():
            losses = -network(data.normalize(data.train.batch(members))).double().log_softmax(1)[:, label]
        kept.append(members[losses.argsort(stable=True)[:count]])
    return torch.cat(kept).sort().values


def test_the_easiest_images_are_kept(coloured, tiny_prior, teacher):
    data = load(coloured, resolution=16)
    settings = {"prior": tiny_prior, "algorithm": "dm", "class_ids": (0, 1, 2), "evaluate": "none"}
    job = prepare(coloured, {**settings, "keep": 0.6, "teacher": str(teacher)}, **CALM)
    kept = easiest(data, teacher, 7)  # of 11
    assert torch.equal(job.real.train.images, data.train.images[kept])
    assert torch.equal(job.real.train.labels, data.train.labels[kept])
    assert len(job.dataset.train) == 33  # which is evaluated on, and compared with, whole
    assert torch.equal(job.real.mean, data.mean)
    assert len(prepare(coloured, settings, **CALM).real.train) == 33


@pytest.mark.parametrize("algorithm", ["dc", "dm", "mtt"])
@pytest.mark.parametrize("space", SPACES)
def test_every_space_and_algorithm_takes_it(space, algorithm, coloured, teacher, distill_small, tmp_path):
    settings = {"prior": "random:stylegan-32", "class_ids": None, "resolution": 16} if space == "glad" else {}
    settings |= {"space": space, "algorithm": algorithm, "keep": 0.5, "teacher": teacher, "iterations": 1}
    path = distill_small(out=tmp_path / "run", **settings).path
    stored = yaml.safe_load((path / "config.yaml").read_text())
    assert stored["keep"] == 0.5 and stored["teacher"] == str(teacher)
    assert ld3m.load(path).config["keep"] == 0.5
    assert "teacher" in json.loads((path / "result.json").read_text())["fingerprints"]


def test_other_images_give_another_set(distill_small, teacher):
    whole = distill_small(init="noise")
    kept = distill_small(init="noise", keep=0.4, teacher=teacher)
    assert not torch.equal(whole.images, kept.images)
    assert torch.equal(whole.images, distill_small(init="noise", keep=1.0, teacher=teacher).images)


def test_experts_are_trained_on_what_is_kept(distill_small, teacher, tmp_path, monkeypatch):
    seen, train = [], ld3m.distillation.job.train_experts

    def spy(data, *arguments, **options):
        seen.append(len(data.train))
        return train(data, *arguments, **options)

    monkeypatch.setattr("ld3m.distillation.job.train_experts", spy)
    distill_small(algorithm="mtt", keep=0.5, teacher=teacher, out=tmp_path / "run", iterations=1)
    assert seen == [3 * 6]


def test_interrupted_it_ends_with_the_same_bytes(distill_small, tmp_path, monkeypatch):
    """The teacher is trained once: a run that is gone on with has the scores in its folder."""
    whole = distill_small(keep=0.6, out=tmp_path / "whole").path
    assert len(list((whole / "scores").iterdir())) == 3

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", interrupt)
        distill_small(keep=0.6, out=tmp_path / "run")
    monkeypatch.setattr("ld3m.evaluation.measuring.train_network", None)
    path = distill_small(out=tmp_path / "run", resume=True).path
    assert (path / "distilled.safetensors").read_bytes() == (whole / "distilled.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"these differ: keep 0\.6 → 0\.5"):
        distill_small(out=path, resume=True, keep=0.5)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"keep": 0.0}, ConfigError, r"keep is a share of the images, above 0 and at most 1; got 0\.0"),
        ({"keep": 1.5}, ConfigError, "at most 1; got 1.5"),
        ({"keep": float("nan")}, ConfigError, "at most 1; got nan"),
        ({"teacher": "teacher.safetensors"}, ConfigError, "a teacher says which images to keep; give keep as well"),
        ({"keep": 0.2, "ipc": 3}, DataError, "has 2 images, --keep 0.2 and --ipc 3 asks for more"),
    ],
)
def test_bad_input_is_one_clear_error(settings, error, message, distill_small, tmp_path):
    with pytest.raises(error, match=message):
        distill_small(out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
