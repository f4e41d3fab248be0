"""A space of one's own: one file, and one line in the table."""

import pytest
import torch
from torch import Tensor

import ld3m
from ld3m.errors import ConfigError
from ld3m.spaces import SPACES, DiffusionSetup


class TintSpace:
    """One color an image, which fills it."""

    def __init__(self, num_images: int, resolution: int) -> None:
        self.resolution = resolution
        self.parameters = {"tints": torch.full((num_images, 3), 0.5, requires_grad=True)}

    def render(self, rows: Tensor, noise_seed: tuple[object, ...]) -> Tensor:
        return self.parameters["tints"][rows, :, None, None].expand(-1, -1, self.resolution, self.resolution)

    @torch.no_grad()
    def project(self) -> None:
        self.parameters["tints"].clamp_(0, 1)

    def apply_plan(self, plan) -> None:
        """Nothing is planned."""


class TintSetup(DiffusionSetup):
    """How a distillation of tints is set up."""

    def plan(self, config, prior, dataset) -> None:
        """Nothing is planned."""

    def build(self, config, prior, dataset, plan, device) -> TintSpace:
        return TintSpace(dataset.train.num_classes * config.ipc, config.resolution)


@pytest.mark.parametrize("algorithm", ["dc", "dm"])
def test_a_line_in_the_table_makes_a_space(algorithm, monkeypatch, tmp_path):
    settings = {"space": "tint", "algorithm": algorithm, "lr": 0.1, "iterations": 3, "width": 8, "real_batch": 8}
    settings |= {"ipc": 2, "evaluate": "none", "progress": False, "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match=r"space is one of ld3m, autoencoder, glad, pixel; got 'tint'"):
        ld3m.distill("builtin", **settings)
    monkeypatch.setitem(SPACES, "tint", TintSetup())
    result = ld3m.distill("builtin", **settings)
    assert result.images.shape == (20, 3, 32, 32)
    flat = result.images.flatten(2)
    assert torch.equal(flat.amin(2), flat.amax(2))  # one color fills an image
    assert (flat[..., 0] != 0.5).any(1).all()  # and every one has been learnt
    assert ld3m.load(tmp_path / "run").config["space"] == "tint"
