"""Inversion and sampling against what the authors' D3HR computes, and as each other's inverse."""

import pytest
import torch

import ld3m
from ld3m.chain import NoisyLatents, inversion_states, sampling_states
from ld3m.chain.schedule import spaced_timesteps
from ld3m.errors import ConfigError, InputError

DTYPES = {"f64": torch.float64, "f32": torch.float32}
TOLERANCE = {"f64": 1e-10, "f32": 1e-4}
RUNS = [(kind, precision) for kind in ("official", "diffusers") for precision in DTYPES]


@pytest.fixture
def noise_of_time(priors, monkeypatch):
    """A prior whose noise prediction depends on the timestep alone: there, sampling inverts inversion exactly."""
    prior = priors("vq")
    calls = []

    def predict(latents, timestep, conditioning=None):
        calls.append((timestep, len(latents)))
        return torch.full_like(latents, (timestep % 7) / 7)

    monkeypatch.setattr(prior, "predict_noise", predict)
    return prior, calls


def two_of_class_3(prior, d3hr):
    return d3hr["lat/c3"][:2].to(prior.dtype), prior.embed(torch.tensor([3, 3]))


@pytest.mark.parametrize(("kind", "precision"), RUNS)
def test_inversion_is_the_published_one(dit_prior, d3hr, relative_error, kind, precision):
    prior = dit_prior(kind, DTYPES[precision])
    states = list(inversion_states(prior, *two_of_class_3(prior, d3hr), stop=38, guidance_scale=4.0))
    want = d3hr[f"inv/{kind}_{precision}/traj_c3"]
    assert relative_error(torch.stack([state.latents for state in states]), want) <= TOLERANCE[precision]
    assert [(state.step, state.timestep, state.steps) for state in states] == [(i, 20 * i, 50) for i in range(39)]


@pytest.mark.parametrize("label", [3, 7])
@pytest.mark.parametrize("kind", ["official", "diffusers"])
def test_all_images_of_a_class(dit_prior, d3hr, relative_error, kind, label):
    prior = dit_prior(kind, torch.float32)
    conditioning = prior.embed(torch.full((20,), label))
    state = ld3m.invert(prior, d3hr[f"lat/c{label}"], conditioning, guidance_scale=4.0, micro_batch=7)
    assert (state.step, state.steps, state.timestep, state.latents.dtype) == (30, 50, 600, torch.float32)
    assert relative_error(state.latents, d3hr[f"inv/{kind}_f32/all20_i30_c{label}"]) <= TOLERANCE["f32"]


@pytest.mark.parametrize(("kind", "precision"), RUNS)
def test_sampling_from_the_published_start(dit_prior, d3hr, relative_error, kind, precision):
    """Start 18 of the descending grid is point 31; the state inverted to point 30 is taken for it."""
    prior = dit_prior(kind, DTYPES[precision])
    want = d3hr[f"sample/{kind}_{precision}/traj_s18"]
    conditioning = prior.embed(torch.tensor([3, 3, 3]))
    states = torch.stack(list(sampling_states(prior, NoisyLatents(want[0], 30), conditioning, compat="d3hr")))
    assert relative_error(states, want) <= TOLERANCE[precision]
    assert torch.equal(ld3m.sample(prior, want[0], conditioning, start=31, compat="d3hr"), states[-1])


@pytest.mark.parametrize(("kind", "precision"), RUNS)
def test_sampling_from_the_consistent_start(dit_prior, d3hr, relative_error, kind, precision):
    """Start 19 of the descending grid is point 30, with the published end."""
    prior = dit_prior(kind, DTYPES[precision])
    start = d3hr[f"sample/{kind}_{precision}/traj_s18"][0]
    got = ld3m.sample(prior, start, prior.embed(torch.tensor([3, 3, 3])), start=30, compat="d3hr")
    assert relative_error(got, d3hr[f"sample/{kind}_{precision}/final_s19"]) <= TOLERANCE[precision]


def test_a_trained_denoiser(dit_prior, d3hr, relative_error):
    prior = dit_prior("toy")
    latents, conditioning = two_of_class_3(prior, d3hr)
    states = list(inversion_states(prior, latents, conditioning, stop=38, guidance_scale=4.0))
    kept = torch.stack([state.latents for state in states[24:]])
    assert relative_error(kept, d3hr["toy/inv_stack15_c3_f64"]) <= TOLERANCE["f64"]
    published = ld3m.sample(prior, states[30], conditioning, compat="d3hr")
    assert relative_error(published, d3hr["toy/sample_from_i30_s18_f64"]) <= TOLERANCE["f64"]
    consistent = ld3m.sample(prior, states[31].latents, conditioning, start=31, compat="d3hr")
    assert relative_error(consistent, d3hr["toy/sample_from_i31_s18_f64"]) <= TOLERANCE["f64"]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_reconstruction_is_of_first_order(dit_prior, d3hr, guidance_scale):
    """Halving the step halves the error; the published start is worse at every number of steps."""
    prior = dit_prior("toy")
    latents, conditioning = d3hr["lat/c3"][:8].double(), prior.embed(torch.full((8,), 3))
    errors = {None: [], "d3hr": []}
    for steps in (10, 50):  # multiples of 20 in time, for which the reference has its sinusoids
        stop = 6 * steps // 10
        state = ld3m.invert(prior, latents, conditioning, steps=steps, stop=stop, guidance_scale=guidance_scale)
        for compat, found in errors.items():
            back = ld3m.sample(prior, state, conditioning, guidance_scale=guidance_scale, compat=compat)
            found.append(((back - latents).norm() / latents.norm()).item())
    assert 4 < errors[None][0] / errors[None][1] < 6
    assert all(published > consistent for consistent, published in zip(errors[None], errors["d3hr"], strict=True))


@pytest.mark.parametrize(("steps", "stop"), [(50, 30), (50, 49), (2, 1), (30, 17), (1000, 9)])
def test_sampling_inverts_inversion(noise_of_time, steps, stop):
    prior, calls = noise_of_time
    latents = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conditioning = prior.embed(torch.tensor([0, 1]))
    state = ld3m.invert(prior, latents, conditioning, steps=steps, stop=stop, guidance_scale=1.0)
    up = list(calls)
    calls.clear()
    back = ld3m.sample(prior, state, conditioning, guidance_scale=1.0)

    assert up == [(i * (1000 // steps), 2) for i in range(1, stop + 1)] and calls == up[::-1]
    torch.testing.assert_close(back, latents, rtol=1e-10, atol=1e-10)


def test_the_published_end_has_one_evaluation_more(noise_of_time):
    prior, calls = noise_of_time
    latents, conditioning = torch.zeros(1, 3, 4, 4), prior.embed(torch.tensor([0]))
    ld3m.sample(prior, NoisyLatents(latents, 2), conditioning, compat="d3hr")
    assert calls == [(60, 2), (40, 2), (20, 2), (0, 2)]


def test_guidance_of_exactly_one_is_one_evaluation(noise_of_time):
    prior, calls = noise_of_time
    latents, conditioning = torch.zeros(3, 3, 4, 4), prior.embed(torch.tensor([0, 1, 2]))
    ld3m.invert(prior, latents, conditioning, stop=1, guidance_scale=1)
    ld3m.invert(prior, latents, conditioning, stop=1, guidance_scale=0.0)
    ld3m.invert(prior, latents, conditioning, stop=1, guidance_scale=2.0, micro_batch=2)
    assert calls == [(20, 3), (20, 6), (20, 4), (20, 2)]


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 9])
def test_micro_batches_change_nothing(priors, inputs, relative_error, micro_batch):
    prior = priors("dit")
    latents, conditioning, _, _ = inputs(prior, 3)
    options = dict(guidance_scale=3.0, micro_batch=micro_batch)
    state = ld3m.invert(prior, latents, conditioning, steps=5, stop=3, **options)
    want = ld3m.invert(prior, latents, conditioning, steps=5, stop=3, guidance_scale=3.0)
    assert relative_error(state.latents, want.latents) <= 1e-12
    back, wanted = (ld3m.sample(prior, want, conditioning, **o) for o in (options, {"guidance_scale": 3.0}))
    assert relative_error(back, wanted) <= 1e-12 and not back.requires_grad and not state.latents.requires_grad


def test_an_unconditional_prior(priors):
    prior = priors("unconditional")
    latents = torch.ones(2, prior.latent_channels, 8, 8, dtype=torch.float64)
    state = ld3m.invert(prior, latents, steps=10, stop=2)
    assert torch.equal(ld3m.sample(prior, state), ld3m.sample(prior, state, guidance_scale=1.0))
    with pytest.raises(InputError, match=r"takes no conditioning.*\(2, 1, 8\)"):
        ld3m.invert(prior, latents, torch.zeros(2, 1, 8))


def test_spaced_timesteps():
    assert spaced_timesteps(50) == tuple(range(0, 1000, 20)) and spaced_timesteps(1) == (0,)
    assert all(spaced_timesteps(steps)[-1] <= 999 for steps in range(1, 1001))


class TestBadInput:
    @pytest.fixture
    def prior(self, priors):
        return priors("vq")

    @pytest.fixture
    def tensors(self, prior):
        return torch.zeros(2, 3, 4, 4), prior.embed(torch.tensor([0, 1]))

    @pytest.mark.parametrize("point", [0, 50, -1, 1.5, "30", True])
    def test_point_outside_the_grid(self, prior, tensors, point):
        with pytest.raises(InputError, match=rf"stop.*grid of 50 steps, 1 to 49; got {point!r}"):
            ld3m.invert(prior, *tensors, stop=point)
        with pytest.raises(InputError, match=rf"start.*grid of 50 steps, 1 to 49; got {point!r}"):
            ld3m.sample(prior, *tensors, start=point)

    @pytest.mark.parametrize("step", [-1, 50])
    def test_noisy_latents_outside_the_grid(self, tensors, step):
        with pytest.raises(InputError, match=rf"step.*50 steps, 0 to 49; got {step}"):
            NoisyLatents(tensors[0], step)

    @pytest.mark.parametrize("steps", [0, 1001, 1.5])
    def test_steps(self, prior, tensors, steps):
        with pytest.raises(InputError, match=rf"steps.*1 to 1000.*{steps}"):
            ld3m.invert(prior, *tensors, steps=steps)

    def test_start_is_needed_once(self, prior, tensors):
        latents, conditioning = tensors
        with pytest.raises(InputError, match=r"start=.*what invert returned"):
            ld3m.sample(prior, latents, conditioning)
        for said in ({"start": 31}, {"steps": 20}):
            with pytest.raises(InputError, match=r"point 30 of 50.*leave start and steps out"):
                ld3m.sample(prior, NoisyLatents(latents, 30), conditioning, **said)
        with pytest.raises(InputError, match="inverted already"):
            ld3m.invert(prior, NoisyLatents(latents, 30), conditioning)

    def test_states_that_cannot_be_sampled(self, prior, tensors):
        latents, conditioning = tensors
        with pytest.raises(InputError, match=r"start.*1 to 49; got 0"):
            ld3m.sample(prior, NoisyLatents(latents, 0), conditioning)
        with pytest.raises(InputError, match=r"start.*1 to 49; got 50"):
            ld3m.sample(prior, NoisyLatents(latents, 49), conditioning, compat="d3hr")
        with pytest.raises(ConfigError, match=r"compat.*d3hr.*'d4m'"):
            ld3m.sample(prior, NoisyLatents(latents, 30), conditioning, compat="d4m")

    @pytest.mark.parametrize("function", [ld3m.invert, lambda *a, **k: ld3m.sample(*a, start=2, **k)])
    def test_what_every_chain_asks(self, prior, tensors, function):
        latents, conditioning = tensors
        with pytest.raises(InputError, match=r"latents are \(N, 3, h, w\)"):
            function(prior, latents[:, :2], conditioning)
        with pytest.raises(InputError, match=r"class-conditional.*prior\.embed"):
            function(prior, latents)
        with pytest.raises(InputError, match=r"conditioning is \(2, 1, 8\).*\(1, 1, 8\)"):
            function(prior, latents, conditioning[:1])
        with pytest.raises(InputError, match=r"micro_batch.*0"):
            function(prior, latents, conditioning, micro_batch=0)
        with pytest.raises(InputError, match=r"guidance_scale.*nan"):
            function(prior, latents, conditioning, guidance_scale=float("nan"))
