"""The reverse chain: from latents and conditioning to the latents that are decoded."""

from ld3m.chain.inversion import NoisyLatents, inversion_states, invert
from ld3m.chain.reverse import reverse_chain
from ld3m.chain.samplers import SAMPLERS, VARIANCES, Pull
from ld3m.chain.sampling import sample, sampling_states
from ld3m.chain.schedule import INJECTIONS, SCHEDULES, SPACINGS, ChainTable, chain_table, timesteps

__all__ = [
    "INJECTIONS",
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "VARIANCES",
    "ChainTable",
    "NoisyLatents",
    "Pull",
    "chain_table",
    "inversion_states",
    "invert",
    "reverse_chain",
    "sample",
    "sampling_states",
    "timesteps",
]
