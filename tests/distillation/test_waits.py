"""How often an iteration would wait for a GPU: copies that block, and numbers that are read."""

import contextlib
from collections import Counter
from unittest.mock import patch

import pytest
import torch

from ld3m.data.images import ImageSet
from ld3m.distillation.job import objective_of, prepare
from ld3m.distillation.loop import _Loop
from ld3m.distillation.objectives import held_on

SETTINGS = {"evaluate": "none", "compile": False, "steps": 2, "real_batch": 4, "width": 4, "prior": "random:tiny"}
MTT = {"algorithm": "mtt", "max_start_epoch": 1, "expert_epochs": 1, "expert_training_epochs": 1, "student_steps": 3}
READS = ("cpu", "item", "__float__", "numpy")


def waits(call):
    """Count calls that wait for a GPU's result, or for a copy to or from it, if their tensors were on one.

    Not `to` of a dtype alone, which stays where it is, nor one that is told not to block.
    """
    count = Counter()

    def counted(name):
        method = getattr(torch.Tensor, name)

        def run(self, *args, **kwargs):
            places = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.device | str | torch.Tensor)]
            if name in READS or (places and not kwargs.get("non_blocking")):
                count[name] += 1
            return method(self, *args, **kwargs)

        return patch.object(torch.Tensor, name, run)

    with contextlib.ExitStack() as stack:
        for name in ("to", *READS):
            stack.enter_context(counted(name))
        call()
    return count


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"algorithm": "dc"}, 3),
        ({"algorithm": "dm"}, 3),
        ({"algorithm": "dm", "space": "pixel", "prior": None, "steps": None}, 3),
        (MTT, 5),
    ],
)
def test_a_warm_iteration_waits_only_for_its_numbers(settings, most, tmp_path):
    settings = {name: value for name, value in (SETTINGS | settings).items() if value is not None}
    out = tmp_path / "run" if settings["algorithm"] == "mtt" else None
    job = prepare("builtin", settings, out=out, resume=False, overwrite=False)
    with job.folder or contextlib.nullcontext():
        loop = _Loop(job, objective_of(job, progress=False))
        loop._iterate(0)
        assert sum(waits(lambda: loop._iterate(1)).values()) <= most


def test_waits_are_counted():
    x = torch.ones(2)
    assert waits(lambda: (x.to("cpu"), x.to(x), x[0].item(), float(x[0]), x.cpu(), x.to(device="cpu"))).total() == 6
    assert not waits(lambda: (x.to(torch.float64), x.to("cpu", non_blocking=True), x.double()))


def test_real_images_stay_on_the_device_where_there_is_room():
    images = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ("a",))
    device, size = torch.device("meta"), 4 * 3 * 8 * 8
    assert held_on(device, images, size).images.device == device
    assert held_on(device, images, size - 1) is images
    assert held_on(torch.device("cpu"), images, size) is images
