"""The convolution with frozen weights against torch's own, in both layouts."""

import pytest
import torch
import torch.nn.functional as F

from ld3m.priors.frozen import conv2d as room
from ld3m.priors.frozen.conv2d import frozen_conv2d

PLAIN, LAST = torch.contiguous_format, torch.channels_last


def inputs(kernel, layout, device="cpu"):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 9, 7, generator=draw, dtype=torch.float64)
    weight = torch.randn(6, 4, kernel, kernel, generator=draw, dtype=torch.float64)
    bias = torch.randn(6, generator=draw, dtype=torch.float64)
    x, weight = (t.to(device, memory_format=layout) for t in (x, weight))
    return x.requires_grad_(), weight, bias.to(device)


def gradient(convolve, x, weight, bias, stride):
    y = convolve(x, weight, bias, (stride, stride), (1, 1))
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return y, torch.autograd.grad(y, x, cotangent.to(y).contiguous(memory_format=_layout(y)))[0]


def _layout(y):
    return PLAIN if y.is_contiguous() else LAST


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("layout", [PLAIN, LAST], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_result_and_gradient_are_those_of_torch(kernel, stride, layout, is_full, monkeypatch):
    """Whatever stands for the input: on a GPU a tensor of its size and layout."""
    if is_full:
        convolve = torch.ops.aten.convolution_backward

        def backward(grad, x, weight, *options):
            x = room._unread_on_a_gpu(x.shape, grad, weight).fill_(torch.nan)
            return convolve(grad, x, weight, *options)

        monkeypatch.setattr(torch.ops.aten, "convolution_backward", backward)
    case = inputs(kernel, layout)
    got, want = gradient(frozen_conv2d, *case, stride), gradient(F.conv2d, *case, stride)
    torch.testing.assert_close(got, want)
    assert got[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("grad_layout", "weight_layout", "expected"),
    [(PLAIN, PLAIN, PLAIN), (LAST, LAST, LAST), (PLAIN, LAST, LAST), (LAST, PLAIN, LAST)],
)
def test_what_stands_for_the_input_has_the_layout_of_the_others(grad_layout, weight_layout, expected):
    grad, weight = torch.ones(2, 6, 9, 7), torch.ones(6, 4, 3, 3)
    grad, weight = grad.contiguous(memory_format=grad_layout), weight.contiguous(memory_format=weight_layout)
    made = room._unread_on_a_gpu(torch.Size((2, 4, 9, 7)), grad, weight)
    assert made.shape == (2, 4, 9, 7) and made.dtype == torch.float32
    assert made.is_contiguous(memory_format=expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN needs a GPU")
@pytest.mark.parametrize("layout", [PLAIN, LAST], ids=str)
def test_on_a_gpu_the_gradient_is_the_same(layout):
    case = inputs(3, layout, "cuda")
    torch.testing.assert_close(gradient(frozen_conv2d, *case, 1), gradient(F.conv2d, *case, 1))
