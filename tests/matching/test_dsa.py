"""The augmentation against the official numbers and its own laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ld3m.errors import InputError
from ld3m.matching import dsa

PARAMETERS = {  # names in the reference file, in the order of the primitive's arguments
    "brightness": ("u",),
    "saturation": ("u",),
    "contrast": ("u",),
    "flip": ("u",),
    "crop": ("shift_dim2", "shift_dim3"),
    "cutout": ("off_dim2", "off_dim3"),
    "scale": ("sx", "sy"),
    "rotate": ("theta_rad",),
}
DTYPES = {"f64": torch.float64, "f32": torch.float32}


@pytest.fixture(scope="module")
def case(load_case):
    return load_case("dsa")


def draw_of(operation: str, num_images: int, resolution: int, *, seed: int = 0, shared: bool = False) -> dsa.Draw:
    """The first draw of the operation from seed, seed + 1, ..."""
    while True:
        draw = dsa.draw(torch.Generator().manual_seed(seed), num_images, resolution, shared=shared)
        if draw.operation == operation:
            return draw
        seed += 1


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("size", ["h16", "h14"])
@pytest.mark.parametrize("primitive", PARAMETERS)
def test_reference(primitive, size, kind, case, relative_error):
    key, dtype = f"{size}.{primitive}", DTYPES[kind]
    images = case[f"{size}.x"].to(dtype).requires_grad_()
    got = getattr(dsa, primitive)(images, *(case[f"{key}.{name}"] for name in PARAMETERS[primitive]))
    (vjp,) = torch.autograd.grad(got, images, case[f"{size}.cotangent"].to(dtype))
    for name, value in (("y", got), ("vjp", vjp)):
        want = case.get(f"{key}.{name}.{kind}", case[f"{key}.{name}.f64"])
        assert relative_error(value, want) < {"f64": 1e-10, "f32": 1e-5}[kind], name


@pytest.mark.parametrize("size", ["h16", "h14"])
def test_reference_laws_of_the_parameters(size, case):
    """Uniform draws become factors and angles as in the official code."""
    for axis, name in enumerate(("sx", "sy")):
        torch.testing.assert_close(
            dsa.zoom(case[f"{size}.scale.raw_draw{axis}"].double()), case[f"{size}.scale.{name}"]
        )
    got = dsa.angle(case[f"{size}.rotate.raw_draw0"].double())
    torch.testing.assert_close(got, case[f"{size}.rotate.theta_rad"])


@pytest.mark.parametrize("operation", dsa.OPERATIONS)
def test_reference_siamese(operation, case, relative_error):
    """One draw for real and synthetic images; the official code draws the operation first, then its parameters."""
    number, *draws = case[f"siamese.{operation}.first_draws"]
    assert dsa.OPERATIONS[int(number)] == operation
    law = {"scale": dsa.zoom, "rotate": dsa.angle}.get(operation, lambda u: u)
    if operation in ("crop", "cutout"):
        draws = [d.long() for d in draws]
    draw = dsa.Draw(operation, tuple(law(d).view(1) for d in draws))
    for side in ("real", "syn"):
        got = dsa.apply(case[f"siamese.x_{side}"], draw)
        assert relative_error(got, case[f"siamese.{operation}.y_{side}"]) < 1e-5, side


def test_reference_chain_of_all(case, relative_error):
    """The official mode M: every operation in turn, parameters for each image."""
    p = {key.removeprefix("modeM.draw."): value for key, value in case.items() if key.startswith("modeM.draw.")}
    images = dsa.color(case["siamese.x_real"], p["brightness.u"], p["saturation.u"], p["contrast.u"])
    images = dsa.crop(images, p["crop.shift_dim2"], p["crop.shift_dim3"])
    images = dsa.cutout(images, p["cutout.off_dim2"], p["cutout.off_dim3"])
    images = dsa.flip(images, p["flip.u"])
    images = dsa.scale(images, dsa.zoom(p["scale.u_sx"]), dsa.zoom(p["scale.u_sy"]))
    images = dsa.rotate(images, dsa.angle(p["rotate.u"]))
    assert relative_error(images, case["modeM.y"]) < 1e-5


def test_crop_shifts_and_fills_with_zeros():
    images = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4)
    got = dsa.crop(images, torch.tensor([1, -1]), torch.tensor([0, 2]))
    assert torch.equal(got[0, :, :3], images[0, :, 1:])
    assert torch.equal(got[1, :, 1:, :2], images[1, :, :3, 2:])
    assert (
        float(got[0, :, 3].abs().max()) == float(got[1, :, 0].abs().max()) == float(got[1, :, :, 2:].abs().max()) == 0
    )


@pytest.mark.parametrize(
    ("side", "offset", "zeros"), [(8, 0, [0, 1]), (8, 4, [2, 3, 4, 5]), (8, 8, [6, 7]), (5, 0, [0, 1]), (5, 4, [3, 4])]
)
def test_cutout_square(side, offset, zeros):
    got = dsa.cutout(torch.ones(1, 3, side, side), torch.tensor([offset]), torch.tensor([side // 2]))
    assert (got[0, 0, :, side // 2] == 0).nonzero().flatten().tolist() == zeros


def test_scale_and_rotation_leave_identity_alone():
    images, one = pictures(2, 3, 8, 8), torch.ones(1)
    torch.testing.assert_close(dsa.scale(images, one, one), images)
    torch.testing.assert_close(dsa.rotate(images, torch.zeros(1)), images)


def test_scale_by_two_shrinks_the_width_alone():
    images = pictures(1, 3, 5, 5)
    got = dsa.scale(images, torch.tensor([2.0]), torch.tensor([1.0]))
    torch.testing.assert_close(got[..., 1:4], images[..., [0, 2, 4]])
    assert float(got[..., [0, 4]].abs().max()) == 0


def test_rotation_by_a_quarter_turn():
    images = pictures(1, 3, 6, 6)
    got = dsa.rotate(images, torch.tensor([torch.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(got, images.rot90(1, (2, 3)))


@given(seed=st.integers(0, 10_000), resolution=st.integers(2, 40), num_images=st.integers(1, 5), shared=st.booleans())
def test_draws_are_inside_their_ranges(seed, resolution, num_images, shared):
    draw = dsa.draw(torch.Generator().manual_seed(seed), num_images, resolution, shared=shared)
    reach, hole = int(0.125 * resolution + 0.5), int(0.5 * resolution + 0.5)
    low, high = {
        "crop": (-reach, reach),
        "cutout": (0, resolution if hole % 2 == 0 else resolution - 1),
        "scale": (1 / 1.2 - 1e-6, 1.2),
        "rotate": (-torch.pi / 12 - 1e-6, torch.pi / 12),
    }.get(draw.operation, (0, 1))
    assert len(draw.parameters) == {"color": 3, "flip": 1, "rotate": 1}.get(draw.operation, 2)
    for parameter in draw.parameters:
        assert parameter.shape == (1 if shared else num_images,)
        assert low <= float(parameter.min()) <= float(parameter.max()) <= high


def test_draws_reach_the_ends_of_their_ranges():
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, list[torch.Tensor]] = {}
    for _ in range(200):
        draw = dsa.draw(generator, 200, 16)
        seen.setdefault(draw.operation, []).append(torch.stack(draw.parameters).double())
    assert seen.keys() == set(dsa.OPERATIONS)
    assert all(15 < len(parameters) < 55 for parameters in seen.values())  # 200 / 6 = 33 +- 5
    values = {operation: torch.cat(parameters, 1) for operation, parameters in seen.items()}
    assert sorted(set(values["crop"].flatten().tolist())) == list(range(-2, 3))
    assert sorted(set(values["cutout"].flatten().tolist())) == list(range(17))
    for operation, low, high in (("scale", 1 / 1.2, 1.2), ("rotate", -torch.pi / 12, torch.pi / 12), ("flip", 0, 1)):
        assert abs(float(values[operation].min()) - low) < 0.01 * (high - low)
        assert abs(float(values[operation].max()) - high) < 0.01 * (high - low)
        assert abs(float(values[operation].mean()) - (low + high) / 2) < 0.03 * (high - low)


@pytest.mark.parametrize("operation", dsa.OPERATIONS)
def test_apply_is_linear(operation):
    """Every operation is linear in the images, but for brightness, which adds a constant."""
    draw = draw_of(operation, 3, 12)
    x, y, zero = pictures(3, 3, 12, 12), pictures(3, 3, 12, 12, seed=1), torch.zeros(3, 3, 12, 12, dtype=torch.float64)
    constant = dsa.apply(zero, draw)
    got = dsa.apply(2 * x - 3 * y, draw) - constant
    torch.testing.assert_close(got, 2 * (dsa.apply(x, draw) - constant) - 3 * (dsa.apply(y, draw) - constant))
    assert (float(constant.abs().max()) > 0) == (operation == "color")


@settings(max_examples=20)
@given(seed=st.integers(0, 100), order=st.permutations(range(4)))
def test_each_image_has_its_own_parameters(seed, order):
    draw, images = dsa.draw(torch.Generator().manual_seed(seed), 4, 10), pictures(4, 3, 10, 10)
    permuted = dsa.Draw(draw.operation, tuple(p[list(order)] for p in draw.parameters))
    torch.testing.assert_close(dsa.apply(images[list(order)], permuted), dsa.apply(images, draw)[list(order)])


@pytest.mark.parametrize("operation", dsa.OPERATIONS)
def test_shared_draw_fits_any_batch_and_shape(operation):
    draw, images = draw_of(operation, 7, 10, shared=True), pictures(2, 3, 3, 10, 10)
    whole = dsa.apply(images, draw)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(whole[row, column], dsa.apply(images[row, column][None], draw)[0])


@pytest.mark.parametrize("operation", dsa.OPERATIONS)
def test_under_function_transforms(operation):
    images, cotangent = pictures(4, 3, 10, 10), pictures(4, 3, 10, 10, seed=1)
    draw, shared = draw_of(operation, 4, 10), draw_of(operation, 4, 10, shared=True)
    leaf = images.clone().requires_grad_()
    (want,) = torch.autograd.grad(dsa.apply(leaf, draw), leaf, cotangent)
    got = torch.func.grad(lambda x: (dsa.apply(x, draw) * cotangent).sum())(images)
    torch.testing.assert_close(got, want)
    mapped = torch.func.vmap(lambda x: dsa.apply(x[None], shared)[0])(images)
    torch.testing.assert_close(mapped, dsa.apply(images, shared))


@pytest.mark.parametrize("operation", dsa.OPERATIONS)
def test_gradcheck(operation):
    draw = draw_of(operation, 2, 6)
    assert torch.autograd.gradcheck(lambda x: dsa.apply(x, draw), pictures(2, 3, 6, 6).requires_grad_())


@pytest.mark.parametrize("shared", [False, True])
def test_augment_is_draw_and_apply(shared):
    images = pictures(2, 3, 3, 16, 16)
    for seed in range(12):
        got = dsa.augment(images, torch.Generator().manual_seed(seed), shared=shared)
        draw = dsa.draw(torch.Generator().manual_seed(seed), 6, 16, shared=shared)
        assert torch.equal(got, dsa.apply(images, draw))


def test_errors():
    with pytest.raises(InputError, match=r"square images \(\.\.\., 3, H, H\), got \(2, 3, 8, 6\)"):
        dsa.augment(torch.zeros(2, 3, 8, 6), torch.Generator())
    with pytest.raises(InputError, match=r"got \(3, 8, 8\)"):
        dsa.apply(torch.zeros(3, 8, 8), draw_of("flip", 2, 8))
    with pytest.raises(InputError, match=r"parameters for 2 images, got 3 images.*shared=True"):
        dsa.apply(torch.zeros(3, 3, 8, 8), draw_of("flip", 2, 8))
