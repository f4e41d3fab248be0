"""`minimax-hard` against values worked out by hand from its published code, and the other published protocols."""

import math

import pytest
import torch

from ld3m import networks
from ld3m.errors import ConfigError
from ld3m.evaluation import augmentation, photographic
from ld3m.evaluation.augmentation import AUGMENTATIONS, cutmix
from ld3m.evaluation.photographic import flip, jitter_and_light, lighting, shuffle_patches
from ld3m.evaluation.protocols import PROTOCOLS, find

NETWORKS = ("ResNetAP-10", "ConvNet-6", "ResNet18Large")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def conv(inside: int, outside: int, kernel: int) -> int:
    return inside * outside * kernel**2


def block(inside: int, width: int) -> int:
    """Two 3x3 convolutions without bias and their norms; a 1x1 shortcut with its norm where the width changes."""
    shortcut = conv(inside, width, 1) + 2 * width if inside != width else 0
    return conv(inside, width, 3) + conv(width, width, 3) + 4 * width + shortcut


@pytest.mark.parametrize("classes", [10, 100])
def test_parameters_at_224_px_by_hand(classes):
    def count(name: str) -> int:
        return sum(p.numel() for p in networks.blueprint(name, num_classes=classes, resolution=224).parameters())

    linear = 512 * classes + classes
    stem = conv(3, 64, 7) + 2 * 64
    ten = stem + block(64, 64) + block(64, 128) + block(128, 256) + block(256, 512) + linear
    eighteen = ten + block(64, 64) + block(128, 128) + block(256, 256) + block(512, 512)
    six = conv(3, 128, 3) + 128 + 5 * (conv(128, 128, 3) + 128) + 6 * 2 * 128 + 3 * 3 * 128 * classes + classes
    assert [count(name) for name in NETWORKS] == [ten, six, eighteen]
    if classes == 10:
        assert (ten, six, eighteen) == (4_910_922, 754_570, 11_181_642)


@pytest.mark.parametrize(("resolution", "side"), [(32, 32), (64, 64), (96, 48), (128, 64), (224, 56)])
def test_stem_of_resnet_ap_by_resolution(resolution, side):
    """7x7 at stride 1 and a pool of 4 above 128 px, 3x3 and a pool of 2 above 64, 3x3 alone below."""
    network = networks.build("ResNetAP-10", num_classes=2, resolution=resolution)
    assert network.stem(torch.zeros(1, 3, resolution, resolution)).shape[2:] == (side, side)
    assert network.stem[0].kernel_size == ((7, 7) if resolution > 128 else (3, 3)) and network.stem[0].stride == (1, 1)


def test_large_stem_strides_and_pools_and_convolutions_start_by_fan_out():
    generator = torch.Generator().manual_seed(0)
    network = networks.build("ResNet18Large", num_classes=10, resolution=224, generator=generator)
    assert network.stem(torch.zeros(1, 3, 224, 224)).shape == (1, 64, 56, 56)
    weight = network.stages[3][1].residual[0].weight  # (512, 512, 3, 3)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert all(norm.num_groups == norm.num_channels for norm in network.modules() if hasattr(norm, "num_groups"))


def test_rate_falls_to_a_fifth_at_two_thirds_and_at_five_sixths():
    protocol = find("minimax-hard").for_set(10, 10, 224)
    recipe, rate_in = protocol.recipe("ResNetAP-10"), augmentation_free_schedule()
    rates = [rate_in(recipe.rate, epoch, recipe.epochs) for epoch in range(recipe.epochs)]
    assert recipe.epochs == 2000  # milestones 1333 and 1666: epochs 0…1332, 1333…1665, 1666…1999
    assert rates[1332] == 0.01 and rates[1333] == pytest.approx(0.002) and rates[1665] == pytest.approx(0.002)
    assert rates[1666] == pytest.approx(0.0004) and rates[1999] == pytest.approx(0.0004)
    assert (protocol.batch, protocol.momentum, protocol.weight_decay, recipe.ema_decay) == (64, 0.9, 5e-4, 0)


def augmentation_free_schedule():
    from ld3m.evaluation.protocols import SCHEDULES

    return SCHEDULES[find("minimax-hard").schedule]


@pytest.mark.parametrize(
    ("images_per_class", "epochs", "of_a_hundred"),
    [(1, 3000, 2000), (2, 2000, 1300), (10, 2000, 1300), (20, 1500, 1000), (50, 1500, 1000), (100, 1000, 600),
     (200, 1000, 600), (500, 500, 300), (501, 300, 200)],
)  # fmt: skip
def test_epochs_follow_from_the_images_per_class(images_per_class, epochs, of_a_hundred):
    protocol = find("minimax-hard")
    for name in NETWORKS:
        assert protocol.for_set(images_per_class, 10, 224).recipe(name).epochs == epochs
        assert protocol.for_set(images_per_class, 100, 224).recipe(name).epochs == of_a_hundred


def test_above_a_hundred_classes_rate_decay_and_batch_are_others():
    protocol = find("minimax-hard").for_set(10, 1000, 224)
    assert (protocol.recipe("ConvNet-6").rate, protocol.weight_decay, protocol.batch) == (0.1, 1e-4, 128)


def test_a_hundred_epochs_are_tested_from_the_twentieth_to_the_last():
    tested = sorted(find("minimax-hard").tested_epochs(2000))
    assert tested == list(range(19, 2000, 20)) and len(tested) == 100
    assert len(find("minimax-hard").tested_epochs(1300)) == 100
    assert sorted(find("minimax-hard").tested_epochs(3)) == [0, 1, 2]


def test_rded_tests_six_times_and_doubles_the_batch_for_100_and_1000_classes():
    protocol = find("rded")
    assert sorted(protocol.tested_epochs(300)) == [249, 259, 269, 279, 289, 299]
    sizes = [protocol.batch_size(ipc * k, k) for k in (10, 100, 200, 1000) for ipc in (1, 10, 50)]
    assert sizes == [10, 50, 100, 20, 100, 200, 10, 50, 100, 20, 100, 200]
    assert protocol.for_set(10, 10, 32).augmentation == "flip-cutmix"
    assert protocol.for_set(10, 10, 224).augmentation == "tiles-cutmix"


@pytest.mark.parametrize(("name", "epochs"), [("dc", 301), ("dsa", 1001)])
def test_dc_trains_an_epoch_more_and_falls_to_a_tenth_after_the_middle(name, epochs):
    from ld3m.evaluation.protocols import SCHEDULES

    protocol = find(name)
    recipe, rate_in = protocol.recipe("ConvNet"), SCHEDULES[protocol.schedule]
    assert recipe.epochs == epochs
    drop = (epochs - 1) // 2 + 1  # the last epoch at the full rate
    rates = [rate_in(recipe.rate, epoch, epochs) for epoch in range(epochs)]
    assert rates[drop] == 0.01 and rates[drop + 1] == pytest.approx(0.001) and rates[-1] == pytest.approx(0.001)
    assert protocol.tested_epochs(epochs) == {epochs - 1}


def test_cutmix_keeps_the_share_outside_of_the_clipped_box(monkeypatch):
    """λ = 0.75: sides of 8 · 0.5 = 4, half of it 2; around row 1 and column 7 rows 0…2 and columns 5…7 are left."""
    draws = torch.tensor([0.75, 1 / 8, 7 / 8])
    monkeypatch.setattr(augmentation.torch, "rand", lambda *_, **__: draws)
    images = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    mixed, mix = cutmix(images, torch.Generator().manual_seed(1))
    assert mix.kept == 1 - 9 / 64
    for k, partner in enumerate(mix.partners.tolist()):
        wanted = torch.full((8, 8), float(k))
        wanted[0:3, 5:8] = partner
        assert torch.equal(mixed[k], wanted.expand(3, 8, 8))


def test_lighting_by_hand():
    alphas = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.0, 1.0]])
    first = 0.2175 * 0.1 * -0.5675 + 0.0188 * -0.2 * 0.7192 + 0.0045 * 0.3 * 0.4009
    torch.testing.assert_close(lighting(alphas)[0, 0], torch.tensor(first))
    torch.testing.assert_close(lighting(alphas)[1], 0.0045 * torch.tensor([0.4009, -0.8140, 0.4203]))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_jitter_by_hand(kind, monkeypatch):
    """Brightness towards black, contrast towards the mean gray, saturation towards the own gray, all unclipped."""
    monkeypatch.setattr(photographic, "LIGHTING", 0.0)
    unit = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    amounts = torch.full((3, 1), 0.5)
    amounts[kind] = 0.875  # 0.4 · (2 · 0.875 − 1) = 0.3; the others are 0
    draws = iter([amounts, torch.tensor([[0.1, 0.2, 0.3]])])
    monkeypatch.setattr(photographic.torch, "rand", lambda *_, **__: next(draws))
    seen = jitter_and_light((unit - MEAN[:, None, None]) / STD[:, None, None], torch.Generator())
    gray = 0.299 * unit[:, :1] + 0.587 * unit[:, 1:2] + 0.114 * unit[:, 2:]
    towards = (torch.zeros_like(gray), gray.mean().expand_as(gray), gray)[kind]
    wanted = 0.7 * unit + 0.3 * towards
    torch.testing.assert_close(seen * STD[:, None, None] + MEAN[:, None, None], wanted, atol=1e-5, rtol=1e-5)


def test_shuffled_patches_are_the_patches():
    images = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    shuffled = shuffle_patches(images, 2, torch.Generator().manual_seed(2))
    assert not torch.equal(shuffled, images)
    for before, after in zip(images, shuffled, strict=True):
        assert sorted(before.flatten().tolist()) == sorted(after.flatten().tolist())
        columns = [before, torch.cat([before[..., 2:], before[..., :2]], 2)]
        options = [torch.cat(rows, 1) for c in columns for rows in ([c], [c[:, 2:], c[:, :2]])]
        assert any(torch.equal(after, option) for option in options)


def test_flip_mirrors_some_images_whole():
    images = torch.rand(64, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    flipped = flip(images, torch.Generator().manual_seed(1))
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert torch.equal(mirrored, ~kept) and 16 < int(mirrored.sum()) < 48


@pytest.mark.parametrize("name", ["crop-jitter-cutmix", "flip-cutmix", "tiles-cutmix"])
def test_augmentations_follow_from_the_generator_alone(name):
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = (AUGMENTATIONS[name](images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and first[1].kept == second[1].kept
    assert first[0].shape == images.shape and first[0].isfinite().all()


def test_jitter_is_refused_under_another_normalization():
    from dataclasses import replace

    with pytest.raises(ConfigError, match="needs normalization 'imagenet'"):
        replace(find("minimax-hard"), normalization="data")


def test_published_protocols_name_their_source_and_what_differs():
    for name in ("glad-hard", "minimax-hard", "dc", "dsa", "rded", "d3hr"):
        assert PROTOCOLS[name].source and PROTOCOLS[name].deviations
