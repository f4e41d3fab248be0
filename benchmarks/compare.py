"""Make one data set in several ways and evaluate each under one protocol, beside real images.

    python benchmarks/compare.py NAME [shared settings as name=value …] [--networks …] [--teacher FILE] [--dtype …]

NAME is a list of variants below; a teacher gives soft labels. Sets lie in runs/compare-NAME-<settings>/<variant>, with
the accuracies of their finished trainings, so that a broken-off comparison goes on, and no training is done twice when
networks are added to the command. The table goes to benchmarks/results/NAME-<settings>[-soft][-bfloat16].json and .md,
as far as it is known. Its ± is over trainings: every variant is one set, made from one seed.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import yaml

import ld3m
from ld3m.config import EvaluateConfig
from ld3m.evaluation import load_teacher
from ld3m.evaluation.comparison import Comparison
from ld3m.evaluation.gathering import gather
from ld3m.evaluation.inputs import open_inputs
from ld3m.evaluation.progress import Progress
from ld3m.evaluation.protocols import find
from ld3m.runs.facts import versions
from ld3m.runtime.devices import resolve_device

VARIANTS = {
    # What the skip, the chain and the prior are worth, everything else equal.
    "spaces": {
        "ld3m": {},
        "no injection": {"injection": "none"},
        "conditioning only": {"learn": ("conditioning",)},
        "autoencoder": {"space": "autoencoder"},
        "pixel": {"space": "pixel"},
    },
    "algorithms": {"dc": {"algorithm": "dc"}, "dm": {"algorithm": "dm"}, "mtt": {"algorithm": "mtt"}},
    # At the paper's resolution, on priors of random weights, as in its rows "Random".
    "random-priors": {
        "ld3m, ffhq256": {"prior": "random:ffhq256-released"},
        "ld3m, cin256": {"prior": "random:cin256"},
        "autoencoder": {"prior": "random:cin256", "space": "autoencoder"},
        "pixel": {"space": "pixel"},
    },
    # D3HR and its alternatives, by `ld3m.sample_dataset`, beside LD3M.
    "selectors": {
        "one group": {"selector": "random"},
        "best of 1e3 groups": {"selector": "group", "groups": 1000},
        "best of 1e5 groups": {"selector": "group"},
        "moments": {"selector": "moments"},
        "noised k-means": {"selector": "kmeans"},
        "ld3m": {},
        "ld3m from k-means": {"init": "kmeans"},  # which, for several images per class, are not those of the baseline
        "ld3m, dm, from k-means": {"algorithm": "dm", "init": "kmeans"},
    },
}
BASELINES = {"random": "random real", "kmeans": "k-means real"}
# Differences worth quoting, taken repeat by repeat: networks start from the same weights on every set.
PAIRS = {
    "spaces": [("ld3m", name) for name in ("no injection", "conditioning only", "autoencoder", "pixel")],
    "selectors": [
        ("moments", "best of 1e5 groups"),
        ("best of 1e5 groups", "one group"),
        ("noised k-means", "moments"),
        ("k-means real", "noised k-means"),
        ("ld3m", "moments"),
        ("ld3m", "k-means real"),
        ("ld3m from k-means", "ld3m"),
        ("ld3m from k-means", "k-means real"),
        ("ld3m, dm, from k-means", "ld3m from k-means"),
        ("ld3m, dm, from k-means", "k-means real"),
    ],
}
# Settings that the statistics of a class follow from.
_OF_STATISTICS = (
    "prior", "prior_config", "resolution", "class_ids", "steps", "stop", "inversion_guidance", "real_images", "dtype",
    "seed", "holdout",
)  # fmt: skip
Rows = dict[str, dict[str, list[float]]]  # accuracies of the repeats, by set and network


def make(data: str, out: Path, settings: dict[str, object]) -> ld3m.runs.result.Result:
    """Make one set, or go on with it, which refuses one of other settings or data; all that are sampled share the
    statistics of the classes, which are most of the work."""
    options = {"resume": out.is_dir(), "evaluate": "none"}
    if "selector" not in settings:
        return ld3m.distill(data, out=out, **options, **settings)
    if settings["selector"] == "kmeans":  # which inverts nothing
        return ld3m.sample_dataset(data, out=out, **options, **settings)
    shared = {name: settings[name] for name in _OF_STATISTICS if name in settings}
    first = Path("runs") / "-".join(["statistics", Path(data).stem, *map(str, shared.values())]).replace("/", "-")
    ld3m.sample_dataset(data, out=first, selector="random", resume=first.is_dir(), evaluate="none", **shared)
    return ld3m.sample_dataset(data, out=out, statistics=str((first / "statistics").resolve()), **options, **settings)


def judge(out: Path, arguments: argparse.Namespace, network: str, baselines: tuple[str, ...]) -> ld3m.evaluation.Report:
    """Train the network on the set, and on real images where asked; what was done before is taken from the folder.

    The real images stand beside the first set alone: for all sets of a size they are the same trainings.
    """
    result, dataset, _ = open_inputs(out, arguments.data)
    teacher = load_teacher(arguments.teacher) if arguments.teacher else None
    protocol = find(arguments.protocol).with_labels("soft" if teacher else None).with_dtype(arguments.dtype)
    classes = len(dataset.class_names)
    protocol = protocol.for_set(len(result.labels) // classes, classes, dataset.resolution)
    device = resolve_device(None)
    config = EvaluateConfig(networks=(network,), repeats=arguments.repeats, baselines=baselines)
    comparison = Comparison(result, dataset, protocol, config, device, teacher)
    finished = Progress(out, comparison.key())
    comparison.run(finished, device.type != "cpu", show=False)
    return gather(comparison, finished, 0.0)


def table(rows: Rows, networks: list[str], pairs: Sequence[tuple[str, str]]) -> str:
    """Return the accuracies as Markdown, mean ± standard error, and under them the differences of the known pairs."""
    lines = [f"| set | {' | '.join(networks)} | mean |", "|---" * (len(networks) + 2) + "|"]
    for name, by_network in rows.items():
        lines.append(f"| {name} | {' | '.join(_cells(by_network, networks))} |")
    for pair in pairs:
        if not all(rows.get(name) for name in pair):
            continue
        differences = {
            network: [a - b for a, b in zip(*(rows[name][network] for name in pair), strict=True)]
            for network in networks
            if all(network in rows[name] for name in pair)
        }
        lines.append(f"| *{pair[0]} − {pair[1]}* | {' | '.join(_cells(differences, networks, '+'))} |")
    return "\n".join(lines)


def _cells(by_network: dict[str, list[float]], networks: list[str], sign: str = "") -> list[str]:
    columns = [by_network.get(network) for network in networks]
    columns.append([fmean(repeat) for repeat in zip(*columns, strict=True)] if all(columns) else None)
    return [f"{fmean(c):{sign}.1f} ± {stdev(c) / len(c) ** 0.5:.1f}" if c else "" for c in columns]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--networks", nargs="+", help="those of the protocol when not given")
    parser.add_argument("--variants", nargs="+", help="all when not given")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--teacher", help="file of `ld3m teacher`: soft labels")
    parser.add_argument("--dtype", default="float32", help="of the trainings: float32 or bfloat16")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    parser.add_argument("settings", nargs="*", help="name=value, values as in YAML")
    arguments = parser.parse_args()
    if wrong := [setting for setting in arguments.settings if "=" not in setting]:
        sys.exit(f"settings are name=value; got {' '.join(wrong)}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    shared = {name: yaml.safe_load(value) for name, value in (setting.split("=", 1) for setting in arguments.settings)}
    networks = list(arguments.networks or find(arguments.protocol).networks)
    variants = VARIANTS[arguments.name]
    variants = {name: variants[name] for name in arguments.variants or variants}
    if arguments.repeats < 2:
        sys.exit(f"--repeats is at least 2, for the table has standard errors; got {arguments.repeats}")
    if find(arguments.protocol).labels == "soft" and not arguments.teacher:
        sys.exit(f"--protocol {arguments.protocol} has soft labels: name a --teacher, made by `ld3m teacher`")
    named = {Path(arguments.data).stem: "builtin", arguments.protocol: "quick"}  # said where they are others
    parts = [name for name, default in named.items() if name != default]
    parts += [setting.replace("=", "").replace("/", "-") for setting in arguments.settings]
    label = "-".join([arguments.name, *parts])
    outs = {variant: Path("runs") / f"compare-{label}" / re.sub(r"\W+", "-", variant) for variant in variants}
    for variant, settings in variants.items():
        make(arguments.data, outs[variant], shared | settings)

    names = list(BASELINES.values()) + list(variants)
    rows: Rows = {name: {} for name in names}
    about: dict[str, object] = {}
    for network, (number, variant) in ((n, v) for n in networks for v in enumerate(variants)):
        report = judge(outs[variant], arguments, network, () if number else tuple(BASELINES))
        for row in report.rows:
            rows[BASELINES.get(row["set"], variant)][network] = row["accuracies"]
        about = {
            "protocol": report.protocol,
            **{k: report.about.get(k) for k in ("data", "teacher", "device", "threads")},
        }
        print(f"{network}, {variant}: {report.rows[0]['mean']:.1f}", flush=True)
        write(arguments, label, rows, networks, about, outs)
    print(table(rows, networks, PAIRS.get(arguments.name, ())))


def write(
    arguments: argparse.Namespace, label: str, rows: Rows, networks: list[str], about: object, outs: dict[str, Path]
) -> None:
    """Write what is known so far, with all that a reader needs to judge it."""
    words = ["python benchmarks/compare.py", arguments.name, *arguments.settings, "--networks", *networks]
    words += ["--variants", *(f"'{name}'" for name in outs)] if arguments.variants else []
    words += ["--data", Path(arguments.data).name, "--protocol", arguments.protocol]
    words += ["--dtype", arguments.dtype] if arguments.dtype != "float32" else []
    words += ["--teacher", Path(arguments.teacher).name] if arguments.teacher else []
    made = {variant: json.loads((out / "result.json").read_text()) for variant, out in outs.items()}
    content = {
        "command": " ".join(words),
        "cores": os.cpu_count(),
        "versions": versions(),
        **about,
        "accuracies": rows,
        "sets": made,
    }
    name = label + ("-soft" if arguments.teacher else "")
    name += f"-{arguments.dtype}" if arguments.dtype != "float32" else ""
    text = table(rows, networks, PAIRS.get(arguments.name, ()))
    (arguments.results / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (arguments.results / f"{name}.md").write_text(f"`{content['command']}`\n\n{text}\n")


if __name__ == "__main__":
    main()
