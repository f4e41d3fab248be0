"""Every switch, on and off, against diffusers' own modules; what the networks keep and leave alone."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import ld3m
from ld3m.errors import BackendError, ConfigError
from ld3m.priors import ExecutionConfig
from ld3m.priors.folder import save_prior
from ld3m.priors.frozen.blocks import Blocks
from ld3m.priors.frozen.supported import obstacle
from ld3m.runtime.footprint import saved_bytes

MODELS = ("cin", "ffhq", "kl")
SWITCHES = {
    "defaults": ExecutionConfig(),
    "all off": ExecutionConfig(single_token=False, time_table=False, keep_less=False),
    "attention by products": ExecutionConfig(attention="bmm"),
    "cross-attention in full": ExecutionConfig(single_token=False),
    "time embedding in full": ExecutionConfig(time_table=False),
    "activations kept": ExecutionConfig(keep_less=False),
    "fused norm": ExecutionConfig(fused_norm=True),
    "channels last": ExecutionConfig(channels_last=True),
    "as on a GPU": ExecutionConfig(fused_norm=True, channels_last=True, attention="bmm"),
}


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("name", MODELS)
def test_every_switch_leaves_outputs_and_gradients_as_they_are(
    reference_prior, own_prior, responses, relative_error, name, switches
):
    frozen = own_prior(name).set_execution(SWITCHES[switches])
    expected = responses(reference_prior(name))
    for key, got in responses(frozen).items():
        assert relative_error(got, expected[key]) <= 1e-12, key


def test_sides_that_do_not_halve_evenly_are_taken(reference_prior, own_prior, responses, relative_error):
    frozen = own_prior("cin").set_execution(ExecutionConfig())
    expected = responses(reference_prior("cin"), size=(7, 9))
    for key, got in responses(frozen, size=(7, 9)).items():
        assert relative_error(got, expected[key]) <= 1e-12, key


def test_compiled_blocks_give_the_same(tiny_prior, relative_error, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend="aot_eager"))
    middle = tiny_prior.denoiser.mid_block
    x = torch.randn(2, 64, 4, 4, requires_grad=True)
    shift, context, cotangent = torch.randn(64), torch.randn(2, 64), torch.randn(2, 64, 4, 4)
    results = []
    execution = ExecutionConfig(fused_norm=True, channels_last=True)
    for blocks in (Blocks(execution), Blocks(replace(execution, compile=True))):
        y = blocks.resnet(middle.resnets[0], x, shift)
        y = blocks.transformer(middle.attentions[0], y, (context,))
        results.append((y, *torch.autograd.grad(y, x, cotangent)))
    for got, want in zip(*results[::-1], strict=True):
        assert relative_error(got, want) <= 1e-5


@pytest.mark.parametrize(("precision", "dtype", "tolerance"), [("f64", torch.float64, 1e-10), ("f32", None, 2e-5)])
@pytest.mark.parametrize("name", MODELS)
def test_noise_prediction_and_its_vjps_are_the_official_ones(
    reference, own_prior, relative_error, name, precision, dtype, tolerance
):
    dtype = dtype or torch.float32
    tensors = load_file(reference / f"{name}_tiny.safetensors")
    prior = own_prior(name, dtype).set_execution(ExecutionConfig())
    latents = tensors["in/unet_z"].to(dtype).requires_grad_()
    conditioning = None if name == "ffhq" else tensors["in/c"].to(dtype).requires_grad_()
    rows = [
        prior.predict_noise(latents[k : k + 1], int(t), None if conditioning is None else conditioning[k : k + 1])
        for k, t in enumerate(tensors["in/unet_t"])
    ]
    torch.cat(rows).backward(tensors["in/unet_cot"].to(dtype))
    assert relative_error(torch.cat(rows), tensors[f"{precision}/unet/eps"]) <= tolerance
    assert relative_error(latents.grad, tensors[f"{precision}/unet/vjp_z"]) <= tolerance
    if conditioning is not None:
        assert relative_error(conditioning.grad, tensors[f"{precision}/unet/vjp_c"]) <= tolerance


def test_one_token_is_projected_once_for_all_blocks_and_all_steps(own_prior, relative_error):
    prior = own_prior("cin").set_execution(ExecutionConfig())
    conditioning = prior.embed(torch.tensor([3, 7]))
    projected = prior.project(conditioning)
    frozen = prior.frozen.denoiser
    assert projected.shape == (2, sum(attention.to_out[0].out_features for attention in frozen.cross))
    assert prior.project(projected) is projected
    latents = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    got, want = (prior.predict_noise(latents, 5, c) for c in (projected, conditioning))
    assert torch.equal(got, want)
    for attention in frozen.cross:
        attention.to_q = attention.to_k = None  # not read
    assert torch.equal(prior.predict_noise(latents, 5, conditioning), want)
    assert relative_error(got, own_prior("cin").predict_noise(latents, 5, conditioning)) <= 1e-12


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
def test_a_row_of_the_table_is_the_row_computed_alone(own_prior, relative_error, timestep):
    rows = [
        own_prior("cin").set_execution(ExecutionConfig(time_table=is_on)).frozen.denoiser.row(timestep)
        for is_on in (True, False)
    ]
    assert relative_error(*rows) <= 1e-14


def test_fewer_bytes_are_kept_for_the_backward_pass():
    """Bytes of one row of random:builtin in float32, as counted; the denoiser keeps little more than half."""
    prior = ld3m.load_prior("random:builtin")
    latents = torch.zeros(1, 3, 8, 8, requires_grad=True)
    conditioning = prior.null_conditioning(1).requires_grad_()

    def count(execution: ExecutionConfig | None) -> tuple[int, int]:
        prior.set_execution(execution)
        projected = prior.project(conditioning).detach().requires_grad_()
        return (
            saved_bytes(prior.denoiser, lambda: prior.predict_noise(latents, 500, projected)),
            saved_bytes(prior.first_stage, lambda: prior.decode(latents)),
        )

    stock, frozen, fused = count(None), count(ExecutionConfig()), count(ExecutionConfig(fused_norm=True))
    assert frozen[0] < 0.63 * stock[0] and frozen[1] < 0.63 * stock[1]
    assert fused[0] < 0.54 * stock[0] and fused[1] < 0.33 * stock[1]


def test_moving_and_casting_a_frozen_prior_is_loading_it_so(own_prior, responses, relative_error):
    moved = own_prior("cin", torch.float32).set_execution(ExecutionConfig(channels_last=True)).to(dtype=torch.float64)
    assert moved.frozen.denoiser.table.dtype == torch.float64
    expected = responses(own_prior("cin"))
    for key, got in responses(moved).items():
        assert got.dtype == torch.float64 and relative_error(got, expected[key]) <= 1e-12, key


def test_a_frozen_prior_is_saved_and_copied_like_any_other(tmp_path, responses):
    prior = ld3m.load_prior("random:tiny").set_execution(ExecutionConfig(channels_last=True))
    save_prior(prior, tmp_path, dtype=torch.float32, betas=(0.0015, 0.0195))
    expected = responses(prior)
    for again in (ld3m.load_prior(tmp_path).set_execution(ExecutionConfig(channels_last=True)), copy.deepcopy(prior)):
        for key, got in responses(again).items():
            assert torch.equal(got, expected[key]), key


def test_an_execution_is_undone_without_a_trace(reference_prior, own_prior, responses):
    prior = own_prior("cin").set_execution(ExecutionConfig(channels_last=True)).set_execution(None)
    assert prior.frozen.denoiser is None and prior.frozen.decoder is None
    expected = responses(reference_prior("cin"))
    assert all(torch.equal(got, expected[key]) for key, got in responses(prior).items())


def test_a_frozen_prior_gives_no_gradient_of_a_gradient(own_prior):
    prior = own_prior("cin").set_execution(ExecutionConfig())
    latents = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    out = prior.predict_noise(latents, 5, prior.null_conditioning(1))
    [grad] = torch.autograd.grad(out.square().sum(), latents, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_embedded_prior_has_frozen_counterparts_and_the_same_chain(relative_error):
    plain, frozen = ld3m.load_prior("builtin"), ld3m.load_prior("builtin").set_execution(ExecutionConfig())
    assert frozen.frozen.denoiser is not None and frozen.frozen.decoder is not None
    draw = torch.Generator().manual_seed(0)
    latents, noise, cotangent = torch.randn(3, 2, 3, 8, 8, generator=draw)
    results = []
    for prior in (plain, frozen):
        inputs = latents.clone().requires_grad_(), prior.embed(torch.tensor([0, 5])).clone().requires_grad_()
        z0 = ld3m.reverse_chain(prior, *inputs, steps=3, noise=noise, retain=0.5)
        results.append((z0, *torch.autograd.grad(z0, inputs, cotangent), prior.decode(z0.detach())))
    for got, want in zip(*results[::-1], strict=True):
        assert relative_error(got, want) <= 2e-5


def test_a_network_without_a_frozen_counterpart_runs_as_it_is(responses):
    prior, other = (ld3m.load_prior("random:tiny") for _ in range(2))
    for module in (prior, other):
        module.denoiser.down_blocks[0].resnets[0].output_scale_factor = 2.0
    assert obstacle(prior.denoiser) == "down_blocks.0.resnets.0: ResnetBlock2D with other settings than the known ones"
    prior.set_execution(ExecutionConfig())
    assert prior.frozen.denoiser is None and prior.frozen.decoder is not None
    assert torch.equal(responses(prior)["noise"], responses(other)["noise"])
    assert obstacle(torch.nn.Sequential(torch.nn.Tanh())) == "the network itself: Sequential"


def test_switches_that_cannot_be_had_are_refused(tiny_prior):
    with pytest.raises(ConfigError, match=r"attention is one of auto, sdpa, xformers, bmm; got 'flash'"):
        ExecutionConfig(attention="flash")
    with pytest.raises(ConfigError, match="cuda_graphs needs a prior on cuda, it is on cpu"):
        ExecutionConfig(cuda_graphs=True).on(tiny_prior.device)
    with pytest.raises(BackendError, match=r"'xformers' cannot be imported .* pip install 'ld3m\[xformers\]'"):
        ld3m.load_prior("random:tiny").set_execution(ExecutionConfig(attention="xformers"))
    with pytest.raises(ConfigError, match=r"attention needs a U-Net with a frozen counterpart \(.*\); leave it out"):
        ld3m.load_prior("random:dit-tiny").set_execution(ExecutionConfig(attention="bmm"))


def test_defaults_by_device():
    exact = ExecutionConfig()
    on_cpu = replace(exact, fused_norm=True, channels_last=True, cuda_graphs=False)
    assert exact.on(torch.device("cpu")) == on_cpu
    assert exact.on(torch.device("cuda")) == replace(exact, fused_norm=True, channels_last=True, cuda_graphs=True)
    assert replace(exact, channels_last=False).on(torch.device("cuda")).channels_last is False


def test_the_former_names_stay():
    execution = ld3m.priors.ExecutionConfig(attention="bmm")
    assert isinstance(execution, ExecutionConfig)
    assert ld3m.load_prior("random:tiny").set_execution(execution).frozen.execution is execution
