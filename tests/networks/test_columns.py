import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ld3m.networks import columns
from ld3m.networks.columns import SmallMapConv2d


def conv(channels: int, width: int, stride: int, bias: bool) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=bias)


def results(layer, x, cotangent):
    y = layer(x)
    return y, *torch.autograd.grad(y, (x, *layer.parameters()), cotangent)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5), (4, 4), (1, 1)])
def test_result_and_gradients_are_as_good_as_the_convolutions(height, width, layout, bias, stride):
    layer = conv(5, 60, stride, bias).to(memory_format=layout)
    x = torch.randn(3, 5, height, width).contiguous(memory_format=layout).requires_grad_()
    cotangent = torch.randn_like(layer(x))
    got, eager = results(SmallMapConv2d(layer), x, cotangent), results(layer, x, cotangent)
    precise = conv(5, 60, stride, bias).double()
    precise.load_state_dict({name: p.double() for name, p in layer.state_dict().items()})
    exact = results(precise, x.detach().double().requires_grad_(), cotangent.double())
    for g, e, r in zip(got, eager, exact, strict=True):
        error, allowed = ((t.double() - r).abs().max().item() for t in (g, e))
        assert error <= 2 * allowed + 1e-6 * max(1.0, r.abs().max().item())


@pytest.mark.parametrize(("count", "expected"), [(3, 1), (4, 0)])  # 3 and 4 maps of 4 pixels, 12 channels
def test_products_are_for_fewer_pixels_than_channels(count, expected, monkeypatch):
    calls, apply = [], columns._Product.apply
    monkeypatch.setattr(columns._Product, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    layer = SmallMapConv2d(conv(2, 12, 1, True))
    layer(torch.randn(count, 2, 2, 2))
    assert len(calls) == expected


@pytest.mark.parametrize("kind", ["float64", "autocast", "vmap"])
def test_all_else_is_the_convolution(kind, monkeypatch):
    monkeypatch.setattr(columns._Product, "apply", lambda *inputs: pytest.fail("a product"))
    plain = conv(2, 12, 1, True)
    layer, x = SmallMapConv2d(plain), torch.randn(2, 2, 2, 2)
    if kind == "float64":
        assert torch.equal(SmallMapConv2d(plain.double())(x.double()), plain(x.double()))
    elif kind == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x), plain(x))
    else:
        torch.testing.assert_close(torch.vmap(layer)(x[None])[0], plain(x))


@pytest.mark.parametrize(
    "options", [{"stride": 3}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}]
)
def test_other_convolutions_are_not_taken(options):
    assert not SmallMapConv2d.takes(nn.Conv2d(4, 4, 3, **{"padding": 1, **options}))
    assert not SmallMapConv2d.takes(nn.Conv2d(4, 4, 1))
    assert SmallMapConv2d.takes(nn.Conv2d(4, 4, 3, padding=1))


def test_gradients_of_a_stage_that_follows_another():
    layers = nn.Sequential(conv(3, 40, 1, True), nn.ReLU(), conv(40, 40, 2, False))
    twin = nn.Sequential(SmallMapConv2d(layers[0]), nn.ReLU(), SmallMapConv2d(layers[2]))
    x, labels = torch.randn(2, 3, 4, 4), torch.tensor([1, 30])
    want, got = (
        torch.autograd.grad(F.cross_entropy(n(x).mean((2, 3)), labels), list(layers.parameters()))
        for n in (layers, twin)
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
