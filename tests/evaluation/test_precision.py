"""Trainings in bfloat16: what runs in it, what stays in float32, and that it is said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ld3m import networks
from ld3m.errors import ConfigError
from ld3m.evaluation import Report, evaluate
from ld3m.evaluation.protocols import Recipe, find
from ld3m.evaluation.training import train
from ld3m.runtime import seeds

HALF = find("quick").with_dtype("bfloat16")


def trained(name: str, protocol, images: torch.Tensor) -> tuple[nn.Module, torch.Tensor, set]:
    """A network after one step at full rate on all images, its loss, and the dtypes that its layers gave."""
    labels, seen, generator = torch.arange(len(images)) % 3, set(), seeds.generator(0)
    network = networks.build(name, num_classes=3, resolution=images.shape[-1], generator=generator)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    with seeds.scoped_global_rng(0, "dropout"):  # which ViT has
        loss = train([network], [images], labels, protocol, Recipe(0.01, 2, 0.6), [generator])
    return network, loss, seen


@pytest.mark.parametrize("name", ["ConvNet-w0.06", "AlexNet-w0.06", "VGG11-w0.06", "ResNet18-w0.06", "ViT-w0.06"])
def test_layers_run_in_bfloat16_and_weights_end_near_those_of_float32(name):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, exact, usual = trained(name, find("quick"), images)
    half, near, reduced = trained(name, HALF, images)
    assert usual == {torch.float32}
    assert reduced == {torch.bfloat16}
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.02)
    assert not torch.equal(near, exact)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    start = networks.build(name, num_classes=3, resolution=32, generator=seeds.generator(0))
    vectors = [nn.utils.parameters_to_vector(network.parameters()) for network in (start, whole, half)]
    way, gap = vectors[1] - vectors[0], vectors[2] - vectors[1]
    # Instance norm on maps of a few pixels enlarges rounding: 0.45 for VGG11 and ResNet18, which have them.
    assert 0 < gap.norm() < 0.6 * way.norm()


def test_maps_of_odd_size_too():
    images = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))  # 12 -> 6 -> 3, which is pooled odd
    _, loss, dtypes = trained("ConvNet-w0.06", HALF, images)
    assert loss.isfinite().all()
    assert dtypes == {torch.bfloat16}


def test_a_teacher_and_its_labels_stay_in_float32(monkeypatch):
    images, seen = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), set()

    def answers(batch: torch.Tensor) -> torch.Tensor:
        logits = nn.functional.conv2d(batch, torch.ones(3, 3, 32, 32)).flatten(1)
        seen.add(logits.dtype)
        return logits

    kl_div = nn.functional.kl_div
    monkeypatch.setattr(nn.functional, "kl_div", lambda a, b, **more: (seen.add(a.dtype), kl_div(a, b, **more))[1])
    generator = seeds.generator(0)
    built = [networks.build("ConvNet-w0.06", num_classes=3, resolution=32, generator=generator)]
    protocol = HALF.with_labels("soft")
    train(built, [images], torch.arange(6) % 3, protocol, Recipe(0.01, 2, 0.6), [generator], answers=answers)
    assert seen == {torch.float32}


def test_repeats_at_once_are_refused_on_a_cpu(toy, brief):
    """There autocast has no rule for the convolutions that vmap makes."""
    with pytest.raises(ConfigError, match="repeats trained together on a CPU stay in float32; leave out together"):
        evaluate((torch.rand(3, 3, 8, 8), torch.arange(3)), toy, protocol=brief, dtype="bfloat16", together=True)


def test_an_evaluation_says_so(toy, brief):
    images = torch.full((3, 3, 8, 8), 0.15)
    images[range(3), range(3)] = 0.75
    options = {"protocol": brief, "networks": ["ConvNet-w0.06"], "repeats": 2, "progress": False}
    report = evaluate((images, torch.arange(3)), toy, dtype=torch.bfloat16, **options)
    assert report.protocol["dtype"] == "bfloat16"
    assert report.protocol["deviations"][-1] == "trainings in bfloat16 instead of float32"
    assert report.table().endswith("Trained in bfloat16 mixed precision, tested in float32.")
    assert Report.from_json(report.to_json()).table() == report.table()
    assert "bfloat16" not in evaluate((images, torch.arange(3)), toy, **options).table()
    assert all(row["mean"] > 60 for row in report.rows), report.table()  # chance is 33


def test_other_precisions_are_refused(toy, brief):
    with pytest.raises(ConfigError, match=r"dtype is one of float32, bfloat16; got 'float16'"):
        evaluate((torch.rand(3, 3, 8, 8), torch.arange(3)), toy, protocol=brief, dtype="float16", progress=False)
    assert find("d3hr").with_dtype(None) == find("d3hr").with_dtype("float32") == find("d3hr")
    assert replace(HALF, dtype="float32", deviations=find("quick").deviations) == find("quick")
