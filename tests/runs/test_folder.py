"""The output folder of a run."""

import contextlib
import errno
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ld3m.config import DistillConfig, SampleConfig, to_yaml
from ld3m.errors import CheckpointError, ConfigError, Ld3mError
from ld3m.runs import folder as runs
from ld3m.runs.folder import RunFolder
from ld3m.runs.marker import ALWAYS_STORED
from ld3m.runtime import locks, storage
from ld3m.runtime.rows import RowFile

CONFIG = DistillConfig(lr=0.5, learn=("latents",), class_ids=(2, 1))


def claim(path, **options):
    return RunFolder(path, **{"resume": False, "overwrite": False} | options)


def started(path, **options):
    folder = claim(path, **options)
    folder.start("some/data", CONFIG, "1f")
    return folder


def visible(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*") if path.is_file()}


def metrics(folder):
    return [json.loads(line)["iteration"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_a_claim_writes_nothing(tmp_path):
    claim(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    claim(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_started_run_is_resumed_with_its_settings(tmp_path):
    assert not started(tmp_path / "a" / "run").is_resumed
    folder = claim(tmp_path / "a" / "run", resume=True)
    assert folder.is_resumed
    assert folder.stored(DistillConfig) == ("some/data", CONFIG)


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(
        ConfigError, match=r"out .+ exists and is not empty; choose another --out, .+--resume, .+--overwr"
    ):
        claim(tmp_path)
    with pytest.raises(ConfigError, match=r"is not empty and holds no config.yaml: not a run; choose another --out"):
        claim(tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"holds no config.yaml: not a run, so it is not replaced; choose another --"):
        claim(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    started(tmp_path).save_checkpoint(1, {"latents": torch.ones(2)})
    resumed = claim(tmp_path, resume=True)
    resumed.start("moved/data", CONFIG, "1f")
    assert resumed.load_checkpoint()[0] == 1
    resumed.start("some/data", CONFIG, "2e")
    with pytest.raises(ConfigError, match=r"resume needs the data that the run in .+ began with; this has"):
        resumed.load_checkpoint()


def test_refusals_say_what_is_wrong(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out .+file is a file; choose a folder"):
        claim(tmp_path / "file")
    with pytest.raises(
        ConfigError, match=r"out .+none is not there, so there is nothing to resume; leave --resume out"
    ):
        claim(tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match=r"resume and overwrite exclude each other"):
        claim(tmp_path, resume=True, overwrite=True)


LEFT = [
    ".config.yaml.tmp",
    ".config.yaml.12.tmp",
    ".config.yaml.12-0123abcd.tmp",
    ".tmpaB3dE6",
    ".ld3m.lock",
    ".ld3m.json",
]


@pytest.mark.parametrize("left", LEFT)
def test_what_a_killed_write_left_counts_as_empty(left, tmp_path):
    """A run killed before its settings were stored starts at the beginning, and is not there to be resumed."""
    (tmp_path / left).touch()
    with pytest.raises(ConfigError, match=r"out .+ is empty: no run was begun there; leave --resume out to start one"):
        claim(tmp_path, resume=True)
    folder = started(tmp_path)
    assert not folder.is_resumed
    assert claim(tmp_path, resume=True).stored(DistillConfig) == ("some/data", CONFIG)
    assert visible(tmp_path) == {"config.yaml"}


def test_what_killed_writes_left_in_a_run_goes_and_what_is_the_users_stays(tmp_path):
    started(tmp_path).close()
    header = (2).to_bytes(8, "little") + b"{}"
    left = [".checkpoint.safetensors.7.tmp", ".a.json.7-0123abcd.tmp", "images/a/.0.png.7-0123abcd.tmp", ".tmp0aZ9bY"]
    left += ["statistics/.class-00000.safetensors.7-0123abcd.d.tmp/.tmpAAAAAA", "experts/.tmpBBBBBB"]
    mine = [".tmpmine", ".tmpMyNote", ".notes.tmp", "images/a/.b.tmp", "mine/.a.json.7-0123abcd.tmp"]
    for name in left + mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"my notes ..." if name in mine else header)
    started(tmp_path, resume=True).close()
    assert [name for name in left + mine if (tmp_path / name).exists()] == mine
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [".notes.tmp"]


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    folder = started(tmp_path)
    folder.log({"iteration": 0})
    folder.save_checkpoint(1, {"latents": torch.zeros(1)})
    own = [
        "distilled.safetensors",
        "grid.png",
        "curves.png",
        "evaluation.json",
        "evaluation-soft.json",
        "evaluation-progress.json",
        "result.json",
    ]
    own += ["report.html", "images/a/0.png", "images/gone/7.png", "experts/expert-00003.safetensors"]
    own += ["statistics/class-00002.safetensors", "distilled.safetensors.partial"]
    foreign = ["x", "notes.md", "images/mine.png", "images/a/notes.txt", "experts/mine.safetensors", "deep/er/y.png"]
    foreign += [
        "images/a/holiday.png",
        "images/a/3rd.png",
        "statistics/mine.safetensors",
        "experts/expert-1b.safetensors",
    ]
    for name in own + foreign:
        storage.write_text(tmp_path / name, "")
    started(tmp_path, overwrite=True)
    assert visible(tmp_path) == {*foreign, "config.yaml"}


def test_overwrite_leaves_the_experts_that_are_used(tmp_path):
    started(tmp_path).close()
    storage.write_text(tmp_path / "experts" / "expert-00000.safetensors", "")
    config = DistillConfig(algorithm="mtt", experts=str(tmp_path / "experts"))
    claim(tmp_path, overwrite=True).start("d", config, "1f")
    assert (tmp_path / "experts" / "expert-00000.safetensors").is_file()


def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path):
    folder = started(tmp_path)
    assert folder.load_checkpoint() is None
    tensors = {"latents": torch.randn(2, 3), "momentum/latents": torch.randn(2, 3), "student_lr": torch.tensor(0.5)}
    folder.save_checkpoint(3, {"latents": torch.zeros(1)})
    folder.save_checkpoint(17, tensors)
    iteration, loaded = started(tmp_path, resume=True).load_checkpoint()
    assert iteration == 17
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors.items())
    about = json.loads((tmp_path / "checkpoint.json").read_text())
    assert about == {"iteration": 17, "tensors": ["latents", "momentum/latents", "student_lr"]}


@pytest.mark.parametrize(("iteration", "kept"), [(None, []), (0, []), (2, [0, 1]), (5, [0, 1, 2, 3])])
def test_metrics_after_the_checkpoint_are_dropped(iteration, kept, tmp_path):
    folder = started(tmp_path)
    for k in range(4):
        folder.log({"iteration": k, "loss": 1.5})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"loss": 2}\n{"iteration": 1, "lo')  # not of a run; torn by a kill
    if iteration is not None:
        folder.save_checkpoint(iteration, {})
    started(tmp_path, resume=True).load_checkpoint()
    assert metrics(folder) == kept


def test_a_foreign_or_damaged_checkpoint_is_named(tmp_path):
    folder = started(tmp_path)
    storage.save_tensors(tmp_path / "checkpoint.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is not a checkpoint of a run; start again"):
        folder.load_checkpoint()
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is not a whole safetensors file"):
        folder.load_checkpoint()


def test_damaged_settings_are_named(tmp_path):
    started(tmp_path)
    (tmp_path / "config.yaml").write_text("data: x\nitterations: 3\n")
    with pytest.raises(ConfigError, match="'itterations' is not a setting"):
        claim(tmp_path, resume=True).stored(DistillConfig)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    folder = started(tmp_path)
    folder.save_checkpoint(1, {"latents": torch.ones(2)})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(Ld3mError, match=r"could not write .+checkpoint.safetensors: No space left.+; the disk is full"):
        folder.save_checkpoint(2, {"latents": torch.zeros(2)})
    monkeypatch.undo()
    iteration, tensors = folder.load_checkpoint()
    assert (iteration, tensors["latents"].tolist()) == (1, [1.0, 1.0])


def test_no_permission_is_clear(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    folder = claim(tmp_path / "new")
    monkeypatch.setattr(runs.Path, "mkdir", refuse)
    with pytest.raises(Ld3mError, match=r"could not write .+new: Permission denied; no permission .+ another folder"):
        folder.start("d", CONFIG, "1f")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(Ld3mError, match=r"could not write .+metrics.jsonl: Permission denied"):
        folder.log({})


USERS_FILES = {
    "a service": "port: 80\n",
    "another trainer": "data: photos\nlr: 0.1\nseed: 0\niterations: 5\n",
    "no mapping": "- 1\n- 2\n",
    "nothing": "",
    "no YAML": "a: [",
    "all settings and one more": "".join(f"{name}: 1\n" for name in (*sorted(ALWAYS_STORED), "port")),
}


@pytest.mark.parametrize("content", USERS_FILES.values(), ids=USERS_FILES)
@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}], ids=str)
def test_a_config_yaml_alone_is_no_run(options, content, tmp_path):
    files = {"config.yaml": content, "images/cats/0.png": "mine", "statistics/class-00000.safetensors": "mine"}
    files |= {"result.json": "mine", "experts/expert-00000.safetensors": "mine"}
    for name, text in files.items():
        storage.write_text(tmp_path / name, text)
    with pytest.raises(ConfigError, match=r"holds a config.yaml that is not of a run.*; choose another --out"):
        claim(tmp_path, **options)
    assert {name: (tmp_path / name).read_text() for name in visible(tmp_path)} == files


def test_a_run_of_the_release_before_is_known_by_its_settings(tmp_path):
    for name, kind in (("a", DistillConfig()), ("b", SampleConfig())):
        storage.write_text(tmp_path / name / "config.yaml", to_yaml(kind, data="d"))
        started(tmp_path / name, resume=True).close()
        assert (tmp_path / name / ".ld3m.json").is_file()
        (tmp_path / name / ".ld3m.json").unlink()
        started(tmp_path / name, overwrite=True).close()


def test_a_config_of_something_else_in_place_of_a_runs_is_not_overwritten(tmp_path):
    started(tmp_path).close()
    (tmp_path / "config.yaml").write_text("port: 80\n")
    with pytest.raises(ConfigError, match=r"holds a config.yaml that is not of a run, so it is not replaced"):
        claim(tmp_path, overwrite=True)


def test_links_out_of_the_folder_are_not_followed_when_a_run_is_replaced(tmp_path):
    storage.write_text(tmp_path / "photos" / "0.png", "mine")
    started(tmp_path / "run").close()
    (tmp_path / "run" / "images").mkdir()
    (tmp_path / "run" / "images" / "a").symlink_to(tmp_path / "photos")
    started(tmp_path / "run", overwrite=True).close()
    assert (tmp_path / "photos" / "0.png").read_text() == "mine"


OTHER = DistillConfig(lr=0.25)


@pytest.mark.parametrize("call", range(12))
def test_an_overwrite_that_is_killed_leaves_the_old_run_or_the_new_one(call, tmp_path, monkeypatch):
    """Whichever rename or removal is the last that happens: all of the former run is there, or the new one goes on."""
    folder = started(tmp_path)
    folder.log({"iteration": 0})
    folder.save_checkpoint(1, {"latents": torch.zeros(1)})
    storage.write_text(tmp_path / "images" / "a" / "0.png", "")
    folder.close()
    before, left = visible(tmp_path), iter(range(call))

    def only_some(function):
        def wrapped(*args, **kwargs):
            if next(left, None) is None:
                raise SystemExit
            return function(*args, **kwargs)

        return wrapped

    folder = claim(tmp_path, overwrite=True)
    with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(storage.os, "replace", only_some(os.replace))
        unlink = only_some(runs.Path.unlink)
        hidden = (".lock", ".tmp")
        patch.setattr(
            runs.Path,
            "unlink",
            lambda path, **how: (
                (os.unlink(path) if path.exists() else None) if path.name.endswith(hidden) else unlink(path, **how)
            ),
        )
        folder.start("other/data", OTHER, "1f")
    folder.close()
    resumed = claim(tmp_path, resume=True)
    stored = resumed.stored(DistillConfig)
    resumed.start(*stored, "1f")
    if stored == ("some/data", CONFIG):
        assert visible(tmp_path) == before
        assert resumed.load_checkpoint()[0] == 1
    else:
        assert stored == ("other/data", OTHER)
        assert visible(tmp_path) == {"config.yaml"}
        assert resumed.load_checkpoint() is None
    resumed.close()
    again = claim(tmp_path, overwrite=True)
    again.start("third", CONFIG, "1f")
    assert visible(tmp_path) == {"config.yaml"}
    assert claim(tmp_path, resume=True).stored(DistillConfig) == ("third", CONFIG)


def in_thread(function):
    """Return what a call in a thread of its own, which is another owner, raises; None for nothing."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).exception()


def test_a_folder_has_one_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    late = claim(tmp_path / "run")  # which found nothing there
    first = started(tmp_path / "run")
    who = rf"{tmp_path}/run is being written by process {os.getpid()} on \S+ \(.+\); let that end, or choose another .+"
    for other in (
        lambda: claim(tmp_path / "run", resume=True),
        lambda: claim(tmp_path / "run", overwrite=True),
        lambda: late.start("other/data", OTHER, "1f"),
    ):
        error = in_thread(other)
        assert isinstance(error, ConfigError) and re.fullmatch(who, str(error))
    first.close()
    assert not (tmp_path / "run" / ".ld3m.lock").exists()
    assert in_thread(lambda: started(tmp_path / "run", resume=True).close()) is None
    with pytest.raises(ConfigError, match="exists and is not empty"):
        late.start("other/data", OTHER, "1f")
    assert claim(tmp_path / "run", resume=True).stored(DistillConfig) == ("some/data", CONFIG)


def test_settings_that_change_before_the_run_goes_on_are_noticed(tmp_path):
    started(tmp_path).close()
    resumed = claim(tmp_path, resume=True)
    started(tmp_path, overwrite=True).close()
    resumed.start("d", CONFIG, "1f")  # the same
    claim(tmp_path, overwrite=True).start("other/data", OTHER, "1f")
    with pytest.raises(ConfigError, match=r"config.yaml was changed while this run was getting ready; start again"):
        resumed.start("some/data", CONFIG, "1f")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: folder.log({"iteration": 0}),
        lambda folder: folder.save_checkpoint(1, {}),
        lambda folder: storage.write_json(folder.path / "evaluation.json", {}),
        lambda folder: storage.write_text(folder.path / "images" / "a" / "0.png", ""),
        lambda folder: RowFile(folder.path / "rows", {"a": (torch.int64, (1,))}, {}),
        lambda folder: None,
    ],
)
@pytest.mark.parametrize("is_made_anew", [False, True])
def test_a_folder_that_is_removed_is_not_made_anew(write, is_made_anew, tmp_path):
    folder = started(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    if is_made_anew:
        (tmp_path / "run").mkdir()
    with pytest.raises(Ld3mError, match=r"run was removed while it was written|could not write"), folder:
        write(folder)
    assert (tmp_path / "run").exists() == is_made_anew


def test_a_note_that_a_kill_left_behind_is_brought_up_to_date(tmp_path, monkeypatch):
    folder = started(tmp_path)
    folder.save_checkpoint(1, {"latents": torch.zeros(1)})
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_note", lambda *_: None)
        folder.save_checkpoint(2, {"latents": torch.zeros(1)})
    assert json.loads((tmp_path / "checkpoint.json").read_text())["iteration"] == 1
    for damage in ("", "[", '{"iteration": 2}'):
        folder.load_checkpoint()
        assert json.loads((tmp_path / "checkpoint.json").read_text()) == {"iteration": 2, "tensors": ["latents"]}
        (tmp_path / "checkpoint.json").write_text(damage)


def test_lines_that_are_missing_are_said_and_doubled_ones_go(tmp_path, caplog):
    folder = started(tmp_path)
    folder.save_checkpoint(4, {})
    lines = ['{"iteration": 0, "loss": 1}', '{"iteration": 2, "loss": 2}', '{"iteration": 2, "loss": 3}', "\xff\xfe"]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([*lines, '{"iteration": true}', ""]).encode("latin-1"))
    folder.load_checkpoint()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [lines[0], lines[2]]
    assert "metrics.jsonl lacks 2 of 4 iterations that are done" in caplog.text


def test_metrics_are_synced_before_the_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    folder, synced, fsync = started(tmp_path), [], os.fsync
    folder.log({"iteration": 0})
    monkeypatch.setattr(storage.os, "fsync", lambda d: (synced.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    folder.save_checkpoint(1, {})
    assert synced[0] == str(tmp_path / "metrics.jsonl")
    assert ".checkpoint.safetensors." in synced[1]
