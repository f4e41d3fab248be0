"""Write the tables of README and docs/ from the files in benchmarks/results.

A table stands where a page has the pair of marks `BEGIN` and `END` with its name, of `TABLES`.

python benchmarks/readme.py
"""

import itertools
import json
from pathlib import Path
from statistics import fmean, stdev

from ld3m.evaluation import Report
from ld3m.runs.report import cell_text, layout, most_repeats

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {}: written by benchmarks/readme.py -->", "<!-- /{} -->"


def accuracies(name: str, about: str) -> str:
    """Return a stored evaluation as a Markdown table, or nothing where it was not run."""
    path = RESULTS / name
    if not path.is_file():
        return ""
    report = Report.from_json(path.read_text())
    networks = list(dict.fromkeys(row["network"] for row in report.rows))
    columns, sets = layout(report.rows, report.unseen, report.distilled_with)
    repeats = most_repeats(report.rows)
    lines = [about, "", f"| set | {' | '.join(networks)} | unseen mean |", "|---" * (len(networks) + 2) + "|"]
    for name, row in sets.items():
        cells = {column: cell_text(column, cell, repeats) for column, cell in zip(columns, row, strict=True)}
        lines.append(f"| {name} | {' | '.join(cells[n] for n in networks)} | **{cells['unseen mean']}** |")
    return "\n".join([*lines, ""])


def chain() -> str:
    content = json.loads((RESULTS / "chain_cpu.json").read_text())
    seconds, ratios = content["time"]["seconds"], content["time"]["ratios"]
    growth = 100 * content["saved bytes"]["growth"]
    lines = [
        f"One forward and backward pass of the chain ({content['setting']}, {content['machine']}, torch "
        f"{content['torch']}; `{content['command']}`):",
        "",
        "| scheme | s | against the released scheme | bytes held, T = 10 → 40 |",
        "|---|---|---|---|",
        f"| released: generate, generate again, checkpoint | {seconds['official']:.2f} | 1 | |",
        f"| ld3m, nothing kept | {seconds['recompute']:.2f} | ×{ratios['recompute']:.2f} faster | {growth:+.1f} % |",
        f"| ld3m, everything kept | {seconds['retain']:.2f} | ×{ratios['retain']:.2f} faster | linear in T |",
        *(
            f"| … with the frozen networks, {kept} kept | {seconds[name]:.2f} | ×{ratios[name]:.2f} faster | |"
            for kept, name in (("nothing", "recompute, streamlined"), ("everything", "retain, streamlined"))
        ),
    ]
    return "\n".join([*lines, ""])


def prior() -> str:
    content = json.loads((RESULTS / "prior_quality.json").read_text())
    guided, own = content["typical_percent"], content["real_accuracy_percent"]
    return (
        f"The embedded prior: {guided:.1f} % of guided samples fall into their class by a network trained on real\n"
        f"images ({own:.1f} % accurate itself); a network trained on 600 unguided samples per class reaches\n"
        f"{content['diverse_percent_of_real']:.1f} % of the accuracy of one trained on as many real images\n"
        f"(`{content['command']}`; [recipe and samples](benchmarks/results/prior/README.md)).\n"
    )


def suite(name: str) -> str:
    """Return the rows of a suite as a Markdown table; of rows that differ in mode alone, the last."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return ""
    rows = {(row["name"], row["against"]): row for row in json.loads(path.read_text())}
    first = next(iter(rows.values()))
    lines = [
        f"Time and memory side by side ({first['device']}, torch {first['versions']['torch']}, {first['statistic']}; "
        f"`{first['command']}`; peaks are what the operations allocate):",
        "",
        "| row | against | ms | instead of | faster | MiB | instead of |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        times, sizes = ([_digits(row[side + unit]) for side in ("ours", "baseline")] for unit in ("", "_mib"))
        cells = [f"{row['name']}, {row['mode']}", row["against"], *times, f"×{row['ratio']:.2f}", *sizes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spaces() -> str:
    path = RESULTS / "spaces.md"
    if not path.is_file():
        return ""
    about = "What the skip, the chain and the prior are worth (± standard error over five trainings on one set each):"
    return f"{about}\n\n{path.read_text()}"


def selectors() -> str:
    """Return what `compare.py selectors` measured: for each set the mean over networks, by size and kind of labels."""
    columns: dict[str, dict[str, str]] = {}
    for ipc, labels, dtype in itertools.product((1, 10, 50), ("hard", "soft"), ("", "bfloat16")):
        parts = [f"selectors-ipc{ipc}", *(["soft"] if labels == "soft" else []), *([dtype] if dtype else [])]
        path = RESULTS / f"{'-'.join(parts)}.json"
        rows = json.loads(path.read_text())["accuracies"] if path.is_file() else {}
        rows = {name: row for name, row in rows.items() if row}
        missing = [network for network in JUDGES if any(network not in row for row in rows.values())]
        if rows and missing != list(JUDGES):
            heading = [f"{ipc} per class, {labels}", *([dtype] if dtype else []), *(f"no {name}" for name in missing)]
            known = [network for network in JUDGES if network not in missing]
            columns[", ".join(heading).replace("-w0.5", "")] = {name: _over(row, known) for name, row in rows.items()}
    if not columns:
        return ""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    lines = [SELECTORS, "", f"| set | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(column.get(name, '') for column in columns.values())} |" for name in names]
    return "\n".join([*lines, ""])


def _over(by_network: dict[str, list[float]], networks: list[str]) -> str:
    """Return mean and standard error of the repeats, each averaged over the networks."""
    means = [fmean(repeat) for repeat in zip(*(by_network[network] for network in networks), strict=True)]
    return f"{fmean(means):.1f} ± {stdev(means) / len(means) ** 0.5:.1f}"


JUDGES = ("ConvNet-w0.5", "VGG11-w0.5", "ResNet18-w0.5", "AlexNet-w0.5")
SELECTORS = (
    "On the embedded set and prior, protocol `quick`, mean accuracy of ConvNet, VGG11, ResNet18 and AlexNet at half\n"
    "width, ± standard error over five trainings on one set each (`python benchmarks/compare.py selectors ipc=1 ...`;\n"
    "by network, with the differences quoted above, in the files selectors-*.md of benchmarks/results, such as\n"
    "[one image per class, hard labels](benchmarks/results/selectors-ipc1.md); soft labels are those of a ConvNet\n"
    "trained on the real images):"
)
MAIN_JOB = (
    "`ld3m distill`, one image per class, test accuracy in percent after training on ten images (protocol `quick`,\n"
    "mean ± standard deviation of five trainings):"
)
GLAD_HARD = (
    "A set distilled with the same settings by an earlier version, by `ld3m evaluate RUN --protocol glad-hard\n"
    "--networks AlexNet VGG11 ResNet18 --repeats 5`:"
)


TABLES = {
    "main-job": lambda: accuracies("main_job.json", MAIN_JOB),
    "glad-hard": lambda: accuracies("main_job_glad_hard.json", GLAD_HARD),
    "spaces": spaces,
    "suite-gpu": lambda: suite("gpu"),
    "suite-cpu": lambda: suite("cpu"),
    "chain": chain,
    "prior": prior,
    "selectors": selectors,
}


def filled(page: Path) -> str:
    """Return the text of a page with every table that it has marks for written anew."""
    text = page.read_text(encoding="utf-8")
    above = "../" * len(page.relative_to(ROOT).parts[1:])
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin in text:
            before, _, rest = text.partition(begin)
            body = table().replace("](benchmarks/", f"]({above}benchmarks/")
            text = f"{before}{begin}\n{body}\n{end}{rest.partition(end)[2]}"
    return text


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    for page in pages():
        page.write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
