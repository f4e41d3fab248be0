"""The page made of a run's output folder."""

import base64
import html
import json
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml
from PIL import Image

from ld3m.errors import CheckpointError
from ld3m.runs import page as report
from ld3m.runs import pictures
from ld3m.runs.result import Result

NAMES = ("<b>&", "boot")
CONFIG = {
    "data": "sets/shoes.zip",
    "algorithm": "dm",
    "iterations": 40,
    "lr": 0.1,
    "learn": ["latents", "conditioning"],
    "augment": True,
    "class_ids": None,
}
EVALUATION = {
    "rows": [
        {"set": "ld3m", "network": "VGG11", "accuracies": [60.0, 70.04], "mean": 65.02, "std": 5.0},
        {"set": "ld3m", "network": "ViT", "accuracies": [30.0, 30.0], "mean": 30.0, "std": 0.0},
        {"set": "random", "network": "VGG11", "accuracies": [40.0, 42.0], "mean": 41.0, "std": 1.0},
        {"set": "random", "network": "ViT", "accuracies": [31.0, 33.0], "mean": 32.0, "std": 1.0},
    ],
    "unseen": {"ld3m": [47.5, 2.5], "random": [36.5, 0.25]},
    "protocol": {"name": "quick", "epochs": 100, "deviations": ["<short>"]},
}
FACTS = {
    "seed": 3,
    "accuracy": 47.5,
    "peak_memory_bytes": 3 * 2**20,
    "versions": {"torch": "2.13.0"},
    "timings": {"seconds": 119.7, "evaluation_seconds": 2.5},
}


def result(ipc=1, num_classes=2, side=8):
    generator = torch.Generator().manual_seed(0)
    return Result(
        images=torch.rand(num_classes * ipc, 3, side, side, generator=generator),
        labels=torch.arange(num_classes).repeat_interleave(ipc),
        class_names=NAMES if num_classes == 2 else tuple(f"c{k}" for k in range(num_classes)),
        parameters={},
        config=CONFIG,
        mean=torch.tensor([0.25, 0.5, 0.75]),
        std=torch.tensor([0.125, 0.25, 0.5]),
    )


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    result().save(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "result.json").write_text(json.dumps(FACTS))
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0, "loss": 2.0, "grad_norm_latents": 1.0}\n')
    report.draw_curves(tmp_path)
    return tmp_path


def page(folder):
    return report.write_report(folder).read_text()


def inlined(text):
    """Alternative text → bytes of each picture on the page."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', text)
    return {html.unescape(alt): base64.b64decode(data) for alt, data in found}


def table(text):
    """The accuracy table's cells as text."""
    rows = re.search(r"<table[^>]*>(.*?)</table>", text, re.S)[1].split("<tr>")[1:]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def facts(text):
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))


def test_the_pictures_are_the_files_of_the_folder(run):
    assert inlined(page(run)) == {
        "<b>&, image 0": (run / "images" / "-b-&" / "0.png").read_bytes(),
        "boot, image 0": (run / "images" / "boot" / "0.png").read_bytes(),
        "loss and gradient norms over the iterations": (run / "curves.png").read_bytes(),
    }


def test_class_names_stand_beside_their_images_and_are_escaped(run):
    text = page(run)
    assert re.findall(r'<figcaption>(.*?)</figcaption><div><img alt="(.*?)"', text) == [
        ("&lt;b&gt;&amp;", "&lt;b&gt;&amp;, image 0"),
        ("boot", "boot, image 0"),
    ]
    assert "<b>" not in text


def test_accuracies_are_tabled_by_set_and_network_with_the_best_mean_in_bold(run):
    text = page(run)
    assert table(text) == [
        ["", "VGG11", "ViT", "unseen mean"],
        ["ld3m", "65.0 ± 5.0", "30.0 ± 0.0", "47.5 ± 2.5"],
        ["random", "41.0 ± 1.0", "32.0 ± 1.0", "36.5 ± 0.2"],
    ]
    assert re.findall(r"<strong>(.*?)</strong>", text) == ["65.0", "47.5", "32.0"]
    assert "over 2 trainings" in text
    assert '<summary>Protocol quick</summary><p class="note">&lt;short&gt;</p><dl><div><dt>epochs</dt>' in text


def test_trainings_that_diverged_are_said_and_no_set_wins_their_column(run):
    """VGG11 lost one of two on random, whose other is the best there is; ViT is whole."""
    lost = EVALUATION["rows"][2] | {"accuracies": [None, 90.0], "mean": 90.0, "std": 0.0}
    assert (lost["set"], lost["network"]) == ("random", "VGG11")
    rows = [*EVALUATION["rows"][:2], lost, *EVALUATION["rows"][3:]]
    protocol = EVALUATION["protocol"] | {"lowered": {"VGG11": 0.02}, "recipes": {"VGG11": {"rate": 0.0025}}}
    evaluation = EVALUATION | {
        "rows": rows,
        "unseen": {"ld3m": [47.5, 2.5], "random": [61.0, 0.0]},
        "protocol": protocol,
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    text = page(run)
    assert table(text)[2] == ["random", "90.0 (diverged 1 of 2)", "32.0 ± 1.0", "61.0 (diverged 1 of 2)"]
    assert re.findall(r"<strong>(.*?)</strong>", text) == ["32.0"]
    assert "VGG11 diverged at rate 0.02: all its trainings, on every set, were done again at 0.0025." in text
    assert "Trainings that diverged" in text
    assert "61.0\u00a0%\u00a0(diverged\u00a01\u00a0of\u00a02) (random)" in text


def test_a_set_on_which_all_diverged_has_no_accuracy(run):
    lost = EVALUATION["rows"][2] | {"accuracies": [None, None], "mean": None, "std": 0.0}
    rows = [*EVALUATION["rows"][:2], lost, *EVALUATION["rows"][3:]]
    evaluation = EVALUATION | {"rows": rows, "unseen": {"ld3m": [47.5, 2.5], "random": None}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert table(page(run))[2] == ["random", "diverged", "32.0 ± 1.0", "diverged"]
    report.publish(run)
    assert json.loads((run / "result.json").read_text())["accuracy"] == {"ld3m": [47.5, 2.5], "random": None}


def test_soft_labels_get_a_table_of_their_own(run):
    best, score = {"accuracies": [70.0, 72.0], "mean": 71.0, "std": 1.4}, {"values": [0.31, 0.33]}
    first = EVALUATION["rows"][0] | {"teacher": "ViT of shoes", "best_epoch": best, "lrs": score}
    soft = {"rows": [first, EVALUATION["rows"][2]], "protocol": {"name": "rded", "tested": 9}}
    (run / "evaluation-soft.json").write_text(json.dumps(soft))
    hard, section = page(run).split("<h2>Accuracy with soft labels</h2>")
    assert table(hard)[0] == ["", "VGG11", "ViT", "unseen mean"]
    assert table(section) == [
        ["", "VGG11", "VGG11 best_epoch", "lrs"],
        ["ld3m", "65.0 ± 5.0", "71.0 ± 1.4", "0.320 ± 0.014"],
        ["random", "41.0 ± 1.0", "–", "–"],
    ]
    assert "Soft labels of the teacher ViT of shoes, for every set." in section
    assert "best_epoch: the best of the last 9 epochs" in section


def test_soft_labels_alone_are_an_evaluation(run):
    (run / "evaluation.json").rename(run / "evaluation-soft.json")
    assert "Accuracy with soft labels" in page(run)
    assert "have not been evaluated yet" not in page(run)


def test_one_training_has_no_standard_deviation(run):
    rows = [row | {"accuracies": row["accuracies"][:1], "std": 0.0} for row in EVALUATION["rows"]]
    (run / "evaluation.json").write_text(json.dumps(EVALUATION | {"rows": rows, "unseen": {"ld3m": [47.5, 0.0]}}))
    text = page(run)
    assert "±" not in text
    assert table(text)[1] == ["ld3m", "65.0", "30.0", "47.5"]
    assert "in percent, one training; the best is bold" in text and "reach 47.5\u00a0% (ld3m)" in text


def test_a_score_that_is_not_there_is_a_dash(run):
    rows = [row for row in EVALUATION["rows"] if (row["set"], row["network"]) != ("random", "ViT")]
    (run / "evaluation.json").write_text(json.dumps({"rows": rows}))
    assert table(page(run)) == [
        ["", "VGG11", "ViT"],
        ["ld3m", "65.0 ± 5.0", "30.0 ± 0.0"],
        ["random", "41.0 ± 1.0", "–"],
    ]


def test_title_summary_settings_and_timings(run):
    text = page(run)
    assert "<h1>2 images distilled from shoes.zip</h1>" in text
    assert "1 per class at 8 pixels · dm matching · 40 iterations · unseen networks reach 47.5\u00a0±\u00a02.5" in text
    shown = facts(text)
    wanted = {"lr": "0.1", "learn": "latents, conditioning", "augment": "yes", "class ids": "–", "seed": "3"}
    wanted |= {"torch": "2.13.0", "peak memory": "3 MiB", "time": "2 min 0 s", "evaluation": "2.5 s"}
    assert {key: shown[key] for key in wanted} == wanted
    assert "accuracy" not in shown


def test_the_page_says_how_to_load_the_images(run):
    code = html.unescape(re.search(r"<pre><code>(.*?)</code></pre>", page(run), re.S)[1])
    assert code.splitlines() == [
        "import ld3m",
        f"result = ld3m.load({str(run)!r})",
        "images, labels = result.images, result.labels  # (2, 3, 8, 8) in [0, 1], (2,)",
    ]


def test_the_page_has_no_script_and_asks_for_nothing_outside(run):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.seen, self.addresses = set(), set()

        def handle_starttag(self, tag, attrs):
            self.seen.add(tag)
            self.addresses |= {value[:22] for key, value in attrs if key in ("src", "href")}

    tags = Tags()
    tags.feed(page(run))
    assert tags.addresses == {"data:image/png;base64,"}
    assert not tags.seen & {"script", "link", "iframe"}


def test_an_unfinished_run_shows_its_grid_and_says_what_is_missing(tmp_path):
    pictures.save_png(tmp_path / "grid.png", pictures.grid(result().images, 2))
    text = page(tmp_path)
    assert list(inlined(text).values()) == [(tmp_path / "grid.png").read_bytes()]
    assert re.findall(r"<h2>(.*?)</h2>\n<p class=\"soft\">(.*?)</p>", text) == [
        ("Images", "The run has not ended: there is no distilled.safetensors yet."),
        ("Accuracy", "The images have not been evaluated yet: <code>ld3m evaluate</code> adds the table."),
        ("Curves", "There is no curves.png yet."),
        ("Settings", "There is no config.yaml in the folder."),
        ("Versions and timings", "There is no result.json: it is written when the run ends."),
        ("Loading the images", "There is nothing to load before the run has ended."),
    ]


@pytest.mark.parametrize(
    "ipc, num_classes, shown, rest",
    [(1, 2, 2, None), (3, 2, 6, None), (12, 2, 20, 4), (1, 103, 100, 3)],
)
def test_many_images_are_cut_short(tmp_path, ipc, num_classes, shown, rest):
    result(ipc, num_classes, side=2).save(tmp_path)
    text = page(tmp_path)
    assert len(inlined(text)) == shown
    assert re.findall(r"(\d+) more lie in the folder", text) == ([str(rest)] if rest else [])


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="none is not a folder; pass the output folder"):
        report.write_report(tmp_path / "none")


@pytest.mark.parametrize(
    "name, content", [("evaluation.json", '{"rows": ['), ("result.json", "3"), ("config.yaml", "[")]
)
def test_a_damaged_file_is_named(run, name, content):
    (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} should hold a mapping but is damaged"):
        report.write_report(run)


def drawn(monkeypatch, folder):
    """The series that draw_curves hands to the chart, by title."""
    charts = {}
    chart = pictures.line_chart
    monkeypatch.setattr(
        pictures,
        "line_chart",
        lambda series, title, **kw: (charts.update({title: series}), chart(series, title, **kw))[1],
    )
    return charts, report.draw_curves(folder)


def test_curves_hold_loss_and_gradient_norms_whatever_else_is_logged(tmp_path, monkeypatch):
    lines = [
        {"iteration": 0, "loss": 2.0, "grad_norm_latents": 4.0, "grad_norm_conditioning": 1.0, "seconds": 1, "lr": "x"},
        {"iteration": 1, "loss": 3.0, "grad_norm_latents": 5.0},
        {"iteration": 1, "loss": 1.5, "grad_norm_latents": None},
    ]
    torn = '{"iteration": 2, "loss": 0.'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*map(json.dumps, lines), torn]))
    charts, path = drawn(monkeypatch, tmp_path)
    assert charts == {
        "Loss": {"loss": [(0, 2.0), (1, 1.5)]},
        "Gradient norm (logarithmic)": {"latents": [(0, 4.0)], "conditioning": [(0, 1.0)]},
    }
    with Image.open(path) as picture:
        assert picture.size == (640, 720)


@pytest.mark.parametrize("content", [None, "", "7\n[]\n"])
def test_curves_of_nothing_are_one_empty_panel(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    charts, path = drawn(monkeypatch, tmp_path)
    assert charts == {"Loss": {"loss": []}}
    assert path == tmp_path / "curves.png" and path.is_file()


@pytest.mark.parametrize(("num_classes", "ipc", "side"), [(20, 2, 256), (150, 2, 64), (1, 1, 1400)])
def test_page_and_grid_stay_small_whatever_the_set(num_classes, ipc, side, tmp_path):
    """Of noise, which no file format makes smaller."""
    images = torch.rand(num_classes * ipc, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels, names = torch.arange(num_classes).repeat_interleave(ipc), tuple(f"class {k}" for k in range(num_classes))
    made = Result(images, labels, names, {}, {}, torch.zeros(3), torch.ones(3))
    made.draw_grid(tmp_path)
    page = report._images(tmp_path, made)
    shown = pictures.fitting(num_classes, ipc, side)[2]
    assert len(page) < 5e6
    assert (tmp_path / "grid.png").stat().st_size < 5e6
    assert ("Shown at" in page) == (shown < side)
    assert page.count("<img") <= 1_100_000 // shown**2
