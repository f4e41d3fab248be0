"""Predictions and maps in half precision against float64, and which backends must be there."""

import pytest
import torch

from ld3m.ops import group_norm_silu, group_select, instance_norm_relu_pool, nearest_code, reverse_step
from ld3m.ops.backends import native

HALF = [torch.bfloat16, torch.float16]
FACTORS = {"a": 0.9, "b": -0.3, "d": 0.2, "guidance_scale": 4.0}


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("dtype", HALF)
def test_guidance_of_half_precision_predictions_is_computed_in_the_precision_of_the_state(dtype, backend):
    draw = torch.Generator().manual_seed(0)
    state, injected = torch.randn(2, 3, 4, 8, 8, generator=draw)
    predictions = torch.randn(6, 4, 8, 8, generator=draw).to(dtype)
    uncond, cond = predictions.double().chunk(2)
    wanted = 0.9 * state.double() - 0.3 * (uncond + 4 * (cond - uncond)) + 0.2 * injected.double()
    found = reverse_step.reverse_step(state, predictions, injected, **FACTORS, backend=backend)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)  # bfloat16 would be 1e-2 away


@pytest.mark.parametrize("dtype", HALF)
def test_the_statistics_kept_for_the_way_back_are_of_full_precision(dtype):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    ones = torch.ones(3, dtype=dtype)
    _, mean, rstd = torch.ops.ld3m.instance_norm_relu_pool(x, ones, ones, 1e-5, True, "eager")
    assert mean.dtype == rstd.dtype == torch.float32


ROWS = torch.zeros(4, 8)
SERVED = {
    "group_select": lambda: group_select.supports("native", ROWS[0], 4),
    "instance_norm_relu_pool": lambda: instance_norm_relu_pool.supports("native", ROWS[None, None], *ROWS[:2, :1]),
    "nearest_code": lambda: nearest_code.supports("native", ROWS, ROWS),
    "reverse_step": lambda: reverse_step.supports("native", ROWS, ROWS),
}


@pytest.mark.skipif(native is None, reason="built without ld3m._C")
@pytest.mark.parametrize("op", SERVED)
def test_native_serves_float32_on_a_cpu(op):
    """A backend that refuses makes its tests skip, so that one that refuses everything would go unseen."""
    assert SERVED[op]() == ""


@pytest.mark.parametrize("op", [group_norm_silu, group_select, instance_norm_relu_pool, nearest_code, reverse_step])
def test_eager_serves_everything(op):
    arguments = {group_select: (ROWS[0].double(), 999), group_norm_silu: (ROWS.double(),) * 3}
    arguments |= {instance_norm_relu_pool: (ROWS.half(),) * 3}
    assert op.supports("eager", *arguments.get(op, (ROWS.double(), ROWS.half()))) == ""
