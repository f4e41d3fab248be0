"""Selectors on sets so small that their choice can be said beforehand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ld3m.config import SelectConfig
from ld3m.data import load
from ld3m.data.ranges import resize
from ld3m.errors import DataError
from ld3m.selection import SELECTIONS, Candidates, Choice, render, shown_tiles, tile_edges
from ld3m.selection.combine import one_tile
from ld3m.selection.herding import herding_order
from ld3m.selection.rded import draw_squares, tiles

GREYS = [[10, 20, 30, 200], [40, 90, 100, 250]]  # of the images of two classes


class Judge(nn.Module):
    """Answers ten times the mean of an image's red channel for class 0, and nothing for class 1."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def embed(self, images):
        return images.flatten(1)

    def forward(self, images):
        level = 10 * self.slope * images[:, 0].mean((1, 2))
        return torch.stack([level, torch.zeros_like(level)], 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def dataset(greys=GREYS, side=8):
    """Images of one grey value each, class by class; networks see values of 0 to 1."""
    images = torch.tensor([value for row in greys for value in row], dtype=torch.uint8)[:, None, None, None]
    labels = torch.arange(len(greys)).repeat_interleave(torch.tensor([len(row) for row in greys]))
    data = load((images.expand(-1, 3, side, side).clone(), labels), resolution=side, holdout=0)
    return replace(data, mean=torch.zeros(3), std=torch.ones(3))


def chosen(by, count, label=0, networks=(), data=None, **settings):
    """Measure and choose of one class."""
    data, selection = data or dataset(), SELECTIONS[by]
    config = SelectConfig(by=by, ipc=count, **settings)
    candidates = Candidates(data, label)
    measured = selection.measure(networks, candidates, config, seeded()) if selection.measure else {}
    return selection.choose(candidates, measured, count, config, seeded()), measured


def test_herding_follows_the_mean():
    features = torch.tensor([[0.0], [1.0], [4.0], [7.0]]).double()  # mean 3
    # 4 is nearest to 3; (4 + 1)/2 = 2.5 is nearer than (4 + 0)/2, (4 + 7)/2; (5 + 7)/3 = 4 and 5/3: |1| < |4/3|
    assert herding_order(features).tolist() == [2, 1, 3, 0]


def test_herding_is_the_greedy_choice_in_several_dimensions():
    features = torch.randn(9, 5, generator=seeded(), dtype=torch.float64)
    left, own = list(range(9)), list[int]()
    while left:
        gaps = [(features.mean(0) - features[[*own, k]].mean(0)).norm() for k in left]
        own.append(left.pop(int(torch.stack(gaps).argmin())))
    assert herding_order(features).tolist() == own


def test_herding_goes_by_the_features_of_the_teacher():
    choice, measured = chosen("herding", 2, networks=[Judge()])  # greys 10 20 30 200, mean 65
    assert measured["score"].tolist() == [3, 1, 0, 2]  # 30 is nearest to 65, with 20 it is 25, with 200 then 83
    assert choice.positions.flatten().tolist() == [2, 1]


def test_easy_has_the_lowest_loss_first():
    choice, measured = chosen("easy", 3, networks=[Judge()])
    levels = torch.tensor([10, 20, 30, 200]).double() / 255 * 10
    torch.testing.assert_close(measured["score"], (1 + (-levels).exp()).log(), rtol=1e-5, atol=1e-7)
    assert choice.positions.flatten().tolist() == [3, 2, 1]
    other, _ = chosen("easy", 2, label=1, networks=[Judge()])  # for class 1 a dark image is the surest
    assert other.positions.flatten().tolist() == [4, 5]


def test_el2n_is_the_mean_error_of_the_networks():
    choice, measured = chosen("el2n", 1, networks=[Judge(1.0), Judge(-2.0)])
    levels = torch.tensor([10, 20, 30, 200]).double() / 255 * 10
    wrong = [1 - torch.sigmoid(slope * levels) for slope in (1.0, -2.0)]  # both classes are off by as much
    torch.testing.assert_close(measured["score"], (wrong[0] + wrong[1]) / 2 * 2**0.5, rtol=1e-5, atol=1e-7)
    assert choice.positions.tolist() == [[int(measured["score"].argmin())]]


def test_equal_scores_keep_the_order_of_the_files():
    choice, _ = chosen("easy", 3, networks=[Judge()], data=dataset([[7, 7, 7, 7], [1, 2]]))
    assert choice.positions.flatten().tolist() == [0, 1, 2]


def test_random_images_are_distinct_and_follow_the_generator():
    choice, measured = chosen("random", 4, label=1)
    assert sorted(choice.positions.flatten().tolist()) == [4, 5, 6, 7] and not measured and choice.weights is None


def test_kmeans_keeps_the_shares_of_its_cells():
    data = dataset([[10, 11, 12, 13, 14, 200], [1, 2, 3, 200, 201, 202]])
    choice, _ = chosen("kmeans", 2, data=data)
    weights = dict(zip(choice.positions.flatten().tolist(), choice.weights.tolist(), strict=True))
    assert weights == pytest.approx({2: 5 / 6 * 2, 5: 1 / 6 * 2})  # cells of 5 and 1 of 6 images
    even, _ = chosen("kmeans", 2, label=1, data=data)
    assert even.weights.tolist() == [1.0, 1.0]  # exactly


def test_combine_tiles_the_easiest_whole_images():
    data = dataset()
    choice, _ = chosen("combine", 1, networks=[Judge()], data=data)
    assert choice.positions.tolist() == [[3, 2, 1, 0]] and choice.boxes is None and choice.tiles == 2
    (image,) = render(data.train, choice)
    quarters = [image[0, :4, :4], image[0, :4, 4:], image[0, 4:, :4], image[0, 4:, 4:]]
    assert [quarter.unique().tolist() for quarter in quarters] == [[200], [30], [20], [10]]


def halves(low, high, side=8):
    """An image whose left half is dark and whose right half is bright."""
    image = torch.full((3, side, side), low, dtype=torch.uint8)
    image[:, :, side // 2 :] = high
    return image


def test_rded_keeps_the_best_crop_of_each_image_and_the_best_images():
    images = torch.stack([halves(0, value) for value in (250, 60, 120, 180)] + [halves(0, 0)] * 4)
    data = load((images, torch.arange(2).repeat_interleave(4)), resolution=8, holdout=0)
    data = replace(data, mean=torch.zeros(3), std=torch.ones(3))
    choice, measured = chosen("rded", 3, networks=[Judge()], data=data, crops=20, tiles=1)
    assert choice.positions.flatten().tolist() == [0, 3, 2]  # brightest first
    boxes = draw_squares(4 * 20, 8, _after_drawing(4)).unflatten(0, (4, 20))
    for at in range(4):
        crops = [images[at : at + 1, :, y : y + s, x : x + s].float() / 255 for y, x, s in boxes[at].tolist()]
        levels = torch.stack([10 * resize(crop, 8)[0, 0].mean() for crop in crops])
        assert measured["score"][at].item() == pytest.approx((1 + (-levels.max()).exp()).log().item(), rel=2e-3)
        assert measured["boxes"][at].tolist() == boxes[at][levels.argmax()].tolist()


def _after_drawing(count):
    """A generator that has drawn which images are looked at."""
    generator = seeded()
    torch.randperm(count, generator=generator)
    return generator


def test_rded_tiles_the_crops():
    images = torch.stack([halves(0, value) for value in (250, 60, 120, 180)])
    data = load((torch.cat([images, images]), torch.arange(2).repeat_interleave(4)), resolution=8, holdout=0)
    boxes = torch.tensor([[[0, 4, 4], [2, 4, 4], [4, 4, 2], [0, 0, 4]]])
    (image,) = render(data.train, Choice(torch.tensor([[0, 1, 2, 3]]), boxes))
    quarters = [image[0, :4, :4], image[0, :4, 4:], image[0, 4:, :4], image[0, 4:, 4:]]
    assert [quarter.unique().tolist() for quarter in quarters] == [[250], [60], [120], [0]]


def test_rded_looks_at_some_images_only():
    _, measured = chosen("rded", 1, networks=[Judge()], candidates=3, tiles=1)
    assert measured["score"].isinf().sum() == 1
    _, measured = chosen("rded", 1, networks=[Judge()], candidates=1, tiles=2)  # but at as many as are needed
    assert measured["score"].isfinite().all()


def test_squares_have_the_published_areas():
    boxes = draw_squares(4000, 32, seeded())
    top, left, size = boxes.unbind(1)
    assert (top + size).max() == (left + size).max() == 32 and top.min() == left.min() == 0
    areas = size.double().square() / 32**2
    assert areas.min() >= 0.07 and areas.max() == 1 and areas.mean().item() == pytest.approx(0.54, abs=0.02)


def test_tiles_of_rded_follow_the_resolution():
    assert [tiles(side) for side in (32, 63, 64, 224)] == [1, 1, 2, 2]


@pytest.mark.parametrize("side", [8, 9, 31])
def test_tiles_fill_every_image(side):
    data = dataset(side=side)
    (image,) = render(data.train, Choice(torch.tensor([[0, 1, 2, 3]])))
    first, middle, last = tile_edges(side, 2)
    assert (first, last) == (0, side)
    assert (image[:, :middle, :middle] == 10).all() and (image[:, :middle, middle:] == 20).all()
    assert (image[:, middle:, :middle] == 30).all() and (image[:, middle:, middle:] == 200).all()


def test_a_training_sees_one_tile_enlarged():
    data = dataset()
    (image,) = render(data.train, Choice(torch.tensor([[0, 1, 2, 3]])))
    shown = one_tile(image.float().expand(64, -1, -1, -1), 2, seeded())
    assert shown.shape == (64, 3, 8, 8)
    seen = [one.unique().tolist() for one in shown]
    assert {value for (value,) in seen} == {10, 20, 30, 200}  # never two at once, and each of them


def test_one_tile_is_shown_of_combined_sets_alone():
    assert shown_tiles({"by": "combine", "tiles": 2}) == 2
    assert shown_tiles({"by": "rded", "tiles": 2}) == shown_tiles({"space": "ld3m"}) == 1


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match=r"class '0' has 4 images, --by easy --ipc 5 asks for 5; lower --ipc or add"):
        Candidates(dataset(), 0).require(5, "easy", 5, 1)
    with pytest.raises(DataError, match="--by combine --ipc 2, 4 images in each, asks for 8"):
        Candidates(dataset(), 1).require(8, "combine", 2, 2)
