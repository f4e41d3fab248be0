"""Shards of a run: classes shared out over commands that need not run at the same time, each in a folder of its own."""

import re
from dataclasses import dataclass
from pathlib import Path

from ld3m.config import read_yaml
from ld3m.errors import ConfigError
from ld3m.runs.folder import DISTILLED
from ld3m.runs.marker import CONFIG, SHARDS, is_run

_NAME = re.compile(r"(0|[1-9]\d*)-of-([1-9]\d*)")


@dataclass(frozen=True)
class Share:
    """Every `count`-th class from class `index` on; the whole is 0 of 1."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not (type(self.index) is type(self.count) is int and 0 <= self.index < self.count):
            raise ConfigError(
                f"shard is i/n, n shards counted from 0, so that i is below n; got {self.index!r}/{self.count!r}"
            )

    def classes(self, num_classes: int) -> range:
        """Return the labels of this share.

        Raises:
            ConfigError: there are none.
        """
        if self.count > num_classes:
            raise ConfigError(f"{num_classes} classes make {num_classes} shards at most, got {self.count}")
        return range(self.index, num_classes, self.count)

    def position(self, label: int) -> int:
        """Return where a class of this share stands among them."""
        return label // self.count

    def folder(self, out: Path) -> Path:
        """Return the folder of this share of the run in `out`."""
        return out / SHARDS / f"{self.index}-of-{self.count}"


WHOLE = Share()


def share_of(shard: object) -> Share:
    """Read "i/n", or a pair (i, n); None is the whole.

    Raises:
        ConfigError: it is neither.
    """
    if shard is None:
        return WHOLE
    if isinstance(shard, str) and (found := re.fullmatch(r"(\d+)/(\d+)", shard)):
        shard = int(found[1]), int(found[2])
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise ConfigError(f"shard is i/n, such as 0/3 for the first of three; got {shard!r}")
    return Share(*shard)


def finished_shards(out: Path) -> list[Path]:
    """Return the folders of all shards of the run in `out`, in their order, each finished and of the same settings.

    Raises:
        ConfigError: some are missing, doubled, unfinished or of other settings.
    """
    named = ((path, _NAME.fullmatch(path.name)) for path in sorted((out / SHARDS).glob("*-of-*")))
    found = {(int(name[1]), int(name[2])): path for path, name in named if name and is_run(path)}
    if not found:
        raise ConfigError(f"{out} has no shards to merge; make them with --shard 0/n to n-1/n and --out {out}")
    counts = sorted({count for _, count in found})
    if len(counts) > 1:
        raise ConfigError(
            f"{out / SHARDS} holds shards of {' and of '.join(map(str, counts))}: classes would be there twice; remove "
            "the folders of one kind"
        )
    count = counts[0]
    left = [k for k in range(count) if (k, count) not in found or not (found[k, count] / DISTILLED).is_file()]
    if left:
        raise ConfigError(
            f"{out} lacks {len(left)} of {count} shards, missing or not finished: run those with --shard "
            f"{', '.join(f'{k}/{count}' for k in left[:10])}{', ...' if len(left) > 10 else ''}, then merge"
        )
    paths = [found[k, count] for k in range(count)]
    first = read_yaml(paths[0] / CONFIG)
    for path in paths:
        own = read_yaml(path / CONFIG)
        if changed := sorted(name for name in first.keys() | own.keys() if first.get(name) != own.get(name)):
            here, there = ({name: one.get(name) for name in changed} for one in (own, first))
            raise ConfigError(f"{path} was made with {here}, and {paths[0]} with {there}; make one of the two anew")
    return paths
