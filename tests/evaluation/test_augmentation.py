"""Random resized crops against interpolation of the crop, boxes by their law, CutMix by its pixels."""

import math

import pytest
import torch
import torch.nn.functional as F

from ld3m.evaluation import augmentation
from ld3m.evaluation.augmentation import AUGMENTATIONS, cutmix, draw_boxes, resized_crop_and_flip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("side", [1, 7, 16])
def test_a_crop_is_the_interpolation_of_its_box(side, monkeypatch):
    images = torch.rand(20, 3, side, side, dtype=torch.float64)
    boxes = draw_boxes(20, side, seeded(1))
    monkeypatch.setattr(augmentation, "draw_boxes", lambda *_: boxes)
    got = resized_crop_and_flip(images, seeded(2))
    is_flipped = torch.rand(20, generator=seeded(2)) < 0.5
    assert 0 < is_flipped.sum() < 20
    for k, (top, left, height, width) in enumerate(zip(*(part.tolist() for part in boxes), strict=True)):
        box = images[k : k + 1, :, top : top + height, left : left + width]
        wanted = F.interpolate(box, (side, side), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(got[k], wanted.flip(2) if is_flipped[k] else wanted, rtol=0, atol=1e-5)


def test_boxes_lie_inside_with_areas_and_ratios_in_range():
    side = 256  # so that rounding hardly matters
    top, left, height, width = draw_boxes(4000, side, seeded(0))
    assert min(int(part.min()) for part in (top, left)) >= 0
    assert max(int((first + size).max()) for first, size in ((top, height), (left, width))) <= side
    share, ratio = (height * width).double() / side**2, width / height
    assert 0.078 < share.min() < 0.1 and share.max() > 0.9
    assert 0.73 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.36
    assert abs(ratio.log().mean()) < 0.02  # tall as often as wide
    assert ((top + height / 2).float().mean() / side - 0.5).abs() < 0.01


def test_areas_are_uniform_where_every_draw_fits(monkeypatch):
    monkeypatch.setattr(augmentation, "AREA", (0.1, 0.5))
    _, _, height, width = draw_boxes(4000, 256, seeded(0))
    share = ((height * width).double() / 256**2 - 0.1) / 0.4
    assert share.quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist() == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.03
    )


def test_a_box_that_never_fits_is_the_whole_image(monkeypatch):
    monkeypatch.setattr(augmentation, "AREA", (2.0, 3.0))
    assert [part.tolist() for part in draw_boxes(2, 9, seeded(0))] == [[0, 0], [0, 0], [9, 9], [9, 9]]


def test_cutmix_pastes_one_box_of_the_partners():
    images = torch.arange(6.0)[:, None, None, None].expand(-1, 3, 16, 16)
    for seed in range(20):
        mixed, mix = cutmix(images, seeded(seed))
        assert sorted(mix.partners.tolist()) == list(range(6))
        is_pasted = (mixed != images).any(0).any(0)  # (16, 16), one box for the batch
        for own, partner, image in zip(range(6), mix.partners.tolist(), mixed, strict=True):
            assert set(image.unique().tolist()) <= {float(own), float(partner)}
        moved = (mix.partners != torch.arange(6)).any()
        assert not moved or is_pasted.float().mean() == pytest.approx(1 - mix.kept)
        rows, columns = is_pasted.any(1).sum(), is_pasted.any(0).sum()
        assert is_pasted.sum() == rows * columns
    assert torch.equal(images[:, 0, 0, 0], torch.arange(6.0))  # what was given is left alone


def test_the_share_that_stays_is_uniform_but_for_boxes_cut_by_the_border():
    kept = torch.tensor([cutmix(torch.zeros(1, 3, 64, 64), seeded(seed))[1].kept for seed in range(600)])
    assert 0 < kept.min() < 0.2 and kept.max() > 0.99
    # A box of side s with a uniform centre keeps on average (1 - s/4) of each side; s^2 uniform on [0, 1].
    pasted = torch.rand(100_000, generator=seeded(0)).sqrt()
    wanted = 1 - (pasted * (1 - pasted / 4)).square().mean()
    assert float(kept.mean()) == pytest.approx(float(wanted), abs=0.03)


def test_augmentations_follow_the_generator_and_none_changes_nothing():
    images = torch.rand(4, 3, 8, 8)
    for name, augment in AUGMENTATIONS.items():
        first, again, other = (augment(images, seeded(seed))[0] for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert torch.equal(first, other) == (name == "none")
    assert AUGMENTATIONS["none"](images, seeded(0)) == (images, None)
    assert AUGMENTATIONS["dsa"](images, seeded(0))[1] is None
    assert not math.isnan(AUGMENTATIONS["crop-cutmix"](images, seeded(0))[1].kept)
