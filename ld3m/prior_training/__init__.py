"""Training of small latent diffusion models on a user's own images."""
