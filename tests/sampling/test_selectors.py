"""Latents chosen by a class's statistics."""

from dataclasses import replace

import pytest
import torch

import ld3m
from ld3m.errors import ConfigError
from ld3m.ops.group_select import group_noise, group_scores, score_noise
from ld3m.sampling import SELECTORS, ClassStatistics, SampleConfig, group, modes, resolve, transport
from ld3m.sampling.statistics import noise_of
from ld3m.sampling.together import sample_together

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


def test_plain_is_noise_of_the_class_alone(tiny_prior, coloured, monkeypatch):
    """No image is encoded, and the same seed gives what the chain makes of that noise."""
    monkeypatch.setattr(type(tiny_prior), "encode", None)
    settings = {"ipc": 2, "steps": 4, "class_ids": (0, 1, 2), "prior": tiny_prior, "progress": False}
    result = ld3m.sample_dataset(coloured, selector="plain", stop=2, **settings)
    noise = result.latents[2:4]
    assert (result.config["pull"], result.config["variance"]) == (0.0, "fixed-small")
    conditioning = tiny_prior.embed(torch.tensor([1, 1])).float()
    sampled = ld3m.sample(tiny_prior, ld3m.chain.NoisyLatents(noise, 3, 4), conditioning)
    images = ((tiny_prior.decode(sampled) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(result.images[2:4], images, rtol=1e-4, atol=1e-5)


def clusters(spread=0.01):
    """Three clusters of latents, 10, 20 and 30 of them, around −1, 0 and 1."""
    draw = torch.Generator().manual_seed(4)
    sizes = torch.tensor([10, 20, 30])
    middle = torch.repeat_interleave(torch.tensor([-1.0, 0.0, 1.0]), sizes)
    return middle[:, None, None, None] + spread * torch.randn((60, 3, 4, 4), generator=draw)


@pytest.mark.parametrize("kind", modes.MODES)
def test_modes_are_those_of_the_class(kind, tiny_prior):
    latents = clusters()
    found = modes.mode_statistics(tiny_prior, latents.split(25), None, SampleConfig(ipc=3, modes=kind), 0)
    order = found.targets.mean((1, 2, 3)).argsort()
    torch.testing.assert_close(found.targets[order].mean((1, 2, 3)), torch.tensor([-1.0, 0, 1]), rtol=0, atol=0.01)
    torch.testing.assert_close(found.weights[order], torch.tensor([0.5, 1.0, 1.5]))
    assert (found.step, found.steps) == (49, 50) and found.mean.eq(0).all() and found.std.eq(1).all()
    is_real = [any(torch.equal(target, one) for one in latents) for target in found.targets]
    assert is_real == [kind == "nearest"] * 3


def test_images_come_near_their_modes(tiny_prior, coloured):
    """The stronger the pull, the nearer; without any they are plain ones."""
    settings = {"ipc": 2, "steps": 6, "class_ids": (0, 1, 2), "prior": tiny_prior, "progress": False, "stop": 3}
    plain = ld3m.sample_dataset(coloured, selector="plain", **settings)
    none = ld3m.sample_dataset(coloured, selector="modes", pull=0.0, **settings)
    assert torch.equal(plain.images, none.images)
    job_settings = SampleConfig(selector="modes", ipc=2, steps=6, stop=3)
    latents = tiny_prior.encode(torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    statistics = modes.mode_statistics(tiny_prior, [latents], None, job_settings, 0)
    noisy = statistics.noisy(torch.randn(2, *latents.shape[1:], generator=torch.Generator().manual_seed(1)))
    conditioning = tiny_prior.embed(torch.tensor([1])).float()
    far = []
    for pull in (0.0, 0.1, 0.5):
        config = resolve(replace(job_settings, pull=pull, pull_steps=(5, 0)), 16)
        sampled = sample_together(tiny_prior, noisy, statistics, conditioning, config, 0)
        far.append(float((sampled - statistics.targets).norm()))
    assert far[0] > far[1] > far[2]


def test_a_pull_is_for_selectors_that_have_one(tiny_prior, coloured):
    with pytest.raises(
        ConfigError, match="pull is for modes, itself, transport, and the selector is 'group'; leave it out"
    ):
        ld3m.sample_dataset(coloured, prior=tiny_prior, class_ids=(0, 1, 2), pull=0.1, progress=False)


def test_a_transport_plan_has_its_masses():
    draw = torch.Generator().manual_seed(0)
    distances, masses = torch.rand((5, 3), generator=draw, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3]).double()
    plan = transport.sinkhorn(distances, masses)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 0.2, dtype=torch.float64))  # exact after the last row step
    torch.testing.assert_close(plan.sum(0), masses, rtol=0.1, atol=0.02)
    kernel = (-distances / 0.1).exp()  # the same by products, as Sinkhorn wrote it
    columns = torch.ones(3, dtype=torch.float64)
    rows = torch.ones(5, dtype=torch.float64)
    for _ in range(5):
        columns = masses / (kernel.T @ rows)
        rows = 0.2 / (kernel @ columns)
    torch.testing.assert_close(plan, rows[:, None] * kernel * columns)
    assert transport.sinkhorn(1e4 * distances, masses).isfinite().all()


def test_a_point_is_moved_to_where_mass_is_lacking():
    """Of two clusters of equal mass one has an image: the next is drawn to the other, by half of a unit vector."""
    centres, masses = torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), torch.tensor([0.5, 0.5])
    for finished, sign in ((-3.0, 1.0), (3.0, -1.0)):
        points = torch.tensor([[finished, 0.1], [-sign * 0.5, 0.0]])
        moved = transport.direction(points, centres, masses)
        torch.testing.assert_close(moved, torch.tensor([0.5 * sign, 0.0]), rtol=0, atol=1e-4)


def test_the_cost_of_transport_falls_along_the_direction():
    draw = torch.Generator().manual_seed(2)
    points, centres = (torch.randn((count, 4), generator=draw, dtype=torch.float64) for count in (3, 5))
    masses = torch.full((5,), 0.2, dtype=torch.float64)
    plan = transport.sinkhorn(torch.cdist(points, centres), masses)
    own = points[-1].clone().requires_grad_()
    cost = (plan[-1] * (own - centres).norm(dim=1)).sum()  # with the plan held fixed
    torch.testing.assert_close(transport.direction(points, centres, masses), -torch.autograd.grad(cost, own)[0])


def test_transport_samples_one_image_after_the_other(tiny_prior):
    latents = clusters()
    settings = SampleConfig(selector="transport", ipc=2, steps=6, stop=3)
    statistics = transport.cluster_statistics(tiny_prior, latents.split(25), None, settings, 0)
    torch.testing.assert_close(statistics.masses.sum(), torch.tensor(1.0))
    assert statistics.targets.shape == (transport.CLUSTERS, 3, 4, 4)
    noisy = statistics.noisy(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)))
    conditioning = tiny_prior.embed(torch.tensor([1])).float()
    found = {}
    for pull in (0.0, 0.5):
        config = resolve(replace(settings, pull=pull, pull_steps=(5, 3)), 16)
        found[pull] = transport.sample_one_by_one(tiny_prior, noisy, statistics, conditioning, config, 0)
    plain = sample_together(tiny_prior, noisy, noise_of((3, 4, 4), settings), conditioning, config, 0)
    torch.testing.assert_close(found[0.0], plain, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(found[0.5], plain, atol=1e-2)
