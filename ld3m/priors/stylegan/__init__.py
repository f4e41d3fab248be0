"""StyleGAN-XL generators, frozen."""
