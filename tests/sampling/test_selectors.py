"""Latents chosen by a class's statistics."""

import pytest
import torch

import ld3m
from ld3m.errors import ConfigError
from ld3m.ops.group_select import group_noise, group_scores, score_noise
from ld3m.sampling import SELECTORS, ClassStatistics, SampleConfig, group

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def statistics() -> ClassStatistics:
    draw = torch.Generator().manual_seed(0)
    shape = (1, 3, 4, 4)
    return ClassStatistics(torch.randn(shape, generator=draw), torch.rand(shape, generator=draw) + 0.5, 30, 50)


def chosen(statistics, seed=0, **settings):
    config = SampleConfig(groups=settings.pop("groups", 200), **settings)
    latents, facts = SELECTORS[config.selector].select(statistics, config, seed, CPU)
    assert (latents.step, latents.steps) == (30, 50)
    assert latents.latents.shape == (config.ipc, 3, 4, 4)
    return latents.latents, facts


@pytest.mark.parametrize("kind", ["official", "diffusers"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_scores_of_the_released_code(kind, dtype, d3hr, relative_error):
    std, tolerance = d3hr[f"group/{kind}_{dtype}/std"], {"f32": 1e-5, "f64": 1e-12}[dtype]
    noise = d3hr["group/noise"].to(std.dtype)

    def of(*weights):
        return score_noise(noise, std, weights)

    for weights, name in {(1, 0, 0): "mean_term", (0, 1, 0): "std_term", (0, 0, 1): "skew_term"}.items():
        assert relative_error(of(*weights), d3hr[f"group/{kind}_{dtype}/{name}"]) < tolerance, name
    assert relative_error(of(1, 1, 0.1), d3hr[f"group/{kind}_{dtype}/score"]) < tolerance
    order = {"official": [28, 27, 59, 9, 44], "diffusers": [28, 27, 9, 59, 44]}[kind]
    assert of(1, 1, 0.1).argsort()[:5].tolist() == order
    assert int(of(1, 1, 0.1).argmax()) == 13
    assert int(of(1, 1, 0.5).argmin()) == 28


@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_the_released_codes_group_is_selected(kind, d3hr, relative_error):
    """Drawn as it draws, in its first chunk; its group is what its sampling starts from."""
    mean, std = (d3hr[f"group/{kind}_f32/{name}"].view(1, 4, 8, 8) for name in ("mean", "std"))
    config = SampleConfig(ipc=3, groups=64, compat="d3hr")
    latents, facts = group.select(ClassStatistics(mean, std, 30, 50), config, 0, CPU)
    assert facts["group"] == int(d3hr[f"group/{kind}_f32/best_index"]) == 28
    assert facts["score"] == pytest.approx({"official": 6.533030, "diffusers": 6.736470}[kind], abs=1e-5)
    assert relative_error(latents.latents, d3hr[f"sample/{kind}_f32/traj_s18"][0]) < 1e-5


def test_published_chunks_have_seeds_of_their_own(statistics, monkeypatch):
    monkeypatch.setattr(group, "_PUBLISHED_CHUNK", 5)
    latents, facts = chosen(statistics, compat="d3hr", ipc=2, groups=12)
    drawn = [
        torch.randn((count, 2, 48), generator=torch.Generator().manual_seed(12345 * chunk))
        for chunk, count in ((1, 5), (2, 5), (3, 2))
    ]
    noise = torch.cat(drawn)
    best = int(score_noise(noise, statistics.std.flatten()).argmin())
    assert (facts["group"], facts["chunk_seed"]) == (best, 12345 * (1 + best // 5)) and "group_seed" not in facts
    assert torch.allclose(latents, statistics.mean + statistics.std * noise[best].view(2, 3, 4, 4))


def test_the_best_group_can_be_made_again(statistics):
    latents, facts = chosen(statistics, ipc=5, seed=3)
    scores = group_scores(statistics.std.flatten(), ipc=5, count=200, seed=facts["group_seed"])
    assert facts["group"] == int(scores.argmin())
    assert facts["score"] == pytest.approx(float(scores.min()), abs=1e-5)
    noise = group_noise(torch.tensor([facts["group"]]), ipc=5, dim=48, seed=facts["group_seed"])[0]
    assert torch.equal(latents, statistics.mean + statistics.std * noise.view(5, 3, 4, 4))


def test_weights_change_the_choice(statistics):
    picked = {chosen(statistics, ipc=3, weights=weights)[1]["group"] for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1))}
    assert len(picked) == 3


def test_a_single_latent_is_the_one_nearest_to_the_mean(statistics):
    latents, facts = chosen(statistics, ipc=1)
    noise = group_noise(torch.arange(200), ipc=1, dim=48, seed=0)[:, 0]
    assert facts["group"] == int((statistics.std.flatten() * noise).norm(dim=1).argmin())
    assert (latents - statistics.mean).norm().item() == pytest.approx(facts["score"], abs=1e-4)


@pytest.mark.parametrize("ipc", [2, 5])
def test_moments_are_exact(ipc, statistics):
    latents, _ = chosen(statistics, selector="moments", ipc=ipc)
    assert torch.allclose(latents.mean(0), statistics.mean[0], atol=1e-5)
    assert torch.allclose(latents.std(0), statistics.std[0], atol=1e-5)


def test_moments_of_a_single_latent_are_the_mean(statistics):
    assert torch.equal(chosen(statistics, selector="moments", ipc=1)[0], statistics.mean)


def test_random_latents_follow_the_gaussian(statistics):
    latents, _ = chosen(statistics, selector="random", ipc=2000)
    standard = (latents - statistics.mean) / statistics.std
    assert abs(standard.mean()) < 4 / 310
    assert abs(standard.std() - 1) < 4 / 438


def test_kmeans_draws_one_latent_from_each_prototype():
    mean = torch.tensor([-100.0, 0.0, 100.0])[:, None, None, None].expand(-1, 3, 4, 4)
    prototypes = ClassStatistics(mean, torch.ones(3, 3, 4, 4), 30, 50)
    latents, _ = chosen(prototypes, selector="kmeans", ipc=3)
    assert (latents - mean).std() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_seed_decides(selector, statistics):
    first, again, other = (chosen(statistics, selector=selector, ipc=2, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_name_that_is_none_of_the_table_is_refused_before_data_are_read():
    with pytest.raises(ConfigError, match=r"selector is one of group, .*; got 'groups'; did you mean 'group'"):
        ld3m.sample_dataset("nowhere", selector="groups", progress=False)
