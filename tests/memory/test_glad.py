"""The memory plan of a generator's images."""

import pytest

from ld3m.config.distill import DistillConfig
from ld3m.errors import ConfigError
from ld3m.memory import glad
from ld3m.memory.glad import plan_glad
from ld3m.priors import load_stylegan
from ld3m.runtime.footprint import size_of


def test_the_plan_fits_its_budget(monkeypatch):
    generator = load_stylegan("random:stylegan-32")
    monkeypatch.setattr(glad, "saved_bytes", lambda module, call: 1000)
    weights = size_of(generator)

    def plan(budget: int, **settings) -> tuple:
        config = DistillConfig(space="glad", memory_budget=weights + budget, **({"layer": 4} | settings))
        found = plan_glad(config, generator, num_classes=10)
        return found.retain, found.micro_batch, found.classes_in_flight, found.peak_bytes - weights

    assert plan(20_000, algorithm="dm") == (1.0, 10, 10, 10_000)
    assert plan(4_000, algorithm="dm") == (1.0, 4, 4, 4_000)  # classes are streamed
    assert plan(4_000, algorithm="dm", ipc=6) == (0.0, 4, 1, 4_000)  # a class does not fit
    assert plan(30_000, algorithm="mtt", ipc=5) == (0.28, 16, 10, 30_000)  # all at once
    with pytest.raises(ConfigError, match=r"does not hold the weights of random:stylegan-32 and .* from layer 2 on"):
        plan(999, algorithm="dm", layer=2)
    assert plan(20_000, algorithm="dm", retain=0.4) == (0.4, 10, 10, 10_000)
    assert plan(30_000, algorithm="mtt", ipc=5, retain=0.1) == (0.1, 16, 10, 21_000)
    with pytest.raises(ConfigError, match=r"retain 0.5 keeps the activations of 25 images, and .* holds those of 14"):
        plan(30_000, algorithm="mtt", ipc=5, retain=0.5)


def test_smaller_plans_end_at_one_image(monkeypatch):
    generator = load_stylegan("random:stylegan-32")
    monkeypatch.setattr(glad, "saved_bytes", lambda module, call: 1_000_000)
    for algorithm, classes, retain in (("dm", 1, None), ("mtt", 10, None), ("mtt", 10, 0.8)):
        settings = {"algorithm": algorithm, "layer": 4, "ipc": 2, "retain": retain, "memory_budget": "1GB"}
        config = DistillConfig(space="glad", **settings)
        plans = [plan_glad(config, generator, num_classes=10)]
        while plans[-1] is not None:
            plans.append(plans[-1].smaller())
        peaks = [plan.peak_bytes for plan in plans[:-1]]
        assert peaks == sorted(set(peaks), reverse=True)
        last = plans[-2]
        assert plans[0].slow_down == pytest.approx(1.1 if retain else 1.0)
        assert last.slow_down == 1.5
        assert (last.retain, last.micro_batch, last.classes_in_flight) == (0.0, 1, classes)
        assert last.peak_bytes == size_of(generator) + 1_000_000
