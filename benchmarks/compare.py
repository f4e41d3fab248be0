"""Distil one data set in several ways and evaluate each under one protocol, beside real images.

    python benchmarks/compare.py NAME [--data DATA] [--protocol quick] [-- shared settings as name=value]

NAME is a list of variants below. Every run lies in runs/compare-NAME/<variant>; finished ones are kept, so that a
broken-off comparison goes on. The table goes to benchmarks/results/NAME.json and .md.
"""

import argparse
import json
import os
from pathlib import Path

import yaml

import ld3m
from ld3m.evaluation import Report
from ld3m.finishing import versions

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
    # D3HR and its alternatives, by `ld3m.sample_dataset`, beside LD3M.
    "selectors": {
        "one group": {"selector": "random"},
        "best of 1e3 groups": {"selector": "group", "groups": 1000},
        "best of 1e5 groups": {"selector": "group"},
        "moments": {"selector": "moments"},
        "noised k-means": {"selector": "kmeans"},
        "ld3m": {},
    },
}
BASELINES = {"random": "random real", "kmeans": "k-means real"}


def make(data: str, out: Path, settings: dict[str, object]) -> ld3m.result.Result:
    """Make one set; all that are sampled share the statistics of the classes, which are most of the work."""
    options = {"resume": out.is_dir(), "evaluate": "none"}
    if "selector" not in settings:
        return ld3m.distill(data, out=out, **options, **settings)
    first = Path("runs") / f"statistics-{Path(data).stem}"
    ld3m.sample_dataset(data, out=first, selector="random", resume=first.is_dir(), evaluate="none")
    return ld3m.sample_dataset(data, out=out, statistics=str(first / "statistics"), **options, **settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--networks", nargs="+", help="those of the protocol when not given")
    parser.add_argument("--label", help="name of the result files")
    parser.add_argument("settings", nargs="*", help="name=value, values as in YAML")
    arguments = parser.parse_args()
    shared = {name: yaml.safe_load(value) for name, value in (setting.split("=", 1) for setting in arguments.settings)}
    label = arguments.label or arguments.name

    lines, rows, baselines_done = [], {}, False
    for variant, settings in VARIANTS[arguments.name].items():
        out = Path("runs") / f"compare-{label}" / variant.replace(" ", "-")
        result = make(arguments.data, out, shared | settings)
        path = out / "evaluation.json"
        if path.is_file():
            report = Report.from_json(path.read_text())
        else:
            report = ld3m.evaluate(
                out,
                arguments.data,
                protocol=arguments.protocol,
                networks=arguments.networks,
                baselines=() if baselines_done else tuple(BASELINES),
            )
        baselines_done = True
        for row in report.rows:
            name = BASELINES.get(row["set"], variant)
            rows.setdefault(name, {})[row["network"]] = (row["mean"], row["std"])
        for name, score in report.unseen.items():
            rows[BASELINES.get(name, variant)]["unseen mean"] = score
        print(f"{variant}: {report.unseen}", flush=True)
        lines.append({"variant": variant, "settings": dict(result.config), "evaluation": json.loads(report.to_json()),
                      "run": json.loads((out / "result.json").read_text())})  # fmt: skip

    columns = list(next(iter(rows.values())))
    table = [f"| set | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, cells in rows.items():
        table.append(f"| {name} | " + " | ".join(f"{cells[k][0]:.1f} ± {cells[k][1]:.1f}" for k in columns) + " |")
    results = Path(__file__).parent / "results"
    command = f"python benchmarks/compare.py {arguments.name} --data {Path(arguments.data).name} --protocol " \
              f"{arguments.protocol} {' '.join(arguments.settings)}"  # fmt: skip
    head = {"command": command, "cores": os.cpu_count(), "versions": versions()}
    (results / f"{label}.json").write_text(json.dumps({**head, "runs": lines}, indent=1) + "\n")
    (results / f"{label}.md").write_text(f"`{command}`\n\n" + "\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
