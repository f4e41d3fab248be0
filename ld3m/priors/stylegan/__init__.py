"""StyleGAN-XL generators, frozen."""

from ld3m.priors.stylegan.generator import StyleGAN
from ld3m.priors.stylegan.loading import NAMES, load_stylegan

__all__ = ["NAMES", "StyleGAN", "load_stylegan"]
