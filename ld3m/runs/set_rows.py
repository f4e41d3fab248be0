"""The set of a run that is made class by class, as a file that is filled row by row."""

import json

import torch

from ld3m.runs.folder import DISTILLED
from ld3m.runs.opening import Run
from ld3m.runs.shards import WHOLE, Share
from ld3m.runtime import processes
from ld3m.runtime.rows import RowFile


def open_set(run: Run, *, share: Share = WHOLE, **more: tuple[int, ...]) -> RowFile:
    """Open a run's distilled set, or a share's, and fill in what is known before the first class.

    Args:
        share: its classes alone are in the set, numbered anew.
        more: of what each image has beside its pixels, in float32, the shape.
    """
    assert run.folder is not None
    config, dataset = run.config, run.dataset
    names = [dataset.class_names[label] for label in share.classes(dataset.train.num_classes)]
    count = len(names) * config.ipc
    shapes = {
        "images": (torch.float32, (count, 3, config.resolution, config.resolution)),
        "labels": (torch.int64, (count,)),
        "mean": (torch.float32, (3,)),
        "std": (torch.float32, (3,)),
        **{name: (torch.float32, (count, *shape)) for name, shape in more.items()},
    }
    about = {"class_names": names, "config": run.stored_settings()}
    rows = RowFile(run.folder.path / DISTILLED, shapes, {k: json.dumps(v, sort_keys=True) for k, v in about.items()})
    if processes.is_main():
        rows.write("labels", torch.arange(len(names)).repeat_interleave(config.ipc))
        rows.write("mean", dataset.mean)
        rows.write("std", dataset.std)
    return rows
