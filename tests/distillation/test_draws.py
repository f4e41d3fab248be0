"""What is drawn anew, and for whom: networks, real images, augmentation, batches and dropout masks."""

import json
from collections.abc import Iterator

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ld3m.data import ImageSet
from ld3m.distillation import objectives
from ld3m.matching import dsa
from ld3m.runtime import seeds

STILL = {"space": "pixel", "init": "real", "lr": 1e-30}  # nothing moves: a loss changes by what is drawn alone


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def augmentations(monkeypatch) -> list[int]:
    """The seeds of the generators that augmentations were drawn from."""
    seen, whole = [], dsa.draw

    def draw(generator, *arguments, **options):
        seen.append(generator.initial_seed())
        return whole(generator, *arguments, **options)

    monkeypatch.setattr(dsa, "draw", draw)
    return seen


@pytest.fixture
def calls() -> Iterator[list[tuple[str, bool, int]]]:
    """Of every call of a part of a matched network: its class, its mode, and the seed of torch's global generator."""
    seen = []

    def note(module, _arguments):
        is_counted = torch.initial_seed() == seeds.derive(0, "costs")  # by the plan, before the first iteration
        if type(module).__module__.startswith("ld3m.networks") and not is_counted:
            seen.append((type(module).__name__, module.training, torch.initial_seed()))

    handle = register_module_forward_pre_hook(note)
    yield seen
    handle.remove()


@pytest.mark.parametrize("algorithm", ["dm", "dc"])
def test_every_iteration_matches_a_network_of_its_own(algorithm, distill_small, tmp_path):
    """All real images of a class, unaugmented: only the network differs, beyond the order of a sum."""
    options = {**STILL, "algorithm": algorithm, "augment": False, "real_batch": 100, "iterations": 4}
    distill_small(out=tmp_path / "run", **options)
    found = losses(tmp_path / "run")
    assert min(abs(a - b) / a for k, a in enumerate(found) for b in found[:k]) > 1e-4
    distill_small(out=tmp_path / "again", **options)
    assert losses(tmp_path / "again") == found


def test_every_class_and_iteration_draws_real_images_of_its_own(distill_small, coloured, monkeypatch):
    images, labels = coloured
    picked, whole = [], ImageSet.at

    def batch(self, indices, *more):
        picked.append(tuple(self.labels[: int(i)].eq(self.labels[int(i)]).sum().item() for i in indices))
        return whole(self, indices, *more)

    data = {"train": (images, labels), "test": (images[:6], labels[:6])}  # as many of every class
    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "at", batch)
        distill_small(data, **STILL | {"init": "noise"}, real_batch=6, iterations=3)
    drawn = [positions for positions in picked if len(positions) == 6]
    assert len(drawn) == len(set(drawn)) == 9
    assert all(len(set(positions)) == 6 for positions in drawn)


def test_every_class_and_iteration_is_augmented_on_its_own(distill_small, augmentations):
    distill_small(**STILL, iterations=3)
    assert len(augmentations) == len(set(augmentations)) == 9


@pytest.fixture(scope="module")
def experts(distill_small, tmp_path_factory) -> str:
    """A folder of one expert, as a run leaves it."""
    out = tmp_path_factory.mktemp("experts") / "run"
    distill_small(**STILL, algorithm="mtt", num_experts=1, iterations=1, out=out)
    [folder] = {path.parent for path in out.rglob("*.safetensors") if "expert" in path.parent.name}
    return str(folder)


@pytest.fixture
def student(distill_small, experts):
    return lambda *data, **more: distill_small(
        *data, **{**STILL, "algorithm": "mtt", "num_experts": 1, "experts": experts, **more}
    )


def test_every_student_step_is_augmented_on_its_own(student, augmentations):
    student(student_steps=4, iterations=3)
    assert len(augmentations) == len(set(augmentations)) == 12


def test_a_student_sees_all_images_before_any_again(student, tmp_path, monkeypatch):
    """300 images at most 256 at a time: two batches make one pass."""
    drawn = []

    def loss(_network, _start, _target, images, _labels, student_lr, batches, **_options):
        drawn.append([batch.tolist() for batch in batches])
        return images.square().mean() * student_lr

    monkeypatch.setattr(objectives, "mtt_loss", loss)
    images = torch.randint(256, (360, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student(
        (images, torch.arange(360) % 3),
        experts=None,
        out=tmp_path / "run",
        init="noise",
        ipc=100,
        student_steps=4,
        iterations=2,
    )
    for batches in drawn:
        assert sorted(map(len, batches)) == [44, 44, 256, 256]
        for one, other in (batches[:2], batches[2:]):
            assert sorted(one + other) == list(range(300))
        assert batches[:2] != batches[2:]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("algorithm", ["dm", "dc", "mtt"])
def test_matched_networks_are_in_train_mode(algorithm, distill_small, student, calls):
    distill_small(**STILL, algorithm=algorithm, iterations=1) if algorithm != "mtt" else student(iterations=1)
    assert calls and all(training for _, training, _ in calls)


def test_every_iteration_has_dropout_masks_of_its_own(distill_small, calls):
    distill_small(**STILL, iterations=3, augment=False)
    masks = list(dict.fromkeys(seed for _, _, seed in calls))
    assert len(masks) == 3
    calls.clear()
    distill_small(**STILL, iterations=3, augment=False)
    assert list(dict.fromkeys(seed for _, _, seed in calls)) == masks
    calls.clear()
    distill_small(**STILL, iterations=3, augment=False, seed=1)
    assert not set(masks) & {seed for _, _, seed in calls}
