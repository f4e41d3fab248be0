"""The reverse chain as a differentiable function in a loss of one's own.

python examples/chain_in_own_loss.py

Latents are optimised until the generated images have a wanted brightness on their left and on their right half.
"""

import torch

import ld3m


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Mean of the left and right halves of images (B, 3, H, W): (B, 2)."""
    left, right = images.chunk(2, dim=-1)
    return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], dim=1)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(0)
    prior = ld3m.load_prior("builtin")
    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=generator).requires_grad_()
    noise = torch.randn(latents.shape, generator=generator)  # the same in every iteration: the chain is a function
    conditioning = prior.embed(torch.tensor([0, 1]))
    wanted = torch.tensor([[-0.8, 0.2], [0.2, -0.8]])
    optimizer = torch.optim.Adam([latents], lr=0.1)
    for iteration in range(10):
        z0 = ld3m.reverse_chain(prior, latents, conditioning, steps=4, guidance_scale=1.0, noise=noise, retain=1.0)
        loss = (brightness(prior.decode(z0)) - wanted).square().mean()
        if iteration == 0:
            print(f"loss at first {loss.item():.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss at last {loss.item():.4f}")
