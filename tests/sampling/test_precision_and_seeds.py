"""Statistics of float32 rows kept in float64, and draws by purpose."""

import torch

from ld3m.runtime import seeds
from ld3m.sampling import SELECTORS, ClassStatistics, Moments, SampleConfig


def test_float32_rows_far_from_zero_keep_their_deviation():
    """In float32 the squares of deviations from a running mean of 1e4 would lose all but three digits."""
    draw = torch.Generator().manual_seed(0)
    rows = (1e4 + 0.01 * torch.randn(4000, 5, generator=draw)).float()
    moments = Moments()
    for part in rows.split(7):
        moments.add(part)
    exact = rows.double()
    assert moments.mean.dtype == moments.std.dtype == torch.float64
    torch.testing.assert_close(moments.mean, exact.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(moments.std, exact.std(0), rtol=1e-9, atol=0)


def test_random_latents_are_drawn_for_that_purpose_alone():
    """What another selector draws with the same seed is independent of it."""
    unit = ClassStatistics(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), 30, 50)
    config = SampleConfig(selector="random", ipc=2)
    latents, _ = SELECTORS["random"].select(unit, config, 5, torch.device("cpu"))
    assert torch.equal(latents.latents, torch.randn(2, 3, 4, 4, generator=seeds.generator(5, "random")))
