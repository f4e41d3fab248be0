"""How the commands read data: bits of deep pictures, and what cannot be read."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import ld3m
from ld3m.config import DistillConfig, EvaluateConfig
from ld3m.distillation import experts
from ld3m.errors import ConfigError

COMMANDS = {
    "distill": "--iterations 1 --steps 1 --width 4 --class-ids 0 1 --prior random:tiny --evaluate none --quiet",
    "sample": "--class-ids 0 1 --prior random:tiny --evaluate none --quiet --steps 4 --stop 2 --selector random",
    "experts": "--resolution 16 --num-experts 1 --epochs 1 --width 4 --quiet",
    "teacher": "--resolution 16 --network ConvNet-w0.06 --epochs 2 --quiet",
}


@pytest.fixture(scope="module")
def deep_folder(tmp_path_factory):
    """Pictures of 16 bits of which 12 are in use, none of them above 900: 10 bits would hold them."""
    root = tmp_path_factory.mktemp("deep")
    for k in range(16):
        path = root / ("test" if k >= 8 else "train") / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 900, (16, 16)).astype(np.uint16)).save(path)
    return root


@pytest.fixture
def loaded(monkeypatch):
    """The keywords of the last `ld3m.data.load`, wherever it is called from."""
    asked, load = {}, ld3m.data.load

    def spy(source, **options):
        asked.update(options)
        return load(source, **options)

    for home in ("ld3m.data", "ld3m.evaluation.inputs"):
        monkeypatch.setattr(f"{home}.load" if home == "ld3m.data" else f"{home}.load_data", spy)
    return asked


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_data_takes_bits_and_strictness(command, ld3m_command, deep_folder, loaded, tmp_path):
    line = (command, deep_folder, COMMANDS[command], "--bit-range 12 --strict --out", tmp_path / "out")
    assert ld3m_command(*line)[0] == 0
    assert (str(loaded["bit_range"]), loaded["strict"]) == ("12", True)


def test_prior_train_says_them_again(ld3m_command, deep_folder, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("ld3m.prior_training.train.train_prior", lambda *_, **__: tmp_path)
    options = "--resolution 16 --bit-range 12 --strict --holdout 0.5 --out"
    status, _, err = ld3m_command("prior train", deep_folder, options, tmp_path / "p")
    assert status == 2 and "holdout=0.5 has no use" in err  # it was read with all three
    assert (loaded["bit_range"], loaded["strict"]) == ("12", True)
    status, out, _ = ld3m_command("prior train", deep_folder, "--resolution 16 --bit-range 12 --strict --out", tmp_path)
    assert status == 0 and out.endswith(" --strict --bit-range 12\n")


def test_an_evaluation_reads_as_the_distillation_did(ld3m_command, deep_folder, loaded, tmp_path):
    run = tmp_path / "run"
    assert ld3m_command("distill", deep_folder, COMMANDS["distill"], "--bit-range 12 --out", run)[0] == 0
    options = "--protocol quick --networks ConvNet-w0.06 --repeats 1 --epochs 2 --baselines random --quiet"
    mean = json.loads(json.dumps(ld3m.load(run).mean.tolist()))
    for more, expected in (("", "12"), ("--bit-range 10 --strict", "10")):
        assert ld3m_command("evaluate", run, options, more)[0] == 0
        assert (str(loaded["bit_range"]), loaded["strict"]) == (expected, bool(more))
        seen = json.loads((run / "evaluation.json").read_text())["data"]["mean"]
        assert (seen == pytest.approx(mean, rel=1e-3)) is (expected == "12")


@pytest.mark.parametrize("kind", [DistillConfig, EvaluateConfig])
def test_other_bits_are_refused_before_anything_is_read(kind):
    with pytest.raises(ConfigError, match="bit_range is one of auto, 8, 10, 12, 14, 16, minmax; got '11'"):
        kind(bit_range=11)


def test_the_command_refuses_them(ld3m_command, monkeypatch):
    monkeypatch.setattr(experts, "train_experts", None)
    for command in COMMANDS:
        status, _, err = ld3m_command(command, "--bit-range 11 --out x")
        assert status == 2 and re.search("bit_range is one of auto", err)
