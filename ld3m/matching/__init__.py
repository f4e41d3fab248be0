"""Matching losses: how far training on synthetic images is from training on real ones."""

from ld3m.matching import dc, dm, dsa, mtt
from ld3m.matching.dc import dc_loss
from ld3m.matching.dm import dm_loss
from ld3m.matching.loss import Line, Loss, LossCosts, Work
from ld3m.matching.mtt import mtt_loss

__all__ = ["LOSSES", "Line", "Loss", "LossCosts", "Work", "dc_loss", "dm_loss", "dsa", "mtt_loss"]

LOSSES: dict[str, Loss] = {
    "dc": dc.LOSS,
    "dm": dm.LOSS,
    "mtt": mtt.LOSS,
}
