"""Files of a sampling that are damaged between: the class is named and made again, to the same bytes."""

import json
import shutil

import pytest

import ld3m
from ld3m.errors import CheckpointError
from ld3m.runtime.storage import load_tensors, save_tensors
from ld3m.sampling import dataset as sampling

SETTINGS = {"class_ids": (0, 1, 2), "steps": 6, "stop": 3, "groups": 20, "evaluate": "none", "progress": False}


@pytest.fixture(scope="module")
def go(tiny_prior, coloured):
    return lambda **settings: ld3m.sample_dataset(coloured, **{"prior": tiny_prior, "ipc": 2, **SETTINGS, **settings})


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    return go(out=tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture(scope="module")
def half(go, tmp_path_factory):
    """A run that was stopped after two of three classes."""
    path, original, calls = tmp_path_factory.mktemp("half") / "run", sampling._sample_class, iter(range(9))

    def stopped(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sampling, "_sample_class", stopped)
        go(out=path)
    return path


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def zero(path, first, last):
    content = bytearray(path.read_bytes())
    content[first:last] = bytes(len(content[first:last]))
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


IMAGES = 6 * 3 * 16 * 16 * 4  # bytes of all of them
PARTIAL = "distilled.safetensors.partial"
DAMAGE = {  # in a file of the rows: what is done to it, classes that are lost by it
    "a flipped bit of class 1": (lambda path: flip(path, 1000 + IMAGES // 3 + 900), ["1"]),
    "class 0 zeroed": (lambda path: zero(path, 1500, 1900), ["0"]),
    "both zeroed": (lambda path: zero(path, 2000, 2000 + IMAGES // 2), ["0", "1"]),
    "cut in class 1": (lambda path: cut(path, 1000 + IMAGES // 2), ["0", "1"]),  # the latents lie behind the images
    "the latents cut": (lambda path: cut(path, path.stat().st_size - 4000), ["0", "1"]),
}


def resumed(go, path, whole):
    """Go on with a run; it ends with the bytes of one that nothing happened to."""
    go(out=path, resume=True)
    for file in (*whole.glob("images/*/*.png"), *whole.glob("statistics/*"), *whole.glob("*.safetensors")):
        if file.name != "checkpoint.safetensors":
            assert (path / file.relative_to(whole)).read_bytes() == file.read_bytes(), file
    assert (path / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()
    lines = [json.loads(line)["iteration"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [0, 1, 2]


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("state", ["half", "whole"])
def test_classes_whose_rows_are_damaged_are_named_and_made_again(
    kind, state, go, half, whole, tmp_path, caplog, monkeypatch
):
    path = shutil.copytree(half if state == "half" else whole, tmp_path / "run")
    damage, names = DAMAGE[kind]
    damage(path / (PARTIAL if state == "half" else "distilled.safetensors"))
    made, original = [], sampling._sample_class
    monkeypatch.setattr(sampling, "_sample_class", lambda *args: (made.append(args[1]), original(*args))[1])
    if state == "whole":  # the statistics are there
        monkeypatch.setattr("ld3m.sampling.statistics.invert", None)
    resumed(go, path, whole)
    said = [record.args[0] for record in caplog.records if record.name == "ld3m.sampling.record"]
    if state == "half":
        assert said == names and made == [*map(int, names), 2]
    else:
        assert set(names) <= set(said) and made == list(map(int, said))


PICTURES = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: cut(path, 60),
    "empty": lambda path: cut(path, 0),
    "of another class": lambda path: shutil.copy(path.parent.parent / "0/0.png", path),
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("state", ["half", "whole"])
def test_pictures_that_are_damaged_are_drawn_again(kind, state, go, half, whole, tmp_path, caplog):
    path = shutil.copytree(half if state == "half" else whole, tmp_path / "run")
    PICTURES[kind](path / "images/1/1.png")
    resumed(go, path, whole)
    assert "images/1 are missing or damaged; they are drawn again" in caplog.text
    assert caplog.text.count("drawn again") == 1


STATISTICS = {
    "gone": (lambda path: path.unlink(), ""),
    "cut": (lambda path: cut(path, 90), "is not a whole safetensors file"),
    "flipped": (lambda path: flip(path, -3), "is damaged: it is not what was written there"),
}


@pytest.mark.parametrize("kind", STATISTICS)
@pytest.mark.parametrize("state", ["half", "whole"])
def test_statistics_that_are_damaged_are_gathered_again(kind, state, go, half, whole, tmp_path, caplog):
    path = shutil.copytree(half if state == "half" else whole, tmp_path / "run")
    damage, said = STATISTICS[kind]
    damage(path / "statistics/class-00001.safetensors")
    resumed(go, path, whole)
    assert said in caplog.text and "sampled again" not in caplog.text


def test_damaged_statistics_of_another_run_are_refused(go, whole, tmp_path):
    there = shutil.copytree(whole / "statistics", tmp_path / "there")
    flip(there / "class-00002.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"class-00002\.safetensors is damaged"):
        go(statistics=str(there))


def test_a_run_without_digests_is_taken_as_it_is(go, half, whole, tmp_path):
    """Of an earlier release."""
    path = shutil.copytree(half, tmp_path / "run")
    _, about = load_tensors(path / "checkpoint.safetensors")
    save_tensors(path / "checkpoint.safetensors", {}, about)
    resumed(go, path, whole)


def test_digests_tell_every_class_apart(half):
    digests = load_tensors(half / "checkpoint.safetensors")[0]["digests"]
    assert digests.shape == (3, 2, 8) and not digests[2].any()
    assert len({tuple(row) for row in digests[:2].flatten(0, 1).tolist()}) == 4
