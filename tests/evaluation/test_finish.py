"""What result.json says when a run that has ended is gone on with."""

import json
import weakref
from dataclasses import replace

import pytest

import ld3m
from ld3m.evaluation import PROTOCOLS
from ld3m.evaluation import finish as finishing
from ld3m.spaces.latent import LatentSetup


def test_measurements_of_a_run_that_has_ended_stay(distill_small, tmp_path):
    path = distill_small(out=tmp_path / "run").path
    before = json.loads((path / "result.json").read_text())
    distill_small(out=path, resume=True)
    assert json.loads((path / "result.json").read_text()) == before
    assert before["seconds_per_iteration"] > 0


def test_the_protocol_is_that_of_the_accuracy(distill_small, coloured, tmp_path):
    path = distill_small(out=tmp_path / "run").path
    protocol = replace(PROTOCOLS["quick"].with_epochs(2), name="short", networks=("ConvNet-w0.06",))
    report = ld3m.evaluate(path, coloured, protocol=protocol, repeats=1, baselines=(), progress=False)
    distill_small(out=path, resume=True)
    facts = json.loads((path / "result.json").read_text())
    assert facts["protocol"] == "short"
    assert facts["accuracy"] == {name: list(score) for name, score in report.unseen.items()}


def test_measurements_outlive_an_evaluation_that_is_broken_off(distill_small, tmp_path, monkeypatch):
    def broken_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finishing, "evaluate", broken_off)
        distill_small(out=tmp_path / "run", evaluate="quick", resolution=32)
    before = json.loads((tmp_path / "run/result.json").read_text())
    monkeypatch.setattr(finishing, "evaluate", lambda *_, **__: None)
    distill_small(out=tmp_path / "run", resume=True, evaluate="quick", resolution=32)
    assert json.loads((tmp_path / "run/result.json").read_text()) == before
    assert before["seconds_per_iteration"] > 0


def test_what_was_on_the_device_gives_way_to_the_evaluation(distill_small, tmp_path, monkeypatch):
    spaces, alive, build = [], [], LatentSetup.build

    def built(*arguments):
        space = build(*arguments)
        spaces.append(weakref.ref(space))
        return space

    monkeypatch.setattr(LatentSetup, "build", built)
    monkeypatch.setattr(finishing, "evaluate", lambda *_, **__: alive.extend(ref() for ref in spaces))
    distill_small(out=tmp_path / "run", evaluate="quick", resolution=32)
    assert alive == [None]
