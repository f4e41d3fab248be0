"""Latents through the chain and through the decoder alone."""

import types
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import ld3m
from ld3m.chain import reverse_chain
from ld3m.config import DistillConfig, resolve
from ld3m.errors import ConfigError
from ld3m.memory import Plan
from ld3m.spaces import LatentSpace, latent

CHAIN = resolve(DistillConfig(steps=3, guidance_scale=2.0, seed=4), 16)
DRAW = torch.Generator().manual_seed(0)
LATENTS = torch.randn(4, 3, 8, 8, generator=DRAW)
CONDITIONING = torch.randn(4, 1, 8, generator=DRAW)
BOTH = ("latents", "conditioning")


def space(prior, *, chain=CHAIN, learn=BOTH, resolution=16, conditioning=CONDITIONING):
    return LatentSpace(
        prior, LATENTS, conditioning, learn=learn, resolution=resolution, chain=chain, retain=0.5, micro_batch=2
    )


@pytest.fixture
def chains(monkeypatch):
    """The arguments of every chain that is run."""
    calls = []

    def spy(prior, latents, conditioning, **options):
        calls.append({"latents": latents.detach(), "conditioning": conditioning, **options})
        return reverse_chain(prior, latents, conditioning, **options)

    monkeypatch.setattr(latent, "reverse_chain", spy)
    return calls


def shown(prior, latents):
    return ((prior.decode(latents) + 1) / 2).clamp(0, 1)


def test_the_autoencoder_space_is_the_decoder(tiny_prior):
    rows = torch.tensor([3, 0])
    with torch.no_grad():
        rendered = space(tiny_prior, chain=None, conditioning=None).render(rows, (0,))
        assert torch.equal(rendered, shown(tiny_prior, LATENTS[rows]))


@pytest.mark.parametrize("injection", ["x0", "none"])
def test_the_ld3m_space_is_the_chain_and_the_decoder(injection, tiny_prior, chains):
    rows, chain = torch.tensor([3, 0, 2]), replace(CHAIN, injection=injection)
    with torch.no_grad():
        rendered = space(tiny_prior, chain=chain).render(rows, ("a", 1))
        (call,) = chains
        expected = reverse_chain(
            tiny_prior, LATENTS[rows], CONDITIONING[rows], steps=3, guidance_scale=2.0, injection=injection,
            schedule="linear", noise=call["noise"],
        )  # fmt: skip
        torch.testing.assert_close(rendered, shown(tiny_prior, expected), atol=1e-5, rtol=1e-5)
    assert (call["retain"], call["micro_batch"], call["schedule"]) == (0.5, 2, "linear")


def test_fresh_noise_follows_the_purpose_and_fixed_noise_does_not(tiny_prior, chains):
    for noise in ("fresh", "fixed"):
        rendering = space(tiny_prior, chain=replace(CHAIN, noise=noise))
        for purpose in ((0,), (1,), (0,)):
            with torch.no_grad():
                rendering.render(torch.arange(4), purpose)
    fresh, fixed = ([call["noise"] for call in calls] for calls in (chains[:3], chains[3:]))
    assert torch.equal(fresh[0], fresh[2])
    assert not torch.equal(fresh[0], fresh[1])
    assert torch.equal(fixed[0], fixed[1])
    for noise in (*fresh, *fixed):
        assert noise.shape == LATENTS.shape
        assert abs(noise.mean()) < 0.2
        assert abs(noise.std() - 1) < 0.1


def test_an_images_noise_does_not_depend_on_its_company(tiny_prior, chains):
    rendering = space(tiny_prior)
    with torch.no_grad():
        for rows in ([0, 1, 2, 3], [2], [3, 1]):
            rendering.render(torch.tensor(rows), (7,))
    whole, single, pair = (call["noise"] for call in chains)
    assert torch.equal(single, whole[[2]])
    assert torch.equal(pair, whole[[3, 1]])
    assert not torch.equal(whole[0], whole[1])


def test_noise_is_drawn_once_for_all_groups(tiny_prior, chains, monkeypatch):
    rendering, draws, randn = space(tiny_prior), [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: draws.append(a) or randn(*a, **k))
    with torch.no_grad():
        for rows, purpose in (([0, 1], (7,)), ([2, 3], (7,)), ([0, 1], (8,)), ([0, 1], (7,))):
            rendering.render(torch.tensor(rows), purpose)
    assert len(draws) == 3
    assert torch.equal(chains[0]["noise"], chains[3]["noise"])


def test_another_seed_has_another_noise(tiny_prior, chains):
    for seed in (4, 5):
        with torch.no_grad():
            space(tiny_prior, chain=replace(CHAIN, seed=seed)).render(torch.arange(4), (0,))
    assert not torch.equal(chains[0]["noise"], chains[1]["noise"])


@pytest.mark.parametrize("learn", [("latents",), ("conditioning",), BOTH])
def test_only_what_is_learnt_gets_a_gradient(learn, tiny_prior):
    rendering = space(tiny_prior, learn=learn)
    rendering.render(torch.tensor([1, 2]), (0,)).square().sum().backward()
    for name, parameter in rendering.parameters.items():
        assert parameter.is_leaf
        assert parameter.requires_grad == (name in learn)
        if name in learn:
            assert (parameter.grad.flatten(1).norm(dim=1) > 0).tolist() == [False, True, True, False]
        else:
            assert parameter.grad is None


def test_the_parameters_are_copies(tiny_prior):
    rendering = space(tiny_prior)
    with torch.no_grad():
        rendering.parameters["latents"].zero_()
    rendering.project()
    assert LATENTS.norm() > 0
    assert rendering.parameters["latents"].norm() == 0


def test_decoded_images_of_another_size_are_resized_with_antialiasing(tiny_prior):
    with torch.no_grad():
        rendered = space(tiny_prior, chain=None, conditioning=None, resolution=6).render(torch.arange(4), (0,))
        decoded = tiny_prior.decode(LATENTS)
        smooth = F.interpolate(decoded, (6, 6), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(rendered, ((smooth + 1) / 2).clamp(0, 1))


def test_an_unconditional_prior_has_latents_alone(reference_prior):
    prior = reference_prior("ffhq", torch.float32)
    side = prior.native_resolution // prior.downsample
    latents = torch.randn(2, prior.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    chain = replace(CHAIN, steps=1)
    rendering = LatentSpace(prior, latents, None, learn=BOTH, resolution=prior.native_resolution, chain=chain)
    assert list(rendering.parameters) == ["latents"]
    images = rendering.render(torch.tensor([1]), (0,))
    assert images.shape == (1, 3, prior.native_resolution, prior.native_resolution)
    images.sum().backward()
    assert (rendering.parameters["latents"].grad.flatten(1).norm(dim=1) > 0).tolist() == [False, True]


@pytest.mark.parametrize("chain", [CHAIN, None])
@pytest.mark.parametrize("decoder_batch", [1, 3, 4, 9])
def test_a_recomputed_decoder_gives_the_same_bits(decoder_batch, chain, tiny_prior, monkeypatch, relative_error):
    """As one that is kept and gets the same batches; another size of batch changes the rounding of convolutions."""

    def run(size):
        rendering = space(tiny_prior, chain=chain, conditioning=CONDITIONING if chain else None)
        rendering.apply_plan(Plan(0.5, 2, 1, size, None))
        images = rendering.render(torch.tensor([3, 0, 2, 1]), (0,))
        images.backward(torch.linspace(-1, 1, images.numel()).view_as(images))
        return [images.detach(), *(parameter.grad for parameter in rendering.parameters.values())]

    whole, recomputed = run(None), run(decoder_batch)
    monkeypatch.setattr(latent, "_Recomputed", types.SimpleNamespace(apply=lambda function, x: function(x)))
    for one, again, kept in zip(whole, recomputed, run(decoder_batch), strict=True):
        assert torch.equal(again, kept)
        assert relative_error(again, one) < 1e-5


def test_a_recomputed_decoder_holds_one_batch_at_a_time(tiny_prior, saved_tensors):
    peaks = {}
    for size in (None, 4, 2, 1):
        rendering = space(tiny_prior, chain=None, conditioning=None)
        rendering.decoder_batch = size
        with saved_tensors(tiny_prior.first_stage) as count:
            images = rendering.render(torch.arange(4), (0,))
            held = count.now
            images.sum().backward()
        assert held < 0.01 * count.peak or size is None
        peaks[size] = count.peak
    assert peaks[2] == pytest.approx(peaks[None] / 2, rel=0.05)
    assert peaks[1] == pytest.approx(peaks[None] / 4, rel=0.05)


def test_a_plan_changes_what_is_held_and_the_rest_of_the_chain_stays(tiny_prior, chains):
    rendering = space(tiny_prior)
    rendering.apply_plan(Plan(0.25, 3, 1, 2, None))
    assert rendering.chain == CHAIN
    assert (rendering.retain, rendering.micro_batch, rendering.decoder_batch) == (0.25, 3, 2)
    rendering.render(torch.arange(4), (0,))
    assert (chains[0]["retain"], chains[0]["micro_batch"], chains[0]["steps"]) == (0.25, 3, 3)


@pytest.mark.parametrize(
    ("prior", "settings", "is_refused"),
    [
        ("random:tiny", {"latent_size": 1}, True),
        ("random:tiny", {"latent_size": 1, "space": "autoencoder"}, True),
        ("random:tiny", {"resolution": 2}, True),
        ("random:tiny", {"latent_size": 2}, False),
        ("builtin", {"latent_size": 1}, False),  # two channels a group
        ("builtin", {"resolution": 4, "space": "autoencoder"}, False),
        ("random:dit-tiny", {"latent_size": 2}, False),
        ("random:dit-tiny", {"latent_size": 1}, True),
    ],
)
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_latents_of_one_value_are_refused_where_a_norm_leaves_nothing_of_it(
    prior, settings, is_refused, micro_batch, coloured, monkeypatch
):
    """torch refuses such a norm where a single image comes alone, in the middle of a run."""
    options = {"iterations": 1, "width": 4, "progress": False, "evaluate": "none"}
    if "space" not in settings:
        options |= {"steps": 1, "class_ids": (0, 1, 2), "guidance_scale": 1.0}
    original = latent.plan_work

    def planned(*args):
        plan = original(*args)
        return replace(plan, micro_batch=micro_batch, classes_in_flight=1, decoder_batch=micro_batch)

    monkeypatch.setattr(latent, "plan_work", planned)
    options = {"prior": prior, "resolution": 16, **options, **settings}
    if is_refused:
        with pytest.raises(ConfigError, match=r"of which latents of 1 × 1 leave one|multiple of 2, got 1"):
            ld3m.distill(coloured, **options)
    else:
        assert ld3m.distill(coloured, **options).images.isfinite().all()


def test_sampling_refuses_them_too(coloured):
    settings = {"class_ids": (0, 1, 2), "steps": 2, "stop": 1, "evaluate": "none", "progress": False}
    with pytest.raises(ConfigError, match="of which latents of 1 × 1 leave one; choose a larger latent_size or res"):
        ld3m.sample_dataset(coloured, prior="random:tiny", resolution=2, **settings)
