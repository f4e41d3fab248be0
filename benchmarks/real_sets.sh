#!/usr/bin/env bash
# Distil CIFAR-10 (32 px) and Imagenette (128 px) by each algorithm, with few iterations, and gather what the runs report.
#     benchmarks/real_sets.sh FOLDER_WITH_THE_ZIPS
set -euo pipefail
data=$1 runs=runs/real-sets here=$(dirname "$0")
mkdir -p "$runs"
small="--num-experts 2 --expert-training-epochs 3 --expert-epochs 1 --max-start-epoch 2 --student-steps 5"
large="--steps 5 --width 32 --real-batch 16 --iterations 3 $small"
for algorithm in dc dm mtt; do
  evaluate=$([[ $algorithm == dc ]] && echo quick || echo none)
  ld3m distill "$data/cifar10.zip" --algorithm $algorithm --iterations 20 $small --evaluate "$evaluate" \
    --quiet --overwrite --out "$runs/cifar10-$algorithm"
  ld3m distill "$data/imagenette-128.zip" --resolution 128 --algorithm $algorithm $large --evaluate none \
    --quiet --overwrite --out "$runs/imagenette-$algorithm"
done
python - "$runs" "$here/results/real_sets.json" <<'PY'
import json, pathlib, sys
import yaml
runs, out = map(pathlib.Path, sys.argv[1:])
rows = []
for run in sorted(runs.iterdir()):
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    config = yaml.safe_load((run / "config.yaml").read_text())
    kept = ("algorithm", "resolution", "ipc", "iterations", "steps", "width", "real_batch", "lr", "prior")
    rows.append({
        "run": run.name, **{name: config[name] for name in kept},
        "first_loss": metrics[0]["loss"], "last_loss": metrics[-1]["loss"],
        **json.loads((run / "result.json").read_text()),
    })
out.write_text(json.dumps({"command": "benchmarks/real_sets.sh DATA", "runs": rows}, indent=1) + "\n")
for row in rows:
    print(row["run"], row["seconds_per_iteration"], "s an iteration, loss", row["first_loss"], "→", row["last_loss"], row["accuracy"])
PY
