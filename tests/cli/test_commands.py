"""Commands beside `ld3m distill`."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import ld3m
from ld3m.distillation import experts
from ld3m.prior_training import train
from ld3m.priors import ExecutionConfig


def test_evaluate_compares_with_real_images(small_run, ld3m_command, coloured_folder, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    options = "--protocol quick --networks ConvNet-w0.06 --repeats 2 --epochs 2 --baselines random --quiet"
    status, out, _ = ld3m_command("evaluate", run, options)
    assert status == 0
    assert "random" in out
    report = ld3m.evaluation.Report.from_json((run / "evaluation.json").read_text())
    assert out.strip() == report.table().strip()
    assert {(row["network"], len(row["accuracies"])) for row in report.rows} == {("ConvNet-w0.06", 2)}
    assert "ConvNet-w0.06" in (run / "report.html").read_text()
    assert ld3m_command("evaluate", run, coloured_folder, options)[1] == out


def test_a_teacher_gives_soft_labels(small_run, ld3m_command, coloured_folder, tmp_path):
    run, teacher = Path(shutil.copytree(small_run, tmp_path / "run")), tmp_path / "teacher.safetensors"
    training = f"--network ConvNet-w0.06 --epochs 2 --resolution {ld3m.load(run).images.shape[-1]} --quiet --out"
    status, out, _ = ld3m_command("teacher", coloured_folder, training, teacher)
    assert status == 0
    assert f"use it with: ld3m evaluate RUN --labels soft --teacher {teacher}" in out
    options = "--protocol quick --networks ConvNet-w0.06 --repeats 2 --epochs 2 --quiet --labels soft --teacher"
    status, out, _ = ld3m_command("evaluate", run, options, teacher)
    assert status == 0
    report = ld3m.evaluation.Report.from_json((run / "evaluation-soft.json").read_text())
    assert out.strip() == report.table().strip()
    assert {row["teacher"] for row in report.rows} == {ld3m.evaluation.load_teacher(teacher).name}
    assert not (run / "evaluation.json").exists()
    assert "Accuracy with soft labels" in (run / "report.html").read_text()
    status, _, err = ld3m_command("evaluate", run, "--protocol rded --quiet")
    assert status == 2
    assert err == "ld3m: error: soft labels need a teacher; train one with `ld3m teacher`, or ask for hard labels\n"


def test_evaluate_of_no_run_exits_2(ld3m_command, tmp_path):
    status, _, err = ld3m_command("evaluate", tmp_path / "nowhere", "builtin")
    assert status == 2
    assert re.match(r"ld3m: error: .+nowhere is not a folder", err)


def test_export_writes_a_set(small_run, ld3m_command, tmp_path):
    status, out, _ = ld3m_command("export", small_run, "--to", tmp_path / "set")
    assert (status, out) == (0, f"exported to {tmp_path / 'set'}\n")
    assert sorted(str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").rglob("*.png")) == [
        "b/0.png", "g/0.png", "r/0.png",
    ]  # fmt: skip
    status, _, err = ld3m_command("export", small_run, "--to", tmp_path / "set", "--format safetensors")
    assert status == 2
    assert "is not empty" in err
    assert ld3m_command("export", small_run, "--to", tmp_path / "set", "--format safetensors --overwrite")[0] == 0
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"README.md", "images.safetensors"}


def test_experts_are_trained_and_used(ld3m_command, small, coloured_folder, tmp_path, monkeypatch):
    command = [
        "experts",
        coloured_folder,
        "--resolution 16 --width 4 --num-experts 1 --epochs 2 --quiet --out",
        tmp_path / "e",
    ]
    status, out, _ = ld3m_command(*command)
    assert (status, out) == (0, f"1 experts in {tmp_path / 'e'}\n")
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["expert-00000.safetensors"]
    monkeypatch.setattr(experts, "_train_epoch", None)  # both find what is there
    assert ld3m_command(*command)[0] == 0
    options = "--algorithm mtt --expert-epochs 1 --max-start-epoch 2 --student-steps 1 --experts"
    assert small(options, tmp_path / "e", "--out", tmp_path / "run")[0] == 0
    assert ld3m.load(tmp_path / "run").config["experts"] == str(tmp_path / "e")


@pytest.mark.parametrize(
    ("options", "width"), [("", 64), ("--resolution 128", 128), ("--width 8", 8), ("--network VGG11-w0.1", None)]
)
def test_experts_have_the_width_that_is_distilled_with(options, width, ld3m_command, coloured_folder, monkeypatch):
    asked = {}
    monkeypatch.setattr(experts, "train_experts", lambda *_, **settings: asked.update(settings))
    assert ld3m_command("experts", coloured_folder, options, "--out e")[0] == 0
    assert asked["width"] == width


PRIOR = "--resolution 16 --first-stage-steps 2 --first-stage-batch 4 --steps 2 --batch 4 --ch-mult 1 1 --num-heads 2"
PRIOR += " --model-channels 32 --channel-mult 1 --attention-levels 0 --context-dim 8 --ch 32 --quiet"


def test_a_prior_is_trained_and_distilled_with(ld3m_command, coloured_folder, small_options, tmp_path):
    status, out, _ = ld3m_command("prior train", coloured_folder, PRIOR, "--out", tmp_path / "p")
    assert status == 0
    folder = tmp_path / "p" / "prior"
    assert out == f"prior in {folder}; use it with: ld3m distill {coloured_folder} --prior {folder}\n"
    prior = ld3m.load_prior(folder)
    assert (prior.num_classes, prior.class_names, prior.native_resolution) == (3, ("b", "g", "r"), 16)
    options = small_options.replace("--class-ids 0 1 2", "--learn latents")
    status, _, err = ld3m_command("distill", coloured_folder, options, "--prior", folder, "--out", tmp_path / "run")
    assert status == 0, err
    assert torch.equal(ld3m.load(tmp_path / "run").conditioning, prior.embed(torch.arange(3)))


def test_ctrl_c_in_other_commands_exits_130(ld3m_command, coloured_folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "claimed_folder", interrupted)
    status, _, err = ld3m_command("prior train", coloured_folder, PRIOR, "--out", tmp_path / "p")
    assert (status, err.strip().splitlines()[-1]) == (130, "interrupted")


def test_info_names_what_there_is(ld3m_command):
    status, out, _ = ld3m_command("info")
    assert status == 0
    lines = dict(re.findall(r"^(\w+) +(.+)$", out, re.M))
    assert set(lines) == {"versions", "devices", "backends", "priors", "generators", "networks", "protocols", "decoded"}
    assert f"torch {torch.__version__.partition('+')[0]}" in lines["versions"]
    assert re.search(r"native: .*_C\S*\.so, CUDA: .*; triton: \d.*, kernels in \S+kernels", lines["backends"])
    assert "random:tiny" in lines["priors"]
    assert "random:stylegan-32" in lines["generators"]
    assert "ConvNet, AlexNet, VGG11, ResNet18, ViT" in lines["networks"]
    assert {"quick", "glad-hard"} <= set(lines["protocols"].split(", "))


def test_info_plans_a_budget_without_weights(ld3m_command):
    options = "--ipc 2 --num-classes 3 --steps 4 --real-batch 8 --network VGG11-w0.1 --resolution 32 --dtype bfloat16"
    status, out, _ = ld3m_command(f"info --budget 20MB --prior random:tiny {options}")
    assert status == 0
    prior = ld3m.load_prior("random:tiny", device="meta", dtype=torch.bfloat16).set_execution(ExecutionConfig())
    common = {"resolution": 32, "steps": 4, "ipc": 2, "num_classes": 3, "algorithm": "dc", "budget": "20MB"}
    plan = ld3m.plan_memory(prior, **common, network="VGG11-w0.1", real_batch=8)
    assert out.splitlines()[-1] == f"plan       {plan}"
    status, _, err = ld3m_command("info --budget lots --prior random:tiny")
    assert status == 2
    assert "memory_budget is a size such as" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--algorithm nonsense", "algorithm is one of dc, dm, mtt; got 'nonsense'"),
        ("--dtype half", "dtype is one of float32, bfloat16, float64; got 'half'"),
        ("--ipc 0", "ipc is a whole number, at least 1; got 0"),
    ],
)
def test_info_checks_the_settings_of_a_plan_that_it_does_not_make(options, message, ld3m_command):
    status, out, err = ld3m_command(f"info {options}")
    assert (status, out) == (2, "")
    assert message in err


def test_options_that_fit_the_settings_beneath_them_are_taken(small, ld3m_command, coloured_folder, tmp_path):
    """What they fit is said by the file or the stored run, not by the defaults."""
    (tmp_path / "config.yaml").write_text("steps: 100\n")
    status, _, err = ld3m_command(
        "sample", coloured_folder, "--prior random:tiny --evaluate none --stop 60", "--config", tmp_path / "config.yaml"
    )
    assert status == 2 and "no class of random:tiny matches" in err
    options = "--algorithm mtt --num-experts 1 --expert-epochs 1 --max-start-epoch 2 --student-steps 1"
    assert small(options, "--expert-training-epochs 2 --out", tmp_path / "run")[0] == 0
    status, _, err = ld3m_command("distill", coloured_folder, "--resume --out", tmp_path / "run", "--experts e")
    assert status == 2 and "these differ: experts None → 'e'" in err


def test_a_run_goes_on_from_another_folder(small, ld3m_command, coloured_folder, tmp_path, monkeypatch):
    given = tmp_path / "given"
    assert small("--out", given)[0] == 0
    monkeypatch.chdir(tmp_path)
    assert small("--init given --out", tmp_path / "run")[0] == 0
    monkeypatch.chdir("/")
    assert ld3m_command("distill", coloured_folder, "--quiet --resume --out", tmp_path / "run")[0] == 0
    assert small("--resume --out", tmp_path / "run", "--init", given)[0] == 0


def test_a_run_among_the_classes_of_its_data_is_refused(small_options, ld3m_command, coloured_folder, tmp_path):
    data = shutil.copytree(coloured_folder, tmp_path / "data")
    is_split = (data / "train").is_dir()
    inside = data / "train/run" if is_split else data / "run"
    status, _, err = ld3m_command("distill", data, small_options, "--out", inside)
    assert status == 2 and "where it would be read as a class; choose an --out elsewhere" in err
    assert not inside.exists()


def test_a_teacher_is_no_folder(ld3m_command, coloured_folder, tmp_path):
    status, _, err = ld3m_command("teacher", coloured_folder, "--resolution 16 --quiet --overwrite --out", tmp_path)
    assert status == 2 and "is a folder; name the file of the teacher" in err


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("prior train", "prior"),
        ("prior train", "r/prior"),
        ("experts", "experts"),
        ("teacher", "t/teacher.safetensors"),
    ],
)
def test_nothing_is_trained_into_the_data(command, out, ld3m_command, coloured_folder, tmp_path):
    """There previews would become a class, or images of one."""
    data = tmp_path / "data"
    shutil.copytree(coloured_folder / "train", data)
    before = sorted(data.rglob("*"))
    status, _, err = ld3m_command(command, data, "--out", data / out, "--quiet")
    assert status == 2
    where = data / out if command != "teacher" else (data / out).parent
    why = f"out {where} lies in the data {data}, where it would be read as a class; choose an --out elsewhere"
    assert err.splitlines()[-1] == f"ld3m: error: {why}"
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("left", [None, ".ld3m.json", ".config.yaml.12-0123abcd.tmp"])
@pytest.mark.parametrize("command", ["distill", "sample"])
def test_what_was_not_begun_is_not_resumed(command, left, ld3m_command, tmp_path):
    if left:
        (tmp_path / left).touch()
    status, _, err = ld3m_command(command, "--out", tmp_path, "--resume")
    line = f"ld3m: error: out {tmp_path} is empty: no run was begun there; leave --resume out to start one\n"
    assert (status, err) == (2, line)
    assert [path.name for path in tmp_path.iterdir()] == ([left] if left else [])


def test_a_users_files_are_not_overwritten(ld3m_command, tmp_path):
    files = {"config.yaml": "port: 80\n", "images/cats/holiday.png": "mine", "result.json": "mine"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    status, _, err = ld3m_command("distill", "--out", tmp_path, "--overwrite")
    assert status == 2 and "holds a config.yaml that is not of a run, so it is not replaced" in err
    assert {name: (tmp_path / name).read_text() for name in files} == files
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


def test_a_foreign_folder_is_scored_and_asks_for_its_data(ld3m_command, tmp_path):
    from PIL import Image

    for split, shade in (("set", 200), ("data/train", 190), ("data/test", 180)):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (shade, 90 * k, shade // 2)).save(tmp_path / split / name / "0.png")
    given, data = str(tmp_path / "set"), str(tmp_path / "data")
    options = "--protocol quick --networks ConvNet-w0.05 --epochs 2 --repeats 1 --baselines random --quiet"
    status, _, err = ld3m_command("evaluate", given, options)
    assert status == 2 and "is no run, which knows its data; name DATA" in err
    status, out, _ = ld3m_command("evaluate", given, data, options, "--out", str(tmp_path / "scored"))
    assert status == 0 and "Paired differences" in out
    assert (tmp_path / "scored" / "report.html").is_file() and not list((tmp_path / "set").glob("*.json"))
    status, _, err = ld3m_command("evaluate", given, data, "--classes imagewoof --quiet")
    assert status == 2 and "lacks 'n02096294'" in err
