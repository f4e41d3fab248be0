"""The command line."""

import dataclasses
import json
import os
import re
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

import ld3m
from ld3m import cli
from ld3m.config import DistillConfig, EvaluateConfig, ExpertTraining, SampleConfig, SelectConfig, TeacherTraining
from ld3m.distillation.objectives import ClassMatching
from ld3m.evaluation.protocols import PROTOCOLS
from ld3m.prior_training.settings import PriorTraining

COMMANDS = {
    "distill": [cli.DistillCommand, DistillConfig],
    "sample": [cli.SampleCommand, SampleConfig],
    "refine": [cli.RefineCommand],  # of the settings of sample it takes those that are listed in words.py
    "select": [cli.SelectCommand, SelectConfig],
    "merge": [cli.MergeCommand],
    "evaluate": [cli.EvaluateCommand, EvaluateConfig],
    "experts": [cli.ExpertsCommand, ExpertTraining],
    "prior train": [cli.PriorTrainCommand, PriorTraining],
    "teacher": [cli.TeacherCommand, TeacherTraining],
    "export": [cli.ExportCommand],
    "info": [cli.InfoCommand],
    "doctor": [cli.DoctorCommand],
    "completion": [cli.CompletionCommand],
}
POSITIONAL = {"shell", "data", "real", "run", "settings", "training", "reading"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command, ld3m_command):
    status, out, _ = ld3m_command(command, "--help")
    assert status == 0
    assert f"usage: ld3m {command}" in out
    for kind in COMMANDS[command]:
        for field in dataclasses.fields(kind):
            if field.name not in POSITIONAL:
                assert f"--{field.name.replace('_', '-')}" in out, field.name


@pytest.mark.parametrize("arguments", ["", "-h", "--help"])
def test_the_usage_lists_every_command(arguments, ld3m_command):
    status, out, err = ld3m_command(arguments)
    assert (status, err) == (0, "")
    assert all(f"ld3m {command} " in out for command in COMMANDS)


def test_the_table_has_every_command():
    assert list(COMMANDS) == list(cli.COMMANDS)
    assert all(cli.COMMANDS[name][0] is kinds[0] for name, kinds in COMMANDS.items())


@pytest.mark.parametrize("arguments", ["prior", "prior -h", "prior --help"])
def test_the_usage_of_prior_names_what_follows_it(arguments, ld3m_command):
    status, out, err = ld3m_command(arguments)
    assert (status, err) == (0, "")
    assert out.startswith("ld3m prior: ")
    assert re.findall(r"^  ld3m (.+?) \[", out, re.M) == ["prior train"]


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [("distil", "distill"), ("prior tune", "prior train"), ("--out x", None)],
)
def test_an_unknown_command_is_refused_with_the_usage(arguments, meant, ld3m_command):
    status, out, err = ld3m_command(arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ld3m: no command '")
    assert err.splitlines()[0].endswith(f"; did you mean '{meant}'?" if meant else "no command '--out'")
    assert "ld3m evaluate SET" in err


def test_the_version_is_printed(ld3m_command):
    assert ld3m_command("--version") == (0, f"ld3m {ld3m.__version__}\n", "")


def test_python_m_is_the_command(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr("sys.argv", ["ld3m"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ld3m", run_name="__main__")
    assert stop.value.code == 0
    assert "ld3m distill [DATA]" in capsys.readouterr().out


def test_distill_writes_a_run_and_says_where(small, coloured_folder, tmp_path):
    status, out, err = small("--out", tmp_path / "run", "--ipc 2 --learn latents --no-augment --seed 7")
    assert status == 0
    assert f"6 images of 3 classes in {tmp_path / 'run'}" in out
    result = ld3m.load(tmp_path / "run")
    assert result.class_names == ("b", "g", "r")
    expected = {"data": str(coloured_folder), "ipc": 2, "learn": ["latents"], "augment": False, "seed": 7, "steps": 1}
    assert expected.items() <= result.config.items()
    assert "Traceback" not in err


def test_distill_names_a_folder_by_itself(small, coloured_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert small()[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(rf"{coloured_folder.name}-dm-ld3m-\d{{8}}-\d{{6}}", folder.name)
    assert (folder / "distilled.safetensors").is_file()


def test_the_same_settings_by_function_give_the_same_bytes(small_run, coloured_folder, tmp_path):
    settings = yaml.safe_load((small_run / "config.yaml").read_text())
    again = ld3m.distill(settings.pop("data"), out=tmp_path / "again", progress=False, **settings)
    assert (again.path / "distilled.safetensors").read_bytes() == (small_run / "distilled.safetensors").read_bytes()


def test_options_win_over_the_file_and_the_file_over_the_preset(small, tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 0.25\nreal-batch: 3\niterations: 7\nguidance-scale: 1\n")
    assert small("--config", tmp_path / "c.yaml", "--real-batch 2 --out", tmp_path / "run")[0] == 0
    config = ld3m.load(tmp_path / "run").config
    assert (config["lr"], config["guidance_scale"]) == (0.25, 1)  # the file's
    assert (config["iterations"], config["real_batch"]) == (2, 2)  # the command line's
    assert config["max_start_epoch"] == 4  # the preset's


def test_an_option_may_say_the_default_that_the_file_does_not(small, tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 5\ninjection: none\n")
    assert small("--config", tmp_path / "c.yaml", "--seed 0 --injection x0 --out", tmp_path / "run")[0] == 0
    config = ld3m.load(tmp_path / "run").config
    assert (config["seed"], config["injection"]) == (0, "x0")


def test_a_file_may_name_the_data(ld3m_command, coloured_folder, tmp_path, small_options):
    (tmp_path / "c.yaml").write_text(f"data: {coloured_folder}\n")
    assert ld3m_command("distill", small_options, "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")[0] == 0
    assert ld3m.load(tmp_path / "run").config["data"] == str(coloured_folder)


def test_a_stored_config_runs_again(small_run, ld3m_command, tmp_path):
    assert ld3m_command("distill --quiet --config", small_run / "config.yaml", "--out", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "distilled.safetensors").read_bytes() == (
        small_run / "distilled.safetensors"
    ).read_bytes()


def interrupted(monkeypatch, iteration):
    backward = ClassMatching.backward

    def stop(self, k):
        if k == iteration:
            raise KeyboardInterrupt
        return backward(self, k)

    monkeypatch.setattr(ClassMatching, "backward", stop)


def test_ctrl_c_prints_the_command_to_go_on_with(small, ld3m_command, small_run, tmp_path, monkeypatch):
    out = tmp_path / "my run"
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        status, _, err = small("--out", out)
    assert status == 130
    assert "Traceback" not in err
    (line,) = re.findall(r"go on with: ld3m (.+)", err)
    assert line == f"distill --out '{out}' --resume"
    assert ld3m_command("distill --quiet --resume --out", out)[0] == 0
    assert (out / "distilled.safetensors").read_bytes() == (small_run / "distilled.safetensors").read_bytes()


def test_ctrl_c_before_anything_is_written_names_no_command(small, tmp_path, monkeypatch):
    monkeypatch.setattr("ld3m.spaces.base.load_prior", lambda *_args, **_kwargs: interrupt())
    status, _, err = small("--out", tmp_path / "run")
    assert (status, err.strip()) == (130, "interrupted")
    assert not (tmp_path / "run").exists()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ipc 0", "ipc is a whole number, at least 1; got 0"),
        ("--ipc 9", r"class '\w' has 8 images, --ipc 9 asks for more"),
        ("--steps 0", "steps is a whole number, at least 1; got 0"),
        ("--steps 1001", "steps is a whole number from 1 to 1000, got 1001"),
        ("--resolution 15", "resolution must be divisible by 2, the first stage's factor in random:tiny; got 15"),
        ("--prior nosuch", "prior is one of builtin, .+; got 'nosuch'"),
        ("--algorithm nosuch", "algorithm is one of dc, dm, mtt; got 'nosuch'"),
        ("--space nosuch", "space is one of ld3m, autoencoder, glad, pixel; got"),
        ("--network nosuch", "unknown network 'nosuch'.+ConvNet, AlexNet, VGG11, ResNet18, ViT"),
        ("--class-ids 99999 1 0", r"class_ids of random:tiny go from 0 to 3, .+got \[99999\]"),
        ("--memory-budget lots", "memory_budget is a size such as .+got 'lots'"),
        ("--memory-budget 1MB", r"memory_budget of 1.00 MB does not hold .+; raise it"),
        ("--learn nothing", "learn names one or both of latents, conditioning; got"),
        ("--lr -1", "lr is a number above 0, got -1"),
        ("--init nosuch", "init is 'real', 'kmeans', 'noise' or the folder of a distilled set, got 'nosuch'"),
        ("--evaluate nosuch", "evaluate is one of .+, none; got 'nosuch'"),
        ("--device nosuch", "device 'nosuch' cannot be used here"),
        ("--algorithm mtt --experts nosuch", "no expert-.+ in nosuch"),
        ("--algorithm mtt --expert-epochs 9", r"expert_training_epochs is at least .+ = 12, got 6"),
        ("--config nosuch.yaml", "config nosuch.yaml cannot be read"),
        ("--config c.yaml --resume", "config and resume exclude each other"),
        ("--resume", r"out .+out is not there, so there is nothing to resume"),
        ("--resume --overwrite", "resume and overwrite exclude each other"),
        ("--holdout 0.2", "holdout=0.2 has no use: .+ has a test split of its own"),
    ],
)
def test_bad_settings_exit_2_with_one_error_and_no_folder(options, message, small, tmp_path):
    status, out, err = small(options, "--out", tmp_path / "out")
    assert (status, out) == (2, "")
    assert re.search(rf"(^ld3m: error|Error parsing settings): {message}", unboxed(err), re.M), err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def unboxed(text):
    """Put the words of tyro's box, which folds lines, into one line."""
    return re.sub(r"\s*│\n│\s*", " ", text)


@pytest.mark.parametrize("options", ["--seed abc", "--itterations 3", "--ipc", "--guidance-scale high", "a b c"])
def test_what_cannot_be_parsed_exits_2(options, ld3m_command, tmp_path):
    status, _, err = ld3m_command("distill", options, "--out", tmp_path / "out")
    assert status == 2
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("itterations: 3", "'itterations' is not a setting of distill; did you mean 'iterations'"),
        ("class_ids: [a, b]", r"class_ids is tuple\[int, \.\.\.\] \| None, got \['a', 'b'\]"),
        ("!!python/object/apply:os.system ['touch PWNED']", "config .+ is not plain YAML"),
        ("- 3", r"config .+ holds names and values \(name: value\), got list"),
    ],
)
def test_bad_files_of_settings_exit_2(content, message, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(content)
    status, _, err = small("--config c.yaml --out out")
    assert status == 2
    assert re.search(rf"ld3m: error: {message}", err), err
    assert os.listdir() == ["c.yaml"]


def test_bad_data_exits_2(ld3m_command, tmp_path, small_options):
    (tmp_path / "empty").mkdir()
    (tmp_path / "evil.zip").write_bytes(b"PK\x03\x04 not a zip")
    one = tmp_path / "one" / "train" / "a"
    one.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(one / "0.png")
    for name, message in {
        "nowhere": "there is no data '.+nowhere'",
        "empty": ".*empty",
        "evil.zip": ".*evil.zip",
        "one": "expected at least two classes, found only 'a'",
    }.items():
        status, _, err = ld3m_command("distill", tmp_path / name, small_options, "--out", tmp_path / "out")
        assert status == 2
        assert re.search(f"ld3m: error: {message}", err), err
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone(small, small_run, tmp_path):
    (tmp_path / "x").write_text("mine")
    for options in ("", "--resume"):
        status, _, err = small(options, "--out", tmp_path)
        assert status == 2
        assert re.search(r"ld3m: error: out .+ not empty.*; choose another --out, .+ --overwrite", err)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*")}
    assert small("--out", small_run)[0] == 2
    status, _, err = small("--resume --seed 4 --out", small_run)
    assert status == 2
    assert "these differ: seed 0 → 4" in err
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*")} == before
    assert small("--overwrite --out", tmp_path)[0] == 2
    (tmp_path / "x").rename(tmp_path / "y")
    (tmp_path / "config.yaml").write_text("seed: 1")
    status, _, err = small("--overwrite --out", tmp_path)
    assert status == 2 and "holds a config.yaml that is not of a run, so it is not replaced" in err
    (tmp_path / "config.yaml").write_bytes((small_run / "config.yaml").read_bytes())
    assert small("--overwrite --out", tmp_path)[0] == 0
    assert (tmp_path / "y").read_text() == "mine"


def test_resume_needs_a_folder(ld3m_command):
    status, _, err = ld3m_command("distill --resume")
    assert (status, err) == (2, "ld3m: error: resume needs --out, the folder of the run to go on with\n")


def test_distill_ends_with_the_table(small, tmp_path, monkeypatch):
    """With a protocol cut to two epochs of one small network."""
    cut = replace(PROTOCOLS["quick"].with_epochs(2), networks=("ConvNet-w0.06",))
    monkeypatch.setitem(PROTOCOLS, "quick", cut)
    status, out, _ = small("--evaluate quick --out", tmp_path / "run")
    assert status == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len({row["set"] for row in evaluation["rows"]}) == 3
    assert {(row["network"], len(row["accuracies"])) for row in evaluation["rows"]} == {("ConvNet-w0.06", 5)}
    table = ld3m.evaluation.Report.from_json((tmp_path / "run" / "evaluation.json").read_text()).table()
    assert out.rstrip().endswith(table.rstrip())
    facts = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (facts["protocol"], facts["accuracy"]) == ("quick", evaluation["unseen"])
    assert not (tmp_path / "run" / "evaluation-progress.json").exists()
    status, again, _ = small("--evaluate quick --resume --out", tmp_path / "run")
    assert (status, again) == (0, out)


def test_a_later_evaluation_is_what_result_json_says(small, ld3m_command, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert small("--evaluate none --out", run)[0] == 0
    before = json.loads((run / "result.json").read_text())
    short = replace(PROTOCOLS["quick"].with_epochs(2), name="short", networks=("ConvNet-w0.06",))
    monkeypatch.setitem(PROTOCOLS, "short", short)
    command = ("evaluate", run, "--protocol short --repeats 1 --baselines random")
    assert ld3m_command(*command)[0] == 0
    unseen = json.loads((run / "evaluation.json").read_text())["unseen"]
    assert json.loads((run / "result.json").read_text()) == before | {"protocol": "short", "accuracy": unseen}
    (run / "result.json").unlink()  # as of a run that has not ended
    assert ld3m_command(*command)[0] == 0
    assert not (run / "result.json").exists()


def test_running_out_of_memory_is_one_error(ld3m_command, monkeypatch, tmp_path, coloured_folder):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr("ld3m.prior_training.train.train_prior", run_out)
    status, _, err = ld3m_command("prior train", coloured_folder, "--resolution 16 --quiet --out", tmp_path / "prior")
    assert status == 2
    assert err.splitlines()[-1].startswith("ld3m: error: out of memory (CUDA out of memory. Tried to allocate 9 GiB.);")
