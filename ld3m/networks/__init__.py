"""The networks that train on distilled images: small classifiers with the parameters of the GLaD and LD3M code, those
of other published evaluations, and the user's own."""

from ld3m.networks.fused import fused
from ld3m.networks.initialize import initialize
from ld3m.networks.own import Zoo
from ld3m.networks.table import NETWORKS, base_name, blueprint, build

__all__ = ["NETWORKS", "Zoo", "base_name", "blueprint", "build", "fused", "initialise", "initialize"]

initialise = initialize  # deprecated name
