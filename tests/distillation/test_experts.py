"""Training, storing, finding and reading expert trajectories."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ld3m import networks
from ld3m.data import load
from ld3m.distillation import experts
from ld3m.errors import CheckpointError, ConfigError, InputError, Ld3mError, NumericsError
from ld3m.matching import dsa, mtt_loss
from ld3m.runtime import locks, seeds, storage
from ld3m.runtime.storage import metadata_of

SIZE = {"width": 4, "num_classes": 3, "resolution": 8}


@pytest.fixture(scope="module")
def dataset():
    """Forty 8x8 images of three classes that differ in colour."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(40) % 3
    images = torch.rand(40, 3, 8, 8, generator=generator) * 0.4
    images[torch.arange(40), labels] += 0.6
    return load((images, labels), resolution=8, holdout=0)


def train(dataset, folder, **options):
    defaults = {"width": 4, "num_experts": 2, "epochs": 3, "batch_size": 16, "progress": False}
    return experts.train_experts(dataset, folder, **defaults | options)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("experts")
    train(dataset, path)
    return path


def assert_same_tensors(first, second):
    first, second = load_file(first), load_file(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["expert-00000.safetensors", "expert-00001.safetensors"]
    names = [name for name, _ in networks.blueprint("ConvNet", **SIZE).named_parameters()]
    with safe_open(folder / "expert-00001.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == sorted(f"{epoch:03d}/{name}" for epoch in range(4) for name in names)
        metadata = metadata_of(file)
    expected = {"network": "ConvNet", "width": "4", "resolution": "8", "num_classes": "3", "epochs": "3", "seed": "0"}
    assert expected.items() <= metadata.items()
    assert float(metadata["lr"]) == 0.01


@pytest.mark.parametrize("augment", [True, False])
def test_training_is_plain_sgd(augment, dataset, tmp_path):
    (file,) = train(dataset, tmp_path, num_experts=1, lr=0.1, seed=7, augment=augment)
    stored = load_file(file)
    generator = seeds.generator(7, "expert", 0)
    network = networks.build("ConvNet", **SIZE, generator=generator)
    for epoch in range(4):
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(stored[f"{epoch:03d}/{name}"], parameter.detach(), rtol=1e-5, atol=1e-7)
        for index in torch.randperm(40, generator=generator).split(16):
            images = dataset.normalize(dataset.train.batch(index))
            images = dsa.augment(images, generator) if augment else images
            loss = F.cross_entropy(network(images), dataset.train.labels[index])
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient


def test_experts_learn(dataset, tmp_path):
    (file,) = train(dataset, tmp_path, num_experts=1, epochs=20, lr=0.1)
    stored, network = load_file(file), networks.build("ConvNet", **SIZE, generator=torch.Generator())
    accuracy = []
    for epoch in (0, 20):
        network.load_state_dict({k.split("/")[1]: v for k, v in stored.items() if k.startswith(f"{epoch:03d}/")})
        predicted = network(dataset.normalize(dataset.train.batch(torch.arange(40)))).argmax(1)
        accuracy.append(float((predicted == dataset.train.labels).float().mean()))
    assert accuracy[0] < 0.8
    assert accuracy[1] > 0.95


def test_seed_and_number_decide_an_expert(folder, dataset, tmp_path):
    """The same run gives the same bits; another expert or seed gives another network."""
    train(dataset, tmp_path / "other", seed=1)
    first, second = sorted(folder.iterdir())
    for path, again in zip((first, second), train(dataset, tmp_path / "again"), strict=True):
        assert_same_tensors(path, again)
    key = "000/classifier.weight"
    starts = [load_file(path)[key] for path in (first, second, tmp_path / "other" / first.name)]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_global_generator_and_dropout(dataset, tmp_path):
    """A network with dropout trains the same twice, and the global generator stays where it was."""
    data = load((torch.rand(6, 3, 32, 32), torch.arange(6) % 3), resolution=32, holdout=0)
    before = torch.get_rng_state()
    files = [
        train(data, tmp_path / name, network="ViT-w0.125", width=None, num_experts=1, epochs=1)[0] for name in "ab"
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_tensors(*files)
    assert experts.load_experts(tmp_path / "a", network="ViT-w0.125", num_classes=3, resolution=32).epochs == 1


def test_missing_experts_alone_are_trained(folder, dataset, tmp_path):
    files = train(dataset, tmp_path, num_experts=1)
    kept = files[0].stat().st_mtime_ns
    files = train(dataset, tmp_path)
    assert files[0].stat().st_mtime_ns == kept
    assert_same_tensors(files[1], folder / files[1].name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, "epochs is 3, asked 2"),
        ({"lr": 0.1, "seed": 5}, "lr is 0.01, asked 0.1; seed is 0, asked 5"),
        ({"width": 8}, "width is 4, asked 8"),
        ({"augment": False}, "augment is True, asked False"),
    ],
)
def test_other_settings_are_refused(change, message, folder, dataset):
    with pytest.raises(ConfigError, match=message):
        train(dataset, folder, **change)


def test_experts_of_other_data_are_refused(folder, dataset):
    other = replace(dataset, mean=dataset.mean + 0.1)
    with pytest.raises(ConfigError, match=rf"fingerprint is {dataset.fingerprint}, asked {other.fingerprint}"):
        train(other, folder)
    size = {"width": 4, "num_classes": dataset.train.num_classes, "resolution": dataset.resolution}
    assert len(experts.load_experts(folder, **size, fingerprint=dataset.fingerprint))
    with pytest.raises(ConfigError, match=rf"fingerprint is {dataset.fingerprint}, asked {other.fingerprint}"):
        experts.load_experts(folder, **size, fingerprint=other.fingerprint)


def test_stored_default_width_is_the_number(dataset, tmp_path):
    train(dataset, tmp_path, num_experts=1, epochs=1, width=None)
    assert train(dataset, tmp_path, num_experts=1, epochs=1, width=128)[0].exists()


@pytest.mark.parametrize("option", ["num_experts", "epochs", "batch_size", "lr"])
def test_counts_below_one(option, dataset, tmp_path):
    with pytest.raises(ConfigError, match=f"{option} must be above 0, got 0"):
        train(dataset, tmp_path, **{option: 0})


def test_divergence_keeps_what_there_is(folder, dataset, tmp_path):
    with pytest.raises(NumericsError, match=r"expert 0 diverged.*lower lr, which is 1e\+30"):
        train(dataset, tmp_path / "new", lr=1e30)
    assert not list((tmp_path / "new").glob("*"))


def test_pair_reads_parameters_in_the_order_of_the_network(folder):
    loaded = experts.load_experts(folder, **SIZE, epochs=3)
    assert (len(loaded), loaded.epochs) == (2, 3)
    start, target = loaded.pair(1, 1, 2)
    stored, network = load_file(folder / "expert-00001.safetensors"), networks.blueprint("ConvNet", **SIZE)
    for name, a, b in zip((name for name, _ in network.named_parameters()), start, target, strict=True):
        assert torch.equal(a, stored[f"001/{name}"])
        assert torch.equal(b, stored[f"003/{name}"])
        assert name.endswith("bias") or not torch.equal(a, b)


def test_pair_fits_the_matching_loss(folder, dataset):
    """One student step on all the real images, without augmentation, goes some of an expert's way."""
    network = networks.build("ConvNet", **SIZE, generator=torch.Generator())
    start, target = experts.load_experts(folder, **SIZE).pair(0, 0, 3)
    images = dataset.normalize(dataset.train.batch(torch.arange(40)))
    loss = mtt_loss(network, start, target, images, dataset.train.labels, 0.05, [torch.arange(40)])
    assert 0 < float(loss) < 1


@pytest.mark.parametrize("asked", [(2, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 2, 2)])
def test_pair_outside_of_what_there_is(asked, folder):
    with pytest.raises(InputError, match="experts 0 to 1 with epochs 0 to 3, got expert"):
        experts.load_experts(folder, **SIZE).pair(*asked)


def test_load_from_nothing(tmp_path):
    for path in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(CheckpointError, match=r"no expert-\*\.safetensors in .*ld3m experts"):
            experts.load_experts(path, **SIZE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "AlexNet", "width": None}, "network is ConvNet, asked AlexNet; width is 4, asked -"),
        ({"width": None}, "width is 4, asked 128"),
        ({"num_classes": 10}, "num_classes is 3, asked 10"),
        ({"resolution": 16}, "resolution is 8, asked 16"),
        ({"epochs": 4}, "4 epochs of every expert are needed, but .*expert-00000.safetensors has 3"),
    ],
)
def test_load_for_other_networks(change, message, folder):
    with pytest.raises(ConfigError, match=message):
        experts.load_experts(folder, **SIZE | change)


def test_damaged_files(folder, dataset, tmp_path):
    original = folder / "expert-00000.safetensors"
    damaged = tmp_path / original.name
    with safe_open(original, framework="pt") as file:
        metadata = file.metadata()
    content = original.read_bytes()
    for bad in (content[: len(content) // 2], b"", b"\xff" * 100):
        damaged.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"expert-00000.safetensors cannot be read.*train it again"):
            experts.load_experts(tmp_path, **SIZE)
        with pytest.raises(CheckpointError, match="cannot be read"):
            train(dataset, tmp_path)
    tensors = load_file(original)
    save_file({k: v for k, v in tensors.items() if k != "002/features.0.bias"}, damaged, metadata)
    with pytest.raises(
        CheckpointError, match=r"should have 002/features.0.bias of shape \(4,\), and has no such tensor"
    ):
        experts.load_experts(tmp_path, **SIZE)
    save_file(tensors | {"001/features.0.bias": torch.zeros(5)}, damaged, metadata)
    with pytest.raises(CheckpointError, match=r"001/features.0.bias of shape \(4,\), and has \(5,\)"):
        experts.load_experts(tmp_path, **SIZE)


def test_file_that_vanished(folder, tmp_path):
    (tmp_path / "expert-00000.safetensors").write_bytes((folder / "expert-00000.safetensors").read_bytes())
    loaded = experts.load_experts(tmp_path, **SIZE)
    loaded.files[0].unlink()
    with pytest.raises(CheckpointError, match="is not there; check the path"):
        loaded.pair(0, 0, 1)


def test_fresh_weights_have_the_loss_of_guessing(folder, dataset):
    network = networks.build("ConvNet", **SIZE, generator=torch.Generator())
    start, _ = experts.load_experts(folder, **SIZE).pair(0, 0, 1)
    for parameter, value in zip(network.parameters(), start, strict=True):
        parameter.data.copy_(value)
    images = dataset.normalize(dataset.train.batch(torch.arange(40)))
    network.requires_grad_(False)
    assert abs(float(F.cross_entropy(network(images), dataset.train.labels)) - math.log(3)) < 0.3


def test_experts_have_their_folder_for_themselves(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with storage.owning(tmp_path / "out"), ThreadPoolExecutor(1) as pool:
        error = pool.submit(train, dataset, tmp_path / "out").exception()
    assert isinstance(error, ConfigError) and "out is being written by process" in str(error)


@pytest.mark.parametrize("expert", [0, 1])
def test_a_folder_that_is_removed_while_experts_are_trained_is_an_error(expert, dataset, tmp_path, monkeypatch):
    train_epoch, epochs = experts._train_epoch, iter(range(9))

    def removing(*args, **options):
        if next(epochs) == 3 * expert + 1:
            shutil.rmtree(tmp_path / "out")
        return train_epoch(*args, **options)

    monkeypatch.setattr(experts, "_train_epoch", removing)
    with pytest.raises(Ld3mError, match="out was removed while it was written"):
        train(dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_killed_trainings_left_is_removed(dataset, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "out")
    (tmp_path / "out" / ".expert-00009.safetensors.12-0123abcd.tmp").touch()
    train(dataset, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in folder.iterdir()}
