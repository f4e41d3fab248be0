"""--cache: what one command has decoded, the next ones find."""

import dataclasses

import pytest

import ld3m
from ld3m import cli
from ld3m.data import folder as image_folder


@pytest.fixture
def opened(monkeypatch):
    seen, open_image = [], image_folder.open_image
    monkeypatch.setattr(image_folder, "open_image", lambda content: (seen.append(1), open_image(content))[1])
    return seen


def test_commands_decode_a_data_set_once(small, small_run, ld3m_command, coloured_folder, tmp_path, opened):
    kept, side = tmp_path / "kept", ld3m.load(small_run).images.shape[-1]
    assert small("--out", tmp_path / "run", "--cache", kept)[0] == 0
    assert len(opened) > 0
    assert (tmp_path / "run/distilled.safetensors").read_bytes() == (small_run / "distilled.safetensors").read_bytes()
    assert "cache" not in (tmp_path / "run/config.yaml").read_text()
    opened.clear()
    common = f"--network ConvNet-w0.06 --resolution {side} --quiet --cache"
    options = "--protocol quick --networks ConvNet-w0.06 --repeats 1 --epochs 2 --baselines random --quiet --cache"
    for command in (
        ("experts", coloured_folder, "--num-experts 1 --epochs 1 --out", tmp_path / "experts", common, kept),
        ("teacher", coloured_folder, "--epochs 2 --out", tmp_path / "teacher.safetensors", common, kept),
        ("select", coloured_folder, f"--resolution {side} --evaluate none --out", tmp_path / "set", "--cache", kept),
        ("evaluate", tmp_path / "run", options, kept),
    ):
        status, _, err = ld3m_command(*command)
        assert status == 0, err
    assert opened == []
    assert len(list(kept.iterdir())) == 1


def test_every_command_that_reads_data_has_the_option():
    reading = {"distill", "sample", "refine", "select", "evaluate", "experts", "teacher", "prior train"}
    found = {name for name, (kind, _) in cli.COMMANDS.items() if "cache" in {f.name for f in dataclasses.fields(kind)}}
    assert found == reading


def test_what_goes_on_finds_what_was_kept(small, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ld3m.distillation.loop._Loop._step", stopped)
    status, _, err = small("--out", tmp_path / "run", "--cache", tmp_path / "kept")
    assert status == 130
    assert f"--resume --cache {tmp_path / 'kept'}" in err


def test_info_says_what_is_kept(ld3m_command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert f"0 data sets, 0.0 GiB, in {tmp_path / 'ld3m/decoded'}" in ld3m_command("info")[1]
