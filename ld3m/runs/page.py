"""A run's output folder as one page: `report.html` needs no network, no script and no other file."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ld3m.config import read_yaml
from ld3m.errors import CheckpointError, ConfigError
from ld3m.runs import pictures
from ld3m.runs.class_tables import class_tables, difference_table
from ld3m.runs.evaluations import earlier_files
from ld3m.runs.folder import CURVES, DISTILLED, EVALUATION, EVALUATIONS, FACTS, GRID, METRICS, PAGE
from ld3m.runs.marker import CONFIG
from ld3m.runs.report import (
    FILES,
    SHOWN,
    SIZE_REMARK,
    Cell,
    cell_text,
    diverged_text,
    layout,
    most_repeats,
    remarks,
    shown,
    size_text,
    spread_text,
    stored_bytes,
)
from ld3m.runs.result import PARAMETERS, Result, load
from ld3m.runtime.reading import is_there, mapping, parse_json, read_text, whole
from ld3m.runtime.storage import write_json, write_text

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light; --soft: #66666c; --rule: #e4e4e7; --wash: #f7f7f8; }
body { margin: 0; color: #1c1c1e; background: #fff; overflow-wrap: break-word;
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 55rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { margin: .2rem 0 .6rem; font-size: clamp(1.6rem, 4vw, 2rem); line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 3.2rem 0 1rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); font-size: 1.2rem; }
h3 { margin: 1.6rem 0 .3rem; font-size: .95rem; } p { margin: .6rem 0; max-width: 44rem; }
.soft, figcaption, dt, th, summary { color: var(--soft); font-weight: 400; }
.note, figcaption, summary, dl { font-size: .9rem; line-height: 1.45; }
figure { margin: 0; } img { display: block; max-width: 100%; }
.tiles img, .rows img { width: 100%; border-radius: 3px; } .small img { image-rendering: pixelated; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1.2rem 1rem; }
.tiles figure { display: flex; flex-direction: column-reverse; justify-content: flex-end; gap: .3rem; }
.rows figure { display: grid; grid-template-columns: 8.5rem 1fr; gap: .8rem; align-items: center; margin: .4rem 0; }
.rows div { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 6rem)); gap: .4rem; }
.wide { overflow-x: auto; } .wide img { max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem 1.3rem .5rem 0; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: #fff; text-align: left; color: inherit; }
.unseen :last-child:is(td, th) { padding-left: 1.3rem; border-left: 1px solid var(--rule); }
dl { columns: 22rem 2; column-gap: 3rem; margin: .4rem 0; font-variant-numeric: tabular-nums; }
dl div { display: flex; gap: 1rem; justify-content: space-between; padding: .35rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--rule); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
code { font: .86em/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
pre { margin: .8rem 0; padding: .9rem 1.1rem; background: var(--wash); border-radius: 5px; overflow-x: auto; }
@media (max-width: 40rem) {
  main { padding: 2rem 1.1rem 3rem; }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: 1rem .7rem; }
  .wide img { width: 32rem; }
  .rows figure { grid-template-columns: 1fr; gap: .3rem; margin: 1rem 0; }
  .rows div { grid-template-columns: repeat(5, 1fr); }
}
</style>
"""


def publish(folder: Path) -> None:
    """Bring result.json, where there is one, up to date with evaluation.json, and write report.html."""
    facts, evaluation = (read_mapping(folder / name) for name in (FACTS, EVALUATION))
    if facts and evaluation:
        outcome = {"protocol": (evaluation.get("protocol") or {}).get("name"), "accuracy": evaluation.get("unseen")}
        outcome |= (
            {"diverged": evaluation.get("diverged", [])} if "diverged" in evaluation or "diverged" in facts else {}
        )
        write_json(folder / FACTS, facts | outcome)
    write_report(folder)


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run's output folder from what lies there; what is not there yet is said to be missing.

    Raises:
        CheckpointError: the folder is not there, or one of its files is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; pass the output folder of a distillation")
    result = load(folder) if (folder / DISTILLED).is_file() else None
    evaluation, soft, facts = (read_mapping(folder / name) for name in (*FILES.values(), FACTS))
    config = read_mapping(folder / CONFIG) or dict(result.config if result else (evaluation or soft).get("set") or {})
    source = Path(str(config.get("data", "data"))).name
    title = _text(_title(config, result, source))
    facts.pop("accuracy", None)  # the table has it
    earlier = [found for path in earlier_files(folder) if (found := read_mapping(path)).get("rows")]
    is_sampled = "selector" in config or "by" in config  # no iterations, so no curves
    is_foreign = bool(config.get("foreign"))  # scored, not made
    sections = {
        **({"Images": _images(folder, result)} if result or not is_foreign else {}),
        **({"Accuracy": accuracy_table(evaluation)} if evaluation or not soft else {}),
        **({"Accuracy with soft labels": accuracy_table(soft)} if soft else {}),
        **({"Earlier evaluations": "\n".join(map(_earlier, earlier))} if earlier else {}),
        **({} if is_sampled or is_foreign else {"Curves": _curves(folder)}),
        "Settings": _facts(config) or _missing("There is no config.yaml in the folder."),
        "Versions and timings": _facts(facts) or _missing("There is no result.json: it is written when the run ends."),
        "Loading the images": _loading(folder, result),
    }
    if is_foreign:
        sections = {name: part for name, part in sections.items() if name not in _OF_RUNS}
    body = "\n".join(f"<section><h2>{name}</h2>\n{content}\n</section>" for name, content in sections.items())
    page = (
        f'{_HEAD}<title>{title} · ld3m</title>\n<main>\n<p class="soft">ld3m · {_text(folder.resolve().name)}</p>\n'
        f"<h1>{title}</h1>\n<p>{_text(_summary(config, result, evaluation))}</p>\n{body}\n</main>\n</html>\n"
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


_OF_RUNS = ("Versions and timings", "Loading the images")


def _title(config: Mapping[str, Any], result: Result | None, source: str) -> str:
    if config.get("foreign"):
        return f"{config.get('set', 'A set')} scored on {config.get('data', 'data')}"
    made, making = ("chosen", "Selection") if "by" in config else ("distilled", "Distillation")
    return f"{len(result.labels)} images {made} from {source}" if result else f"{making} of {source}"


def draw_curves(folder: Path) -> Path:
    """Draw `curves.png`, loss and gradient norms over the iterations, from `metrics.jsonl`."""
    metrics, by_iteration = Path(folder) / METRICS, {}
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines() if metrics.is_file() else ():
        try:
            entry = json.loads(line)
            if whole(0, 10**12)(entry["iteration"]) is None:
                by_iteration[entry["iteration"]] = entry  # of an iteration logged twice, the later line holds
        except (ValueError, KeyError, TypeError, RecursionError):  # torn by a kill
            continue
    curves = {
        key: [(i, entry[key]) for i, entry in sorted(by_iteration.items()) if isinstance(entry.get(key), int | float)]
        for key in ("loss", *(f"grad_norm_{name}" for name in PARAMETERS))
    }
    norms = {key.removeprefix("grad_norm_"): points for key, points in curves.items() if key != "loss" and points}
    panels = [pictures.line_chart({"loss": curves["loss"]}, "Loss")]
    if norms:
        panels.append(pictures.line_chart(norms, "Gradient norm (logarithmic)", log=True))
    path = metrics.with_name(CURVES)
    pictures.save_png(path, pictures.stack(panels))
    return path


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file that holds a mapping; an absent file is an empty one."""
    if not is_there(path):
        return {}
    if path.suffix != ".json":
        try:
            return read_yaml(path)
        except ConfigError as error:
            raise CheckpointError(f"{path} should hold a mapping but is damaged ({error}); make it again") from error
    check = SHOWN if path.name in FILES.values() or path.parent.name == EVALUATIONS else mapping({})
    source = f"{path} should hold a mapping but is damaged"
    return parse_json(read_text(path), check, source=source, remedy="make it again")


def _text(value: object) -> str:
    return html.escape(str(value))


def _missing(sentence: str) -> str:
    return f'<p class="soft">{sentence}</p>'


def _picture(png: bytes, description: str) -> str:
    return f'<img alt="{_text(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _summary(config: Mapping[str, Any], result: Result | None, evaluation: Mapping[str, Any]) -> str:
    parts = [f"{result.ipc} per class at {result.images.shape[-1]} pixels"] if result else []
    words = {"algorithm": "{} matching", "space": "{} space", "prior": "prior {}", "iterations": "{} iterations"}
    words |= {"selector": "sampled, {} selection", "by": "real images chosen by {}"}
    parts += [pattern.format(config[key]) for key, pattern in words.items() if config.get(key) is not None]
    if unseen := evaluation.get("unseen"):
        repeats, (columns, table) = most_repeats(evaluation["rows"]), _layout(evaluation)
        at = columns.index("unseen mean")
        scores = (f"{_summary_score(cells[at], repeats)} ({name})" for name, cells in table.items() if name in unseen)
        parts.append(f"unseen networks reach {', '.join(scores)}")
    return " · ".join(parts) or "Nothing is known of this run yet."


def _summary_score(cell: Cell | None, repeats: int) -> str:
    text = cell_text("unseen mean", cell, repeats)
    number, mark, rest = text.partition(" (")
    return (text if cell is None or cell.mean is None else f"{number} %{mark}{rest}").replace(" ", "\u00a0")


def _layout(evaluation: Mapping[str, Any]) -> tuple[list[str], dict[str, list[Cell | None]]]:
    return layout(evaluation["rows"], evaluation.get("unseen") or {}, evaluation.get("distilled_with"))


def _earlier(evaluation: Mapping[str, Any]) -> str:
    """Show an evaluation before the newest under what tells it apart."""
    protocol, data = (dict(evaluation.get(name) or {}) for name in ("protocol", "data"))
    words = [str(protocol.get("name", "not named")), *([data["name"]] if "name" in data else [])]
    words += [f"seed {evaluation['seed']}"] if "seed" in evaluation else []
    words += ["soft labels"] if protocol.get("labels") == "soft" else []
    return f"<h3>{_text(', '.join(words))}</h3>\n{accuracy_table(evaluation)}"


def _images(folder: Path, result: Result | None) -> str:
    if result is None:
        grid = folder / GRID
        so_far = _picture(grid.read_bytes(), "grid of the images so far") if grid.is_file() else ""
        return _missing(f"The run has not ended: there is no {DISTILLED} yet.") + so_far
    figures = []
    num_classes, columns, side = pictures.fitting(len(result.class_names), result.ipc, result.images.shape[-1])
    for label, name in enumerate(result.class_names[:num_classes]):
        tiles = "\n".join(
            _picture(pictures.png_bytes(pictures.to_pillow(image)), f"{name}, image {k}")
            for k, image in enumerate(pictures.shrunk(result.images[result.labels == label][:columns], side))
        )
        figures.append(f"<figure><figcaption>{_text(name)}</figcaption><div>{tiles}</div></figure>")
    kind = ("tiles" if result.ipc == 1 else "rows") + (" small" if result.images.shape[-1] < 96 else "")
    rest = len(result.labels) - columns * len(figures)
    note = _missing(f"{rest} more lie in the folder images/.") if rest else ""
    note += _missing(f"Shown at {side} px; images/ has them whole.") if side < result.images.shape[-1] else ""
    return f'<div class="{kind}" style="--n: {columns}">\n{"".join(figures)}</div>\n{note}'


def _curves(folder: Path) -> str:
    path = folder / CURVES
    if not path.is_file():
        return _missing("There is no curves.png yet.")
    return f'<div class="wide">{_picture(path.read_bytes(), "loss and gradient norms over the iterations")}</div>'


def accuracy_table(evaluation: Mapping[str, Any]) -> str:
    if not evaluation.get("rows"):
        return _missing("The images have not been evaluated yet: <code>ld3m evaluate</code> adds the table.")
    columns, table = _layout(evaluation)
    repeats = most_repeats(evaluation["rows"])
    best = [_best(cells) for cells in zip(*table.values(), strict=True)]
    sizes = stored_bytes(evaluation)
    lines = ["<tr><th></th>" + "".join(f"<th>{_text(name)}</th>" for name in [*columns, *(["size"] if sizes else [])])]
    for name, cells in table.items():
        scores = (f"<td>{_score(*one, repeats)}</td>" for one in zip(columns, cells, best, strict=True))
        size = f"<td>{size_text(sizes[name])}</td>" if name in sizes else ""
        lines.append(f"\n<tr><th>{_text(name)}</th>{''.join(scores)}{size}")
    protocol = dict(evaluation.get("protocol") or {})
    deviations = "".join(f'<p class="note">{_text(remark)}</p>' for remark in protocol.pop("deviations", ()))
    note = f"Test accuracy in percent, {spread_text(repeats)}; the best {'mean ' if repeats > 1 else ''}is bold."
    if kind := "unseen" if "unseen mean" in columns else "":
        note += " Unseen: the average over the networks that took no part in the distillation."
    note = _text(" ".join([note, *([SIZE_REMARK] if sizes else []), *remarks(evaluation["rows"], protocol)]))
    return (
        f'<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>\n<p class="note soft">{note}</p>\n'
        f"{_accuracy_by_size(table, columns, sizes)}"
        f"{difference_table(evaluation)}{class_tables(evaluation)}"
        f"<details><summary>Protocol {_text(protocol.pop('name', ''))}</summary>{deviations}"
        f"{_facts(protocol)}</details>"
    )


def _accuracy_by_size(
    table: Mapping[str, Sequence[Cell | None]], columns: Sequence[str], sizes: Mapping[str, int]
) -> str:
    """Draw each set's accuracy, of the unseen mean or else of the first network, over the bytes it takes."""
    at = columns.index("unseen mean") if "unseen mean" in columns else 0
    known = {name: cells[at] for name, cells in table.items() if name in sizes}
    points = {name: [(sizes[name] / 1024, cell.mean)] for name, cell in known.items() if cell and cell.mean is not None}
    if not points:
        return ""
    chart = pictures.line_chart(points, f"Accuracy in percent ({columns[at]}) over KiB of each set")
    picture = _picture(pictures.png_bytes(chart), "accuracy over the bytes of each set")
    return f'<details><summary>Accuracy per byte</summary><div class="wide">{picture}</div></details>\n'


def _best(cells: Sequence[Cell | None]) -> float | None:
    """Return the best mean of a column; None where a training is missing, which may have been of the best set."""
    known = [cell for cell in cells if cell]
    whole = [cell.mean for cell in known if cell.mean is not None and not cell.diverged]
    return max(whole, default=None) if len(whole) == len(known) else None


def _score(column: str, cell: Cell | None, best: float | None, repeats: int) -> str:
    if cell is None or cell.mean is None:
        return _text(cell_text(column, cell, repeats))
    mean, std = shown(column, cell.mean, cell.std)
    is_best = best is not None and mean == shown(column, best, 0.0)[0]
    spread = f' <span class="soft">± {std}</span>' if repeats - cell.diverged > 1 else ""
    missing = f'<span class="soft">{diverged_text(cell, repeats)}</span>' if cell.diverged else ""
    return (f"<strong>{mean}</strong>" if is_best else mean) + spread + missing


def _facts(mapping: Mapping[str, Any]) -> str:
    """List settings in columns, each nested mapping under a heading of its own."""
    nested = {key: value for key, value in mapping.items() if isinstance(value, Mapping) and value}
    lines = [
        f"<div><dt>{_label(key)}</dt><dd>{_text(_shown(key, value))}</dd></div>"
        for key, value in mapping.items()
        if key not in nested
    ]
    groups = "".join(f"<h3>{_label(key).capitalize()}</h3>{_facts(value)}" for key, value in nested.items())
    return (f"<dl>{''.join(lines)}</dl>" if lines else "") + groups


def _label(key: str) -> str:
    return "time" if key == "seconds" else _text(key).replace("_", " ").removesuffix(" seconds").removesuffix(" bytes")


def _shown(key: str, value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(_shown(key, item) for item in value)
    if isinstance(value, float | int) and key.endswith("seconds"):
        return f"{value:.3g} s" if value < 60 else f"{round(value) // 60} min {round(value) % 60} s"
    if isinstance(value, float | int) and key.endswith("bytes"):
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _loading(folder: Path, result: Result | None) -> str:
    if result is None:
        return _missing("There is nothing to load before the run has ended.")
    images, labels = tuple(result.images.shape), tuple(result.labels.shape)
    code = f"import ld3m\nresult = ld3m.load({str(folder)!r})\nimages, labels = result.images, result.labels"
    mean, std = ([round(value, 4) for value in moments.tolist()] for moments in (result.mean, result.std))
    return (
        f"<pre><code>{_text(code)}  # {images} in [0, 1], {labels}</code></pre>\n"
        f"<p>Networks see (images − mean) / std with mean {mean} and std {std}, those of the training images. "
        "<code>ld3m export</code> turns the run into a plain image folder or a safetensors file.</p>"
    )
