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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--label", help="name of the result files")
    parser.add_argument("settings", nargs="*", help="name=value, values as in YAML")
    arguments = parser.parse_args()
    shared = {name: yaml.safe_load(value) for name, value in (setting.split("=", 1) for setting in arguments.settings)}
    label = arguments.label or arguments.name

    lines, rows, baselines_done = [], {}, False
    for variant, settings in VARIANTS[arguments.name].items():
        out = Path("runs") / f"compare-{label}" / variant.replace(" ", "-")
        result = ld3m.distill(arguments.data, out=out, resume=out.is_dir(), evaluate="none", **shared, **settings)
        path = out / "evaluation.json"
        if path.is_file():
            report = Report.from_json(path.read_text())
        else:
            baselines = () if baselines_done else ("random", "kmeans")
            report = ld3m.evaluate(out, arguments.data, protocol=arguments.protocol, baselines=baselines)
        baselines_done = True
        for row in report.rows:
            name = row["set"] if row["set"] in ("random", "kmeans") else variant
            rows.setdefault(name, {})[row["network"]] = (row["mean"], row["std"])
        for name, score in report.unseen.items():
            rows[name if name in ("random", "kmeans") else variant]["unseen mean"] = score
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
