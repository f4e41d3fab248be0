"""Compare the selectors of real images: `ld3m select` by each of them, evaluated by one protocol.

    python -m benchmarks.select_real --state DIR [--data DATA] [--ipc N ...] [--networks NAME ...] [--repeats N]
        [--protocol NAME] [--out FILE]

The teacher, the sets and every training are kept in DIR as soon as they are done, and are not done again: the same
command goes on where it was stopped. Prints a Markdown table for each number of images per class of which all trainings
of a network are there: mean ± standard error over the repeats of the mean over these networks, and the paired
difference to `random` (a repeat has the same weights and augmentation on every set). `--out` writes all of it as JSON.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev

import ld3m
from ld3m.config import TeacherTraining
from ld3m.data import Dataset, load
from ld3m.evaluation import evaluate, train_teacher
from ld3m.runtime.storage import write_json, write_text
from ld3m.selection import SELECTIONS

NETWORKS = ("ConvNet-w0.5", "ResNet18-w0.5", "VGG11-w0.5", "AlexNet-w0.5")
PLAIN = "kmeans without weights"


def sets_of(data: Dataset, ipc: int, state: Path) -> dict[str, Path]:
    """Choose the sets that are not there yet, by one teacher and one measurement of each kind; return their folders."""
    teacher = state / "teacher.safetensors"
    if not teacher.is_file():
        train_teacher(data, teacher, TeacherTraining("ConvNet-w0.5"), progress=False)
    found: dict[str, Path] = {}
    for by, selection in SELECTIONS.items():
        if by == "random":  # drawn anew for every repeat, by the evaluation
            continue
        out, settings = state / f"{by}-ipc{ipc}", {"by": by, "ipc": ipc, "evaluate": "none", "progress": False}
        if selection.judge == "teacher":
            settings["teacher"] = teacher
        shared = next((p for p in sorted(state.glob("*/scores")) if _measured(p) == selection.measured), None)
        if shared is not None and selection.measured not in ("", "crops") and shared.parent != out:
            settings["scores_from"] = shared
        is_begun = (out / "config.yaml").is_file()
        ld3m.select(data, out=out, **({"resume": True, "progress": False} if is_begun else settings))
        found[by] = out
    return found


def _measured(scores: Path) -> str | None:
    """Return what a folder of scores of a whole run is of."""
    by = scores.parent.name.partition("-")[0]
    return SELECTIONS[by].measured if (scores.parent / "distilled.safetensors").is_file() else None


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Do the trainings that are not there yet; return accuracies by "ipc/set/network"."""
    path = arguments.state / "accuracies.json"
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}
    data = load(arguments.data, resolution=arguments.resolution)
    for ipc in arguments.ipc:
        folders = sets_of(data, ipc, arguments.state)
        for network in arguments.networks:
            for name, folder in [("random", folders["easy"]), *folders.items(), (PLAIN, folders["kmeans"])]:
                key = f"{ipc}/{name}/{network}"
                if key in known or (name == PLAIN and ipc == 1):
                    continue
                options = {"protocol": arguments.protocol, "networks": [network], "repeats": arguments.repeats}
                baselines = ("random",) if name == "random" else ()
                result = ld3m.load(folder)
                if name == PLAIN:
                    result = ld3m.Result(**{**vars(result), "weights": None})
                report = evaluate(result, data, **options, baselines=baselines, progress=False)
                for row in report.rows:
                    own = name if row["set"] == "selected" and name != "random" else row["set"]
                    known[f"{ipc}/{'easy' if own == 'selected' else own}/{network}"] = row["accuracies"]
                write_json(path, known)
                print(key, known[key], flush=True)
    return known


def table(known: dict[str, list[float]], ipc: int, networks: list[str]) -> str:
    """Return the table of a number of images per class, over the networks of which all sets are there."""
    names = list(dict.fromkeys(key.split("/")[1] for key in known if key.startswith(f"{ipc}/")))
    whole = [network for network in networks if all(f"{ipc}/{name}/{network}" in known for name in names)]
    if not whole or "random" not in names:
        return ""
    lines = [f"{ipc} per class, {', '.join(whole)}:", "", "| set | accuracy | difference to random |", "|---|---|---|"]
    means = {name: _over([known[f"{ipc}/{name}/{network}"] for network in whole]) for name in names}
    for name, own in means.items():
        gaps = [mine - other for mine, other in zip(own, means["random"], strict=True)]
        lines.append(f"| {name} | {_text(own)} | {'' if name == 'random' else _text(gaps, '+')} |")
    return "\n".join([*lines, ""])


def _over(rows: list[list[float]]) -> list[float]:
    return [fmean(repeat) for repeat in zip(*rows, strict=True)]


def _text(values: list[float], sign: str = "") -> str:
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{fmean(values):{sign}.1f} ± {error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    known = measure(arguments)
    text = "\n".join(filter(None, (table(known, ipc, arguments.networks) for ipc in arguments.ipc)))
    print(f"\n{text}")
    write_text(arguments.state / "table.md", text)
    if arguments.out:
        settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("state", "out")}
        write_json(arguments.out, {"settings": settings, "accuracies": known})


if __name__ == "__main__":
    main()
