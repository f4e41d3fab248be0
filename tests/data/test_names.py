"""Names that would only be found out at the end of a run: said when the data are read, or handled."""

import os
import sys
import zipfile

import pytest
import torch

import ld3m
from ld3m.data import load
from ld3m.errors import DataError, Ld3mError
from ld3m.priors import load_prior
from tests.data.pictures import encoded, grid, put

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")


class Named:
    """A torch data set with names of its own."""

    def __init__(self, *classes):
        self.classes = classes

    def __len__(self):
        return 12

    def __getitem__(self, k):
        return torch.full((3, 8, 8), k, dtype=torch.uint8), k % len(self.classes)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("cat", "cat"), "two classes have the name 'cat'; give them names of their own"),
        (("a", "", ""), "two classes have the name ''"),
        (("cat", "caf\udce9"), r"class 'caf\\udce9' has a name that is not UTF-8; rename it"),
        (("cat", "\ud83d"), r"class '\\ud83d' has a name that is not UTF-8"),
        (("cat", "x" * 1001), r"class 'x+\.\.\.' has a name of 1,001 characters; shorten it"),
    ],
)
def test_names_that_no_set_can_have(names, said):
    with pytest.raises(DataError, match=said):
        load(Named(*names), resolution=8, holdout=0.0)


LONG = "é" * 124 + "n"  # 249 bytes, of 255 that a file system takes
PAIRS = {
    "equal after folding": ("N" * 255, "n" * 255),
    "equal when cut": ("n" * 300 + "1", "n" * 300 + "2"),
    "of two bytes a character": ("é" * 200, "É" * 200),
    "of split words": ("train " * 40, "test_" * 50),
    "short": ("cat", "dog"),
}


@pytest.mark.parametrize("names", PAIRS.values(), ids=PAIRS)
def test_long_names_of_classes_reach_the_end(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            for k in range(4):
                archive.writestr(f"train/{name}/{k}.png", encoded((name, k)))
                archive.writestr(f"test/{name}/{k}.png", encoded((name, k, "test")))
    run = ld3m.distill(
        tmp_path / "set.zip", out=tmp_path / "run", prior="random:tiny", class_ids=(0, 1), iterations=1, steps=1,
        width=4, evaluate="none", progress=False,
    ).path  # fmt: skip
    assert len(list(run.glob("images/*/0.png"))) == 2
    assert {name.strip() for name in ld3m.load(run).class_names} == {name.strip() for name in names}
    assert len(list(ld3m.export(run, "imagefolder", tmp_path / "to").glob("*/*.png"))) == 2


@LINUX
@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"a\x80b"])
def test_paths_that_are_not_utf8_are_refused_before_anything_is_done(name, tmp_path):
    odd = tmp_path / os.fsdecode(name)
    odd.mkdir()
    put(odd / "set", grid(("train", "test"), ("cat", "dog")))
    put(tmp_path / "set", grid(("train", "test"), ("cat", "dog")))
    (tmp_path / "link").symlink_to(odd / "set")
    teacher = ld3m.config.TeacherTraining(epochs=2)
    data = load(tmp_path / "set", resolution=32)
    for call in (
        lambda: load(odd / "set", resolution=8),
        lambda: ld3m.distill(tmp_path / "set", out=odd / "run", prior="random:tiny"),
        lambda: ld3m.distill(odd / "set", out=tmp_path / "run", prior="random:tiny"),
        lambda: ld3m.distill(tmp_path / "link", out=tmp_path / "run", prior="random:tiny"),
        lambda: ld3m.distill(tmp_path / "set", out=tmp_path / "run", prior=str(odd)),
        lambda: ld3m.sample_dataset(tmp_path / "set", out=odd / "run", prior="random:tiny"),
        lambda: ld3m.evaluate(odd / "run", data),
        lambda: ld3m.load(odd),
        lambda: load_prior(odd),
        lambda: ld3m.evaluation.train_teacher(data, odd / "teacher.safetensors", teacher),
        lambda: ld3m.distillation.experts.train_experts(data, odd / "experts", num_experts=1, epochs=1),
    ):
        with pytest.raises(Ld3mError, match=r"'.*\\udc.*' has a name that is not UTF-8; rename that file or folder"):
            call()
    assert [path.name for path in odd.iterdir()] == ["set"] and not (tmp_path / "run").exists()
