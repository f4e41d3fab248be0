"""Teachers: trained, stored, loaded, refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from ld3m.data import ImageSet
from ld3m.errors import CheckpointError, ConfigError, NumericsError
from ld3m.evaluation import Teacher, TeacherTraining, load_teacher, train_teacher
from ld3m.runtime import locks
from ld3m.runtime.storage import owning, save_tensors

BRIEF = TeacherTraining(network="ConvNet-w0.06", epochs=6, lr=0.05, batch_size=16)


@pytest.fixture
def teacher(toy, tmp_path) -> Teacher:
    return train_teacher(toy, tmp_path / "teacher.safetensors", BRIEF, progress=False)


def test_a_teacher_learns_and_says_how_well(teacher, toy):
    assert teacher.about["test_accuracy"] > 90  # chance is 33
    logits = teacher.logits(toy.normalize(toy.test.batch(range(90))), toy)
    assert 100 * float((logits.argmax(1) == toy.test.labels).float().mean()) == pytest.approx(
        teacher.about["test_accuracy"]
    )


def test_a_loaded_teacher_gives_the_same_answers(teacher, toy, tmp_path):
    loaded = load_teacher(tmp_path / "teacher.safetensors")
    images = toy.normalize(toy.test.batch(range(5)))
    assert torch.equal(loaded.logits(images, toy), teacher.logits(images, toy))
    assert (loaded.name, loaded.about) == (teacher.name, teacher.about)
    assert (loaded.class_names, loaded.resolution) == (("red", "green", "blue"), 8)
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert not loaded.network.training


def test_the_same_seed_gives_the_same_file_and_another_one_another_name(teacher, toy, tmp_path):
    again = train_teacher(toy, tmp_path / "again.safetensors", BRIEF, progress=False)
    other = train_teacher(toy, tmp_path / "other.safetensors", replace(BRIEF, epochs=2, seed=1), progress=False)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "teacher.safetensors").read_bytes()
    assert teacher.name == again.name != other.name
    assert teacher.name.startswith(f"ConvNet-w0.06 of {toy.name} (")


def test_images_are_seen_by_the_teachers_own_statistics(teacher, toy):
    images = toy.test.batch(range(4))
    other = replace(toy, mean=torch.tensor([0.1, 0.2, 0.3]), std=torch.tensor([0.5, 0.4, 0.3]))
    wanted = teacher.logits(toy.normalize(images), toy)
    torch.testing.assert_close(teacher.logits(other.normalize(images), other), wanted, rtol=1e-4, atol=1e-4)


def changed(toy, class_names: tuple[str, ...]):
    count = len(class_names)
    kept = toy.train.labels < count
    train = ImageSet(toy.train.images[kept], toy.train.labels[kept], class_names)
    return replace(toy, name="other", train=train, class_names=class_names)


@pytest.mark.parametrize(
    ("class_names", "message"),
    [
        (("red", "green"), "knows 3 classes, data 'other' has 2; train one on it: ld3m teacher DATA"),
        (("red", "green", "grey"), "knows class 'blue', which data 'other' has not"),
        (("red", "blue", "green"), "another order than data 'other': label 1 is 'green' to it and 'blue' there"),
    ],
)
def test_other_classes_are_refused(teacher, toy, class_names, message):
    with pytest.raises(ConfigError, match=message):
        teacher.require_fit(changed(toy, class_names))


def test_another_resolution_is_refused_and_the_own_data_is_not(teacher, toy):
    with pytest.raises(ConfigError, match=r"the teacher is for 8 px, the images have 16; .* --resolution 16"):
        teacher.require_fit(replace(toy, resolution=16))
    teacher.require_fit(toy)


def test_another_split_is_refused(teacher, toy):
    """The teacher may have seen what is tested on now."""
    other = replace(toy, train=ImageSet(toy.train.images[1:], toy.train.labels[1:], toy.train.class_names))
    with pytest.raises(ConfigError, match=r"trained on other images than the training split of data .* test images"):
        teacher.require_fit(other)


def test_files_that_are_no_teacher_are_refused(teacher, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors is not there"):
        load_teacher(tmp_path / "nowhere.safetensors")
    text, plain = tmp_path / "text.safetensors", tmp_path / "plain.safetensors"
    text.write_text("import os")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_teacher(text)
    save_tensors(plain, {"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"plain.* is not a teacher's file; make one with `ld3m teacher`"):
        load_teacher(plain)
    own = {"kind": "ConvNet-w0.12", "class_names": ["a", "b", "c"], "resolution": 8, "data": "toy", "fingerprint": "1f"}
    save_tensors(
        plain,
        teacher.network.state_dict(),
        {"teacher": json.dumps(own | {"mean": [0.0] * 3, "std": [1.0] * 3, "about": {}})},
    )
    with pytest.raises(CheckpointError, match=r"is not a teacher .*size mismatch"):
        load_teacher(plain)


def test_bad_trainings_are_refused(teacher, toy, tmp_path):
    with pytest.raises(ConfigError, match="is there already; name another file"):
        train_teacher(toy, tmp_path / "teacher.safetensors", BRIEF, progress=False)
    with pytest.raises(ConfigError, match="batch_size must be above 0, got 0"):
        TeacherTraining(batch_size=0)
    with pytest.raises(ConfigError, match=r"epochs is a whole number, at least 2 .* got 1"):
        TeacherTraining(epochs=1)
    with pytest.raises(ConfigError, match="unknown network 'Teacher'"):
        train_teacher(toy, tmp_path / "x", replace(BRIEF, network="Teacher"), progress=False)
    with pytest.raises(NumericsError, match="the teacher diverged"):
        train_teacher(toy, tmp_path / "x", replace(BRIEF, lr=1e30), progress=False)
    assert not (tmp_path / "x").exists()


def test_a_teachers_file_has_one_owner(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    file, training = tmp_path / "t" / "teacher.safetensors", TeacherTraining("ConvNet-w0.06", epochs=2)
    with owning(file, is_file=True), ThreadPoolExecutor(1) as pool:
        error = pool.submit(train_teacher, toy, file, training, progress=False).exception()
    assert isinstance(error, ConfigError) and "teacher.safetensors is being written by process" in str(error)
    assert list(tmp_path.iterdir()) == []
    train_teacher(toy, file, training, progress=False)
    assert [path.name for path in file.parent.iterdir()] == ["teacher.safetensors"]
