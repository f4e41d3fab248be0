"""Sets that a prior makes more natural."""

import pytest
import torch

import ld3m
from ld3m.errors import ConfigError, DataError
from ld3m.sampling import refined

SETTINGS = {"class_ids": (0, 1, 2), "steps": 6, "stop": 3, "evaluate": "none", "progress": False}


@pytest.fixture(scope="module")
def go(tiny_prior):
    return lambda *sources, **settings: ld3m.refine(*sources, **{"prior": tiny_prior, **SETTINGS, **settings})


@pytest.fixture(scope="module")
def given(coloured, tiny_prior):
    """A chosen set: two real images of each class."""
    return ld3m.select(coloured, by="random", ipc=2, resolution=16, evaluate="none", progress=False)


def test_the_set_is_encoded_noised_and_sampled_back(go, given, coloured, tiny_prior):
    """Without a pull, by the functions that the package has for it."""
    result = go(given, coloured, pull=0.0)
    assert (result.images.shape, result.labels.tolist()) == ((6, 3, 16, 16), [0, 0, 1, 1, 2, 2])
    assert {"selector": "itself", "ipc": 2, "stop": 3, "resolution": 16}.items() <= result.config.items()
    clean = tiny_prior.encode(2 * given.images[2:4] - 1)
    alpha = tiny_prior.alphas_cumprod[500]
    noise = (result.latents[2:4] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    assert 0.5 < noise.std() < 1.5
    conditioning = tiny_prior.embed(torch.tensor([1, 1])).float()
    sampled = ld3m.sample(tiny_prior, ld3m.chain.NoisyLatents(result.latents[2:4], 3, 6), conditioning)
    images = ((tiny_prior.decode(sampled) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(result.images[2:4], images, rtol=1e-4, atol=1e-5)


def test_a_full_pull_gives_the_images_back(go, given, coloured, tiny_prior):
    """But for the first stage, and the noise that the grid leaves."""
    found = go(given, coloured, pull=1.0, pull_steps=(3, 0)).images
    own = ((tiny_prior.decode(tiny_prior.encode(2 * given.images - 1)) + 1) / 2).clamp(0, 1)
    free = go(given, coloured, pull=0.0).images
    assert (found - own).abs().mean() < 0.5 * (free - own).abs().mean()


def test_any_set_goes_in_and_any_order(go, given, coloured):
    pair = given.images.flip(0), given.labels.flip(0)
    found = go(pair, coloured)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = go((given.images[[1, 0, 3, 2, 5, 4]], given.labels), coloured)
    assert torch.equal(found.images, expected.images)


def test_a_run_knows_its_data_and_its_refinement_is_one(given, coloured_folder, tiny_prior, go, tmp_path):
    data = str(coloured_folder)
    ld3m.select(data, by="random", ipc=2, resolution=16, evaluate="none", progress=False, out=tmp_path / "set")
    run = go(tmp_path / "set", out=tmp_path / "run")
    assert run.config["data"] == data and run.path == tmp_path / "run"
    before = (run.path / "distilled.safetensors").read_bytes()
    go(tmp_path / "set", out=tmp_path / "run", resume=True)
    assert (run.path / "distilled.safetensors").read_bytes() == before
    other = go(tmp_path / "set", out=tmp_path / "other")
    assert (other.path / "distilled.safetensors").read_bytes() == before


def test_another_set_does_not_go_on_with_the_run(go, given, coloured, tmp_path, monkeypatch):
    whole = refined.within_memory

    def stop(job, label, rows):
        if label:
            raise KeyboardInterrupt
        return whole(job, label, rows)

    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        patches.setattr(refined, "within_memory", stop)
        go(given, coloured, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"resume needs the set that the run in .* began with"):
        go((1 - given.images, given.labels), coloured, out=tmp_path / "run", resume=True)


def test_what_the_set_says_cannot_be_said_otherwise(go, given, coloured):
    with pytest.raises(ConfigError, match="ipc of a refined set is 2, got 5; leave it out"):
        go(given, coloured, ipc=5)
    with pytest.raises(ConfigError, match="selector of a refined set is 'itself', got 'group'; leave it out"):
        go(given, coloured, selector="group")
    assert len(go(given, coloured, ipc=2)) == 6


def test_a_set_needs_data_and_equal_classes(go, given, coloured):
    with pytest.raises(ConfigError, match="refine needs the data that the set stands for: name them after the set"):
        go((given.images, given.labels))
    with pytest.raises(ConfigError, match="refine needs the data"):
        go(given)  # of tensors, whose name says nothing
    with pytest.raises(DataError, match="as many images of every class; this one has 1 to 2"):
        go((given.images[:5], given.labels[:5]), coloured)
