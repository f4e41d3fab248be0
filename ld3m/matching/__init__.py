"""Matching losses: how far training on synthetic images is from training on real ones."""

from ld3m.matching import dsa
from ld3m.matching.dc import dc_loss
from ld3m.matching.dm import dm_loss
from ld3m.matching.mtt import mtt_loss

__all__ = ["dc_loss", "dm_loss", "dsa", "mtt_loss"]
