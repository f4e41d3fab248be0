"""What a trained teacher is handed over as: settled, frozen, averaged, and made by the settings that were asked for."""

from dataclasses import replace

import pytest
import torch

from ld3m import networks
from ld3m.data import load
from ld3m.evaluation import TeacherTraining, load_teacher, train_teacher
from ld3m.evaluation.protocols import Protocol, Recipe
from ld3m.evaluation.training import train
from ld3m.runtime import seeds

SETTINGS = TeacherTraining(network="ConvNet-w0.06", epochs=4, lr=0.05, batch_size=16)


@pytest.fixture
def trained(toy, tmp_path):
    return lambda **more: train_teacher(toy, tmp_path / "t", replace(SETTINGS, **more), overwrite=True, progress=False)


def weights(network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("network", ["ConvNet-w0.06", "AlexNet-w0.03"])
def test_a_teacher_is_in_eval_mode_and_frozen(network, trained, tmp_path):
    for teacher in (trained(network=network, epochs=2), load_teacher(tmp_path / "t")):
        assert not any(module.training for module in teacher.network.modules())
        assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
        assert not teacher.logits(torch.zeros(2, 3, 8, 8), _Data(teacher)).requires_grad


class _Data:
    """The statistics of the teacher's own data."""

    def __init__(self, teacher) -> None:
        self.mean, self.std = teacher.mean, teacher.std


def test_its_weights_are_the_average_of_a_training_with_augmentation_on_small_batches(trained, toy):
    teacher = trained(seed=3)

    def by_hand(decay: float = 2 / 3, batch: int = 16, augmentation: str = "dsa", lr: float = 0.05):
        draw, recipe = seeds.generator(3, "teacher"), Recipe(lr, 4, decay)
        network = networks.build("ConvNet-w0.06", num_classes=3, resolution=8, generator=draw)
        protocol = Protocol("own", (), {}, batch=batch, augmentation=augmentation, momentum=0.9, weight_decay=5e-4)
        images = toy.normalize(toy.train.batch(range(len(toy.train))))
        train([network], [images], toy.train.labels, protocol, recipe, [draw])
        return weights(network)

    torch.testing.assert_close(weights(teacher.network), by_hand())
    for other in ({"decay": 0.0}, {"batch": 60}, {"augmentation": "none"}, {"lr": 0.04}):
        assert not torch.allclose(weights(teacher.network), by_hand(**other), rtol=1e-3), other


@pytest.mark.parametrize("change", [{"batch_size": 60}, {"lr": 0.01}, {"epochs": 5}, {"seed": 1}])
def test_every_setting_of_a_training_counts(change, trained):
    one, other = trained(), trained(**change)
    assert not torch.allclose(weights(one.network), weights(other.network), rtol=1e-3)
    assert one.about != other.about


def test_dropout_follows_the_seed_and_leaves_the_global_generator_alone(coloured, tmp_path):
    data, found = load(coloured, resolution=16, holdout=0.1), []
    settings = TeacherTraining(network="ViT-w0.06", epochs=2, lr=0.1)
    for state in (0, 1):
        torch.manual_seed(state)
        found.append(train_teacher(data, tmp_path / f"{state}", settings, progress=False).network)
        after = torch.rand(3)
        torch.manual_seed(state)
        assert torch.equal(after, torch.rand(3))
    assert torch.equal(*map(weights, found))


def test_the_training_is_on_the_training_images_and_the_accuracy_of_the_test_images(trained, toy):
    teacher = trained(epochs=6)
    answers = teacher.logits(toy.normalize(toy.test.batch(range(len(toy.test)))), toy).argmax(1)
    right = 100 * float((answers == toy.test.labels).double().mean())
    assert (teacher.about["test_accuracy"], teacher.about["train_images"]) == (pytest.approx(right), 60)
