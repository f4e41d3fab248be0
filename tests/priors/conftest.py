"""A writable copy of a reference checkpoint, to be changed and loaded again."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

import ld3m


class Checkpoint:
    """A CompVis checkpoint and its YAML in a folder of their own."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path, self.config = folder / source.name, folder / source.with_suffix(".yaml").name
        self.state = torch.load(source, weights_only=True)["state_dict"]
        shutil.copyfile(source.with_suffix(".yaml"), self.config)

    def save(self, **extra: object) -> "Checkpoint":
        torch.save({"state_dict": self.state, **extra}, self.path)
        return self

    def edit_yaml(self, **changes: object) -> "Checkpoint":
        """Set keys of the YAML, wherever they stand in it; new ones go to the U-Net's parameters."""
        content = yaml.safe_load(self.config.read_text())
        params = content["model"]["params"]
        places = (params, params["unet_config"]["params"], params["first_stage_config"]["params"])
        places += (params["first_stage_config"]["params"]["ddconfig"],)
        for key, value in changes.items():
            holding = [place for place in places if key in place] or [places[1]]
            holding[-1][key] = value
        self.config.write_text(yaml.safe_dump(content))
        return self

    def load(self, **options: object) -> "ld3m.priors.Prior":
        return ld3m.load_prior(self.path, config=self.config, **options)


@pytest.fixture
def checkpoint(reference, tmp_path):
    return lambda name="cin": Checkpoint(reference / f"{name}_tiny.ckpt", tmp_path)
