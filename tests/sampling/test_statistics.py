"""Statistics in one pass, against two passes and against the released code's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ld3m.chain import invert
from ld3m.errors import DataError
from ld3m.sampling import SELECTORS, Moments, SampleConfig
from ld3m.sampling.statistics import inverted_statistics


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 10**6))
def test_moments_do_not_depend_on_the_batches(sizes, seed):
    rows = 1e4 + torch.randn(sum(sizes) + 1, 2, 3, generator=torch.Generator().manual_seed(seed)).double()
    moments = Moments()
    for part in rows.split([1, *sizes]):
        moments.add(part)
    assert moments.count == len(rows)
    assert torch.allclose(moments.mean, rows.mean(0), rtol=1e-14)
    assert torch.allclose(moments.std, rows.std(0), rtol=1e-9)


def test_a_single_row_has_no_deviation():
    moments = Moments()
    moments.add(torch.ones(1, 3))
    with pytest.raises(DataError, match=r"at least 2 images of a class, got 1; add images"):
        moments.std  # noqa: B018


@pytest.mark.parametrize("kind", ["official", "diffusers"])
@pytest.mark.parametrize("label", [3, 7])
def test_of_the_released_code(kind, label, d3hr, dit_prior, relative_error):
    """The 20 latents of a class inverted with guidance 4; kept states are 24 … 38, so 30 is the seventh."""
    config = SampleConfig(inversion_guidance=4.0)
    prior = dit_prior(kind, torch.float32)
    conditioning = prior.embed(torch.tensor([label])).float()
    batches = d3hr[f"lat/c{label}"].split(7)
    statistics = inverted_statistics(prior, batches, conditioning, config, seed=0)
    mean, variance = (d3hr[f"stats/{kind}_f64/{name}_c{label}"][6].view(1, 4, 8, 8) for name in ("mean", "var"))
    assert relative_error(statistics.mean, mean) < 1e-5
    assert relative_error(statistics.std, variance.sqrt()) < 1e-5
    assert (statistics.step, statistics.steps) == (30, 50)


def test_inversion_follows_the_settings(tiny_prior):
    config = SampleConfig(steps=10, stop=3, inversion_guidance=1.0)
    latents = torch.randn(4, tiny_prior.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning = tiny_prior.embed(torch.tensor([2]))
    statistics = inverted_statistics(tiny_prior, [latents[:3], latents[3:]], conditioning, config, seed=0)
    rows = conditioning.expand(4, -1, -1)
    expected = invert(tiny_prior, latents, rows, steps=10, stop=3, guidance_scale=1.0).latents
    assert torch.allclose(statistics.mean[0], expected.mean(0), atol=1e-5)
    assert torch.allclose(statistics.std[0], expected.std(0), atol=1e-5)


def test_prototypes_are_noised_to_the_level(tiny_prior):
    config = SampleConfig(selector="kmeans", ipc=2, steps=20, stop=8)
    planted = torch.tensor([-3.0, 5.0])[:, None, None, None].expand(-1, tiny_prior.latent_channels, 8, 8)
    noise = 0.01 * torch.randn(10, tiny_prior.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = planted.repeat(5, 1, 1, 1) + noise
    statistics = SELECTORS["kmeans"].gather(tiny_prior, latents.split(4), None, config, 0)
    alpha = tiny_prior.alphas_cumprod[400]
    assert statistics.mean.shape == (2, tiny_prior.latent_channels, 8, 8)
    found = statistics.mean.mean((1, 2, 3)).sort().values / alpha.sqrt()
    assert torch.allclose(found.float(), torch.tensor([-3.0, 5.0]), atol=0.01)
    assert torch.allclose(statistics.std, (1 - alpha).sqrt().float())
