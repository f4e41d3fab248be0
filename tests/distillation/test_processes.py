"""A distillation in several processes is that of one, to the byte; and what happens when one of them ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ld3m.runs.pictures import save_png, to_pillow

sys.path.insert(0, str(Path(__file__).parent))
from processes_worker import CASES, digests, run

ROOT = Path(__file__).parents[2]
OPTIONS = "--prior random:tiny --algorithm dm --steps 1 --width 4 --ipc 2 --device cpu --evaluate none --quiet"


def torchrun(count: int, *arguments: object, **more) -> subprocess.Popen:
    """Start a script or a module in several processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in command], env=environment, cwd=ROOT, **pipes, **more)


@pytest.fixture(scope="module")
def single_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, single_thread) -> Path:
    """All cases in one process, in two, and in three: folders 1, 2 and 3."""
    root = tmp_path_factory.mktemp("processes")
    for name in CASES:
        run(name, root / "1")
    for count in (2, 3):
        process = torchrun(count, Path(__file__).with_name("processes_worker.py"), root / str(count), *CASES)
        _, said = process.communicate(timeout=300)
        assert not process.returncode, said
    return root


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_bytes_of_one_process(name, count, runs):
    """Latents, conditioning, momentum, images, pictures and settings of uneven classes in every space."""
    want = digests(runs / "1" / name)
    assert {"checkpoint.safetensors", "config.yaml", "distilled.safetensors"} < want.keys()
    assert digests(runs / str(count) / name) == want


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_norms_of_one_process(name, count, runs):
    alone, several = (
        [json.loads(line) for line in (runs / folder / name / "metrics.jsonl").read_text().splitlines()]
        for folder in ("1", str(count))
    )
    assert len(alone) == len(several) > 0
    for a, b in zip(alone, several, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds"}:
            assert b[key] == pytest.approx(a[key], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_accuracies_of_one_process(count, runs):
    alone, several = (
        json.loads((runs / folder / "evaluated" / "evaluation.json").read_text()) for folder in ("1", str(count))
    )
    assert len(several["rows"]) == 3
    assert several["rows"] == alone["rows"]
    assert (runs / str(count) / "evaluated" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_what_is_sent(count, runs):
    """A status, whether a checkpoint is due, the loss and a norm for each parameter; images for trajectories alone."""
    sent = json.loads((runs / str(count) / "sent.json").read_text())
    for name, norms in {"dm": 2, "dc": 2, "autoencoder": 1, "pixel": 1}.items():
        assert sent[name] == [count * 8 * (2 + 1 + norms)] * 3
    images = 24 * 3 * 16 * 16 * 4
    assert sent["mtt"] == [count * 8, images, count * 8 * (2 + 1 + 3)] * 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Six classes of five pictures."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for label in range(6):
        for k in range(5):
            save_png(root / f"class{label}" / f"{k}.png", to_pillow(torch.rand(3, 16, 16, generator=generator)))
    return root


@pytest.fixture(scope="module")
def command(pictures):
    """The words of a distillation of three groups of two classes."""
    more = "--classes-in-flight 2 --class-ids 0 1 2 3 0 1"
    return lambda out, iterations: [
        "-m", "ld3m", "distill", pictures, *f"{OPTIONS} {more} --iterations {iterations} --out {out}".split(),
    ]  # fmt: skip


def wait_for_lines(folder: Path, count: int, process: subprocess.Popen) -> None:
    path = folder / "metrics.jsonl"
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def children_of(process: subprocess.Popen) -> list[int]:
    """Return the processes that torchrun started, in the order of their ranks."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for pid in map(int, found):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {int(word[5:]): pid for word in words if word.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["killed 0", "killed 1", "terminated"])
def test_ended_and_gone_on_with(ending, command, tmp_path):
    """A killed process ends all within seconds; SIGTERM keeps the last whole iteration; others may go on with it."""
    process = torchrun(2, *command(tmp_path / "run", 400))
    wait_for_lines(tmp_path / "run", 3, process)
    started = time.monotonic()
    if ending == "terminated":
        process.send_signal(signal.SIGTERM)
    else:
        os.kill(children_of(process)[int(ending[-1])], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode
    assert time.monotonic() - started < 30
    assert not [path for path in (tmp_path / "run").rglob("*.tmp")]
    done = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert 3 <= done < 400
    if ending == "terminated":
        assert json.loads((tmp_path / "run" / "checkpoint.json").read_text())["iteration"] == done
    assert said.count("go on with: torchrun") == (ending != "killed 0")


@pytest.mark.slow
def test_resumed_with_another_number(command, tmp_path):
    """Four iterations in two processes and two more in three, then one: the run of six in one."""
    for count, iterations, resume in ((2, 4, []), (3, 5, ["--resume"]), (1, 6, ["--resume"])):
        process = torchrun(count, *command(tmp_path / "parts", iterations), *resume)
        _, said = process.communicate(timeout=120)
        assert not process.returncode, said
    process = torchrun(1, *command(tmp_path / "whole", 6))
    assert not process.wait(120)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more, reason",
    [
        ("--algorithm dx", "algorithm is one of"),
        ("--steps none", "steps"),
        ("--classes-in-flight 6", "2 processes share 1 groups of classes or images; start at most 1"),
    ],
)
def test_a_refusal_is_said_once(more, reason, command, tmp_path):
    process = torchrun(2, *command(tmp_path / "run", 2), *more.split())
    out, said = process.communicate(timeout=120)
    assert process.returncode
    assert out == ""
    assert said.count("ld3m: error: ") == 1
    assert reason in said
    assert not (tmp_path / "run").exists()
