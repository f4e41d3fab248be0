"""StyleGAN-XL against what the official modules compute with the same weights.

Relative errors are of the largest magnitude. Tolerances in float32 are for one evaluation on a CPU.
"""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from ld3m.errors import CheckpointError, ConfigError, InputError
from ld3m.priors import load_stylegan
from ld3m.priors.stylegan.filters import down_matrices, filtered_leaky_relu, low_pass, up_matrix
from ld3m.priors.stylegan.generator import modulated_convolution
from ld3m.priors.stylegan.layers import SHAPES, GeneratorShape, design
from ld3m.runtime.footprint import saved_bytes

TINY = GeneratorShape(32, 16, 10, 256, 16, z_dim=16, w_dim=64, num_classes=10, class_dim=20)
MODELS = {
    "imagenet128": "stylegan-xl-128", "imagenet256": "stylegan-xl-256", "random_unconditional_128": "stylegan-128",
    "random_unconditional_256": "stylegan-256",
}  # fmt: skip
PRECISIONS = {"f64": (torch.float64, 1e-12), "f32": (torch.float32, 1e-5)}
FILTERED = ("u2d2", "u2d2_neg", "u2d4", "u1d1_nofilt", "u2d2_clamp", "u2d2_radial")


@pytest.fixture(params=PRECISIONS)
def case(request, stylegan, stylegan_tensors):
    """A precision: its generator, the inputs in it, its tolerance."""
    dtype, tolerance = PRECISIONS[request.param]
    return stylegan(dtype), lambda key: stylegan_tensors[key].to(dtype), tolerance


def table(reference, model):
    name = "stylegan_tiny.json" if model == "tiny" else "stylegan_xl_layers.json"
    content = json.loads((reference / name).read_text())
    return content["layers"] if model == "tiny" else content["models"][model]["layers"]


@pytest.mark.parametrize("model", ["tiny", *MODELS])
def test_layers_are_the_official_ones(model, reference):
    designs = design(TINY if model == "tiny" else SHAPES[MODELS[model]])
    for layer, official in zip(designs, table(reference, model), strict=True):
        spec, found = layer.spec, {key: official[key] for key in ("in_channels", "out_channels", "in_size", "out_size")}
        assert {key: getattr(spec, key) for key in found} == found
        assert (spec.name, spec.kernel, spec.is_image) == tuple(
            official[k] for k in ("name", "conv_kernel", "is_torgb")
        )
        assert (spec.up, spec.up_taps) == (official["up_factor"], official["up_taps"])
        assert (spec.down, spec.down_taps) == (official["down_factor"], official["down_taps"])
        assert [*spec.padding] * 2 == official["padding_x0x1y0y1"]
        for side, signal in (("in", layer.source), ("out", layer.target)):
            assert signal.rate == official[f"{side}_sampling_rate"]
            assert signal.cutoff == pytest.approx(official[f"{side}_cutoff"], rel=1e-12)
            assert signal.half_width == pytest.approx(official[f"{side}_half_width"], rel=1e-12)


def test_the_filters_of_a_generator_are_the_official_ones(stylegan_tensors):
    for layer in design(TINY)[:-1]:
        for way in ("up_filter", "down_filter"):
            official = stylegan_tensors[f"weights/synthesis.{layer.spec.name}.{way}"]
            torch.testing.assert_close(getattr(layer, way), official, atol=2e-8, rtol=0)


def test_filters_of_any_band_are_the_official_ones(stylegan_tensors):
    names = [key for key in stylegan_tensors if key.startswith("filters/")]
    assert len(names) == 3
    for name in names:
        kind, taps, *band = re.match(r"filters/([a-z]+)(\d+)_fc([\d.]+)_width([\d.]+)_fs([\d.]+)$", name).groups()
        designed = low_pass(int(taps), *map(float, band), is_radial=kind == "radial")
        torch.testing.assert_close(designed, stylegan_tensors[name], atol=2e-8, rtol=0)


@pytest.mark.parametrize(
    ("width", "beta"),  # of 12 taps at rate 32: attenuation 7.95 + 4.935 · width decibel
    [(2.0, 0.0), (4.0, 0.5842 * 6.6914**0.4 + 0.07886 * 6.6914), (10.0, 0.1102 * (57.3034 - 8.7))],
)
def test_the_window_follows_the_attenuation(width, beta):
    m = torch.arange(12, dtype=torch.float64) - 5.5
    window = torch.special.i0(beta * (1 - (m / 5.5) ** 2).sqrt())
    expected = torch.sinc(2 * 5 * m / 32) * window
    torch.testing.assert_close(low_pass(12, 5, width, 32).double(), expected / expected.sum(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "gain"), [("demod_gain0.8", 0.8), ("nodemod", 1.0)])
def test_modulated_convolution_is_the_official_one(name, gain, stylegan_tensors, relative_error):
    x, styles, weight = (stylegan_tensors[f"unit_modconv/{key}"] for key in ("x", "styles", "weight"))
    if name != "nodemod":
        weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        arguments = [t.to(dtype) for t in (x, weight, styles, torch.zeros(5), torch.tensor(gain, dtype=torch.float64))]
        got = modulated_convolution(*arguments, name != "nodemod")
        assert relative_error(got, stylegan_tensors[f"unit_modconv/{name}.f64"]) <= tolerance


@pytest.mark.parametrize("demodulated", [False, True])
def test_modulated_convolution_has_the_right_gradient(demodulated):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 4, 4, generator=draw), torch.randn(2, 3, 3, 3, generator=draw)
    inputs = [t.double().requires_grad_() for t in (x, torch.randn(2, 3, generator=draw))]
    bias, gain = torch.randn(2, generator=draw).double(), torch.tensor(0.7).double()

    def run(x, styles):
        return modulated_convolution(x, weight.double(), styles, bias, gain, demodulated)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("name", FILTERED)
def test_filtered_leaky_relu_is_the_official_one(name, reference, stylegan_tensors, relative_error):
    meta = json.loads((reference / "stylegan_tiny.json").read_text())["unit_meta"][f"unit_flrelu/{name}"]
    up_filter, down_filter = (stylegan_tensors[meta[key]] if meta[key] else torch.ones(1) for key in ("fu", "fd"))
    left, right, top, bottom = meta["padding_x0x1y0y1"]
    x = stylegan_tensors["unit_flrelu/x"]
    matrices = [up_matrix(up_filter, 21, meta["up"], padding) for padding in ((top, bottom), (left, right))]
    matrices += down_matrices(down_filter, (len(matrices[0]), len(matrices[1])), meta["down"])
    official = {key: stylegan_tensors[f"unit_flrelu/{name}.{key}"] for key in ("y", "cot", "vjp_x")}
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        leaf = (x * meta["x_scale"]).to(dtype).requires_grad_()
        biased = leaf + stylegan_tensors["unit_flrelu/bias"].to(dtype)[:, None, None]
        y = filtered_leaky_relu(biased, *(matrix.to(dtype) for matrix in matrices))
        assert relative_error(y, official["y"]) <= tolerance
        (grad,) = torch.autograd.grad(y, leaf, official["cot"].to(dtype))
        assert relative_error(grad, official["vjp_x"]) <= tolerance


def test_filtered_leaky_relu_keeps_one_byte_a_value():
    up = up_matrix(torch.ones(12) / 12, 20, 2, (8, 7))
    (down, _), x = down_matrices(torch.ones(12) / 12, (44, 44), 2), torch.ones(1, 3, 20, 20, requires_grad=True)
    up, down = up.float(), down.float()
    matrices = up.nbytes + down.nbytes
    assert saved_bytes(torch.nn.Identity(), lambda: filtered_leaky_relu(x, up, up, down, down)) == 3 * 44**2 + matrices


def test_each_layer_computes_what_the_official_one_does(case, stylegan_tensors, relative_error):
    generator, given, tolerance = case
    codes = given("in/ws")
    x, seen = generator.synthesis.input(codes[:, 0]), set()
    outputs = {"input": x}
    for layer, code in zip(generator.layers, codes[:, 1:].unbind(1), strict=True):
        x = outputs[layer.spec.name.partition("_")[0]] = layer(x, code)
    for name, output in outputs.items():
        key = f"out/layer.{name}.sample0.f64"
        if key in stylegan_tensors:
            seen.add(name)
            assert relative_error(output[:1], stylegan_tensors[key]) <= tolerance, name
    assert seen >= {"input", "L9", "L12", "L14", "L16"}


@pytest.mark.parametrize("layer", [0, 5, 15])
def test_images_and_their_vjp_are_the_official_ones(layer, case, stylegan_tensors, relative_error):
    generator, given, tolerance = case
    codes = given("in/ws").requires_grad_()
    images = generator.synthesize(generator.features(codes, layer), codes[:, 1 + layer :], layer)
    assert relative_error(images, stylegan_tensors["out/image.f64"]) <= min(tolerance, 5e-6)
    (grad,) = torch.autograd.grad(images, codes, given("in/cotangent"))
    assert relative_error(grad, stylegan_tensors["out/image_vjp_ws.f64"]) <= tolerance


@pytest.mark.parametrize("layer", [5, 12])
def test_images_of_features_and_their_vjps_are_the_official_ones(layer, case, stylegan_tensors, relative_error):
    generator, given, tolerance = case
    features, codes = given(f"from_f{layer}.f").requires_grad_(), given("in/ws")[:, 1 + layer :].requires_grad_()
    images = generator.synthesize(features, codes, layer)
    official = {key: stylegan_tensors[f"from_f{layer}.{key}.f64"] for key in ("image", "vjp_f", "vjp_ws")}
    assert relative_error(images, official["image"]) <= tolerance
    of_features, of_codes = torch.autograd.grad(images, (features, codes), given("in/cotangent"))
    assert relative_error(of_features, official["vjp_f"]) <= tolerance
    assert relative_error(of_codes, official["vjp_ws"][:, 1 + layer :]) <= tolerance


def test_the_published_iteration_is_ours(case, published_glad, stylegan_tensors, relative_error):
    """The official gradients are of GLaD's two passes, one sample at a time."""
    generator, given, tolerance = case
    features, codes = given("from_f12.f"), given("in/ws")[:, 13:]
    official = [stylegan_tensors[f"glad_n12/{key}.f64"] for key in ("grad_f", "grad_ws", "image_normalised")]
    official[1] = official[1][:, 13:]
    shown = []

    def image_gradient(images):
        shown.append(images)
        return given("in/cotangent")

    published = published_glad.iteration(generator, features, codes, 12, image_gradient, split=1)
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1).to(features)
        for values in (published_glad.MEAN, published_glad.STD)
    )
    leaves = [tensor.clone().requires_grad_() for tensor in (features, codes)]
    made = [generator.synthesize(*(tensor[k : k + 1] for tensor in leaves), 12) for k in range(2)]
    image = ((torch.cat(made) + 1) / 2 - mean) / std
    ours = (*torch.autograd.grad(image, leaves, given("in/cotangent")), image)
    for got, again, want in zip((*published, *shown), ours, official, strict=True):
        assert relative_error(got, want) <= tolerance
        assert relative_error(again, want) <= tolerance


def test_codes_are_the_official_ones(case, stylegan_tensors, relative_error):
    generator, given, tolerance = case
    z, ids = given("in/z"), stylegan_tensors["in/class_index"]
    assert relative_error(generator.map(z, ids), stylegan_tensors["mapping/ws.f64"]) <= tolerance
    truncated = generator.map(z, ids, psi=0.7, cutoff=4)
    assert relative_error(truncated, stylegan_tensors["mapping/ws_trunc_psi0.7_cutoff4.f64"]) <= tolerance


def test_a_turned_and_shifted_input_is_the_official_one(case, stylegan_tensors, relative_error):
    generator, given, tolerance = case
    layer = copy.deepcopy(generator.synthesis.input)
    layer.transform.copy_(given("input_transformed/transform"))
    got = layer(given("in/ws")[:1, 0])
    assert relative_error(got, stylegan_tensors["input_transformed/out.f64"]) <= tolerance


def test_the_null_class_is_the_mean_of_all(stylegan):
    """It stands for classes that the generator does not know."""
    generator, z = stylegan(torch.float64), torch.randn(1, 16).double()
    assert generator.null_class == 10
    by_hand = copy.deepcopy(generator)
    by_hand.mapping.embed.weight.copy_(generator.mapping.embed.weight.mean(0).expand(10, -1))
    torch.testing.assert_close(generator.map(z, torch.tensor([10])), by_hand.map(z, torch.tensor([4])))


def test_a_file_in_another_precision_is_read_as_it_is(stylegan_file, stylegan_tensors, tmp_path):
    state = {key: tensor.half() for key, tensor in load_file(stylegan_file).items()}
    save_file(state, tmp_path / "half.safetensors")
    generator = load_stylegan(tmp_path / "half.safetensors", dtype=torch.bfloat16)
    assert {p.dtype for p in (*generator.parameters(), *generator.buffers())} == {torch.bfloat16}
    assert not any(p.requires_grad for p in generator.parameters())
    features, codes = stylegan_tensors["from_f12.f"], stylegan_tensors["in/ws"][:, 13:]
    images = generator.synthesize(features, codes, 12)
    assert images.dtype == torch.float32
    exact = stylegan_tensors["from_f12.image.f64"]
    assert 1e-4 < (images - exact).square().mean().sqrt() / exact.std() < 0.03


def test_a_two_dimensional_down_filter_is_read_as_such(
    stylegan_file, stylegan, stylegan_tensors, tmp_path, relative_error
):
    state = load_file(stylegan_file)
    taps = state["synthesis.L4_36_16.down_filter"]
    state["synthesis.L4_36_16.down_filter"] = torch.outer(taps, taps)
    save_file(state, tmp_path / "radial.safetensors")
    generator = load_stylegan(tmp_path / "radial.safetensors", dtype=torch.float64)
    assert generator.layers[4].down_filter.shape == (12, 12)
    codes = stylegan_tensors["in/ws"].double()
    assert relative_error(generator.features(codes, 5), stylegan(torch.float64).features(codes, 5)) < 1e-7


@pytest.mark.parametrize(("model", "name"), MODELS.items())
def test_random_generators_have_as_many_weights_as_the_official_ones(model, name, reference):
    from ld3m.priors.stylegan.generator import Mapping, StyleGAN, Synthesis

    shape = SHAPES[name]
    with torch.device("meta"):
        mapping = Mapping(shape.z_dim, shape.w_dim, shape.num_classes, shape.class_dim)
        synthesis = Synthesis([layer.spec for layer in design(shape)], shape.w_dim)
    count = sum(p.numel() for p in StyleGAN(name, mapping, synthesis).parameters())
    unused = 0 if shape.num_classes else 1000 * 320  # a class table that the official mapping without classes carries
    content = json.loads((reference / "stylegan_xl_layers.json").read_text())["models"][model]
    assert count == content["params_total"] - unused


def test_the_random_generator_is_that_of_everybody_and_makes_different_images():
    first, again = load_stylegan("random:stylegan-32"), load_stylegan("random:stylegan-32")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    codes = first.map(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    images = first.synthesize(first.features(codes, 4), codes[:, 5:], 4)
    assert images.shape == (3, 3, 32, 32)
    assert 0.05 < images.std() < 1
    assert (images[1:] - images[:1]).abs().mean() > 0.01
    assert images.flatten(2).std(2).min() > 0.005
    assert (first.native_resolution, first.num_classes, first.z_dim, first.w_dim, first.num_codes) == (
        32,
        None,
        64,
        64,
        9,
    )
    radii = first.synthesis.input.freqs.norm(dim=1)
    assert 0 < radii.min() < 0.5 < 1.8 < radii.max() <= 2


def test_a_loaded_generator_is_moved_and_cast():
    generator = load_stylegan("random:stylegan-32")
    assert load_stylegan(generator, dtype=torch.float64) is generator
    assert generator.dtype == generator.layers[0].up.dtype == torch.float64


def test_faults_of_a_file_are_named_together(stylegan_file, tmp_path):
    state = load_file(stylegan_file)
    del state["synthesis.L5_36_16.weight"], state["mapping.fc1.bias"], state["synthesis.L4_36_16.up_filter"]
    state["synthesis.L12_52_11.bias"] = torch.zeros(12)
    state["epochs"] = torch.zeros(1)  # no part of a generator
    save_file(state, tmp_path / "g.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_stylegan(tmp_path / "g.safetensors")
    for part in (
        "g.safetensors does not fit StyleGAN", "synthesis.L5_36_16.weight is missing", "mapping.fc1.bias is missing",
        "synthesis.L4_36_16.up_filter is missing", "synthesis.L12_52_11.bias is (12,), expected (11,)",
    ):  # fmt: skip
        assert part in str(caught.value)
    assert "epochs" not in str(caught.value)


def test_what_is_no_generator_is_refused(stylegan_file, tmp_path):
    state = load_file(stylegan_file)
    save_file({k: v for k, v in state.items() if "L3_" not in k and "L5_" not in k}, tmp_path / "gap.safetensors")
    with pytest.raises(
        CheckpointError, match=r"gap.* is not the whole state of a StyleGAN-XL .* got L0_36_16, L1_36_16"
    ):
        load_stylegan(tmp_path / "gap.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other.* number 0, 1, 2 … up to the image; got none"):
        load_stylegan(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"torn.* is not a whole safetensors file"):
        load_stylegan(tmp_path / "torn.safetensors")
    with pytest.raises(CheckpointError, match=r"nosuch.* is not there"):
        load_stylegan(tmp_path / "nosuch.safetensors")
    with pytest.raises(ConfigError, match=r"one of random:stylegan-xl-128, .* or a .safetensors file .* got 'x.pkl'"):
        load_stylegan("x.pkl")


def test_classes_are_asked_for_where_there_are_some(stylegan):
    z = torch.zeros(1, 16)
    with pytest.raises(InputError, match=r"tiny.safetensors takes class_ids from 0 to 10, got None"):
        stylegan(torch.float64).map(z)
    with pytest.raises(InputError, match=r"random:stylegan-32 takes no class_ids, got tensor"):
        load_stylegan("random:stylegan-32").map(torch.zeros(1, 64), torch.tensor([0]))
