"""What type checkers and editors see of the public functions."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import ld3m
from ld3m.chain.schedule import INJECTIONS, SCHEDULES
from ld3m.config import DistillConfig, EvaluateConfig, RunConfig, SampleConfig, SelectConfig, SetConfig, keywords
from ld3m.config.distill import Injection, Metric, Preset, Schedule
from ld3m.config.fields import fits
from ld3m.config.presets import PRESETS
from ld3m.config.run import Dtype
from ld3m.matching.dc import METRICS
from ld3m.ops.group_select import WEIGHTS
from ld3m.runtime.devices import DTYPES

FOLDER = Path(__file__).parent / "typing"
PAIRS = [
    (keywords.SetKeywords, SetConfig, ()),
    (keywords.SelectKeywords, SelectConfig, ()),
    (keywords.RunKeywords, RunConfig, ()),
    (keywords.DistillKeywords, DistillConfig, ()),
    (keywords.SampleKeywords, SampleConfig, ()),
    (keywords.EvaluateKeywords, EvaluateConfig, ("protocol", "teacher", "networks")),
]
WIDER = {torch.device, torch.dtype, os.PathLike[str], keywords.LoadedPrior}  # what is stored as a word


def kinds(annotation):
    """The types of a union, a choice and a sequence spelt alike."""
    if typing.get_origin(annotation) in (typing.Union, type(int | str)):
        return set().union(*map(kinds, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (tuple, Sequence):
        (inner,) = kinds(typing.get_args(annotation)[0])
        return {("many", str if typing.get_origin(inner) is typing.Literal else inner)}
    return {annotation}


@pytest.mark.parametrize(("options", "config", "left_out"), PAIRS)
def test_keywords_are_the_fields(options, config, left_out, monkeypatch):
    monkeypatch.setattr(keywords, "torch", torch, raising=False)  # which is there for type checkers alone
    hints = typing.get_type_hints(options)
    fields = {field.name: field.type for field in dataclasses.fields(config) if field.name not in left_out}
    assert set(hints) == set(fields)
    for name, hint in hints.items():
        assert kinds(hint) - WIDER == kinds(fields[name]), name


@pytest.mark.parametrize(
    ("function", "config"),
    [
        (ld3m.distill, DistillConfig),
        (ld3m.sample_dataset, SampleConfig),
        (ld3m.select, SelectConfig),
        (ld3m.evaluate, EvaluateConfig),
    ],
)
def test_signatures_show_every_field_with_its_default(function, config):
    parameters = inspect.signature(function).parameters
    for field in dataclasses.fields(config):
        parameter = parameters[field.name]
        assert (parameter.default, parameter.kind) == (field.default, parameter.KEYWORD_ONLY)


def test_defaults_have_the_types_of_their_fields():
    for config in (DistillConfig, SampleConfig, SelectConfig, EvaluateConfig):
        for field in dataclasses.fields(config):
            assert fits(field.default, field.type), field.name


@pytest.mark.parametrize(
    ("choice", "table"),
    [(Injection, INJECTIONS), (Schedule, SCHEDULES), (Metric, METRICS), (Preset, PRESETS), (Dtype, DTYPES)],
)
def test_choices_are_the_names_of_the_tables(choice, table):
    assert typing.get_args(choice) == tuple(table)


def test_the_weights_are_those_of_the_op():
    assert SampleConfig().weights == WEIGHTS


def test_type_checkers_see_every_public_name():
    shown = (Path(ld3m.__file__)).read_text(encoding="utf-8").split("if TYPE_CHECKING:")[1].split("__version__ =")[0]
    assert all(f" {name}" in shown for name in ld3m._HOMES)
    assert set(ld3m.__all__) == {"__version__", *ld3m._HOMES}


def test_wrong_keywords_are_errors_and_right_ones_are_not():
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    files = [FOLDER / "right_keywords.py", FOLDER / "wrong_keywords.py"]
    root = Path(ld3m.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([*command, *files], cwd=FOLDER, env=environment, capture_output=True, text=True)
    found = {(Path(e["file"]).name, e["range"]["start"]["line"]) for e in json.loads(done.stdout)["generalDiagnostics"]}
    lines = files[1].read_text().splitlines()
    assert found == {(files[1].name, k) for k, line in enumerate(lines) if line.startswith("ld3m.")}, done.stdout
