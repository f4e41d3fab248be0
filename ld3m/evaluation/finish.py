"""The end of a run: result.json, evaluation and report.html in its folder."""

import time
from collections.abc import Mapping
from pathlib import Path

from ld3m import networks
from ld3m.config import one_of
from ld3m.errors import ConfigError
from ld3m.evaluation import PROTOCOLS, evaluate
from ld3m.runs.facts import measured
from ld3m.runs.folder import EVALUATION, FACTS
from ld3m.runs.opening import Run
from ld3m.runs.page import publish, read_mapping
from ld3m.runs.result import Result, load
from ld3m.runtime import processes
from ld3m.runtime.storage import write_json


def check_protocol(name: str, resolution: int) -> None:
    """Raise unless the protocol, or "none", can end a run and its networks take images of that size."""
    known = [known for known, protocol in PROTOCOLS.items() if protocol.labels == "hard"]  # a run has no teacher
    one_of(name, "evaluate", (*known, "none"))
    for network in PROTOCOLS[name].networks if name != "none" else ():
        try:
            networks.blueprint(network, num_classes=10, resolution=resolution)
        except ConfigError as error:
            raise ConfigError(
                f"evaluate {name!r} cannot be done at {resolution} px: {error}; choose another resolution, or evaluate "
                "none"
            ) from error


def finish(run: Run, path: Path, facts: Mapping[str, object], *, is_new: bool, progress: bool) -> None:
    """Write result.json, evaluate what is in the run's folder, in all processes together, and write report.html.

    Args:
        path: of the folder, which the main process alone has in `run`.
        facts: for result.json, measured before an evaluation adds to them.
        is_new: whether this process made a part of the set; if not, the facts that are there already stay.
    """
    if run.folder is not None and processes.is_main():
        facts = ({} if is_new else read_mapping(path / FACTS)) or facts
        # Before the evaluation, often the longest part: broken off there, the run that goes on keeps its own facts.
        sources = {"data": run.dataset.fingerprint, **run.folder.sources}
        facts = {"fingerprints": sources, **facts}
        write_json(path / FACTS, {**facts, "protocol": run.config.evaluate, "accuracy": None})
    if run.config.evaluate != "none" and not processes.from_main((path / EVALUATION).is_file, "save the set"):
        evaluate(  # writes its report into the folder
            path,
            run.dataset,
            protocol=run.config.evaluate,
            device=run.device,
            seed=run.config.seed,
            progress=progress,
        )
    if processes.is_main():
        publish(path)


def finish_classes(run: Run, out: object, started: float, seconds_per_class: float | None, *, progress: bool) -> Result:
    """End a run whose classes are in the set in its folder: draw the grid, and `finish`.

    Args:
        out: None where the folder is to go: the set is then returned as it is.
        started: of `time.perf_counter`.
        seconds_per_class: None where this process made none.
    """
    assert run.folder is not None
    path = run.folder.path
    result = load(path)
    if out is None:
        return result.detached()
    if processes.is_main():
        result.draw_grid(path)
    seconds = time.perf_counter() - started
    facts = measured(run.device, seed=run.config.seed, seconds=seconds, seconds_per_class=seconds_per_class)
    finish(run, path, facts, is_new=seconds_per_class is not None, progress=progress)
    return result
