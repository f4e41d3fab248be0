"""The outcome of a distillation, in memory and as a folder."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ld3m
from ld3m.errors import CheckpointError
from ld3m.runs.result import Result, folder_names
from ld3m.runtime.storage import load_tensors, save_tensors

TENSORS = ("images", "labels", "latents", "conditioning", "mean", "std")


@pytest.fixture
def result():
    draw = torch.Generator().manual_seed(0)
    return Result(
        images=torch.rand(4, 3, 8, 8, generator=draw),
        labels=torch.arange(2).repeat_interleave(2),
        class_names=("ankle boot", "tench, Tinca tinca"),
        parameters={
            "latents": torch.randn(4, 3, 4, 4, generator=draw),
            "conditioning": torch.randn(4, 1, 5, generator=draw),
        },
        config={"data": "some", "lr": 0.1, "learn": ["latents"], "class_ids": None},
        mean=torch.tensor([0.25, 0.5, 0.75]),
        std=torch.tensor([0.125, 0.25, 0.5]),
    )


@pytest.mark.parametrize(
    "parameters",
    [None, {}, {"features": torch.arange(720.0).reshape(4, 5, 6, 6), "codes": torch.arange(96.0).reshape(4, 3, 8)}],
)
def test_what_is_saved_is_loaded(result, parameters, tmp_path):
    result = result if parameters is None else replace(result, parameters=parameters)
    assert result.save(tmp_path / "run") == tmp_path / "run"
    loaded = ld3m.load(str(tmp_path / "run"))
    for name in TENSORS:
        ours, theirs = getattr(result, name), getattr(loaded, name)
        assert theirs is None if ours is None else torch.equal(ours, theirs)
    assert loaded.parameters.keys() == result.parameters.keys()
    assert all(torch.equal(tensor, result.parameters[name]) for name, tensor in loaded.parameters.items())
    assert loaded.labels.dtype == torch.int64
    assert (loaded.class_names, loaded.config, loaded.ipc) == (result.class_names, result.config, 2)
    assert loaded.path == tmp_path / "run"


def test_the_folder_has_a_picture_of_each_image(result, tmp_path):
    result.save(tmp_path)
    expected = (result.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    files = [f"images/{name}/{k}.png" for name in ("ankle boot", "tench, Tinca tinca") for k in range(2)]
    for file, image in zip(files, expected, strict=True):
        assert (np.asarray(Image.open(tmp_path / file)) == image).all()
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted([*files, "distilled.safetensors", "grid.png"])
    assert Image.open(tmp_path / "grid.png").height == 2 * (66 + 2)


def test_the_grid_shows_some_of_many(tmp_path):
    """Of a thousand classes with fifty images it would be a file that nothing opens."""
    images = torch.linspace(0, 1, 102 * 11)[:, None, None, None].expand(-1, 3, 64, 64)
    names = tuple(map(str, range(102)))
    labels = torch.arange(102).repeat_interleave(11)
    Result(images, labels, names, {}, {}, torch.zeros(3), torch.ones(3)).draw_grid(tmp_path)
    grid = Image.open(tmp_path / "grid.png")
    names = grid.width - (10 * 66 + 2)
    assert 0 < names < 66 and grid.height == 100 * 68
    assert grid.getpixel((names + 2, 2 + 68)) == (round(float(images[11, 0, 0, 0]) * 255),) * 3


def test_the_bytes_are_the_same_each_time(result, tmp_path):
    shuffled = replace(result, config=dict(reversed(result.config.items())))
    files = [r.save(tmp_path / name) / "distilled.safetensors" for name, r in (("a", result), ("b", shuffled))]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_tensors_are_written_last(result, tmp_path, monkeypatch):
    """Who finds them finds the rest as well."""
    monkeypatch.setattr("ld3m.runs.result.save_tensors", lambda path, *_: present.extend(path.parent.rglob("*.png")))
    present = []
    result.save(tmp_path)
    assert len(present) == 5


def test_what_is_no_result_is_named(result, tmp_path):
    with pytest.raises(CheckpointError, match=r"nosuch is not a folder; pass the output folder of a distillation"):
        ld3m.load(tmp_path / "nosuch")
    with pytest.raises(CheckpointError, match=r"has no distilled.safetensors: not a finished run; go on .* --resume"):
        ld3m.load(tmp_path)
    result.save(tmp_path)
    tensors, about = load_tensors(tmp_path / "distilled.safetensors")
    del tensors["mean"], about["config"]
    save_tensors(tmp_path / "distilled.safetensors", tensors, about)
    with pytest.raises(CheckpointError, match=r"distilled.safetensors lacks config, mean; it is not a distilled set"):
        ld3m.load(tmp_path)
    (tmp_path / "distilled.safetensors").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"is not a whole safetensors file"):
        ld3m.load(tmp_path)


def test_the_settings_are_readable_by_others(result, tmp_path):
    result.save(tmp_path)
    about = load_tensors(tmp_path / "distilled.safetensors")[1]
    assert json.loads(about["class_names"]) == list(result.class_names)
    assert json.loads(about["config"]) == result.config


@given(
    st.lists(
        st.text(max_size=6) | st.sampled_from(("a", "A", "a-1", "..", ".", "a/b", "README.md", "/etc")), max_size=8
    )
)
def test_folder_names_are_different_and_stay_inside(tmp_path_factory, class_names):
    names = folder_names(class_names)
    assert len(names) == len({name.casefold() for name in names}) == len(class_names)
    for name in names:
        assert name.strip(". ") == name != ""
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert name.casefold() != "readme.md"


def test_folder_names_keep_what_they_can():
    assert folder_names(("cat", "T-shirt/top", "Cat", "é", " dog. ")) == ["cat", "T-shirt-top", "Cat-2", "é", "dog"]


def test_images_of_a_larger_set_do_not_stay(distill_small, tmp_path):
    distill_small(ipc=2, iterations=1, evaluate="none").save(tmp_path)
    (tmp_path / "images" / "mine.png").touch()
    distill_small(iterations=1, evaluate="none").save(tmp_path)
    names = {str(path.relative_to(tmp_path / "images")) for path in (tmp_path / "images").rglob("*.png")}
    assert names == {"0/0.png", "1/0.png", "2/0.png", "mine.png"}
