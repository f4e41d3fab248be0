"""ViT: the small vision transformer of the GLaD and LD3M evaluations, without any layer norm above 32 px.

Attention is written out (no fused kernel), so that forward-mode derivatives and derivatives of gradients exist.
The nesting of the modules gives the official parameter names and order.
"""

import torch
from torch import Tensor, nn

from ld3m.errors import ConfigError

HEAD = 64  # channels of one attention head


class ViT(nn.Module):
    """A class token, learned positions, and blocks of attention and MLP.

    Args:
        resolution: images are (B, 3, resolution, resolution), a multiple of `patch`.
        patch: side of a patch in pixels.
        depth: blocks.
        layer_norm: norm before attention, before the MLP and in the head.
        scale: factor on width and MLP width; heads stay 64 wide, so there are fewer or more of them.
    """

    def __init__(
        self,
        num_classes: int,
        resolution: int,
        *,
        patch: int = 16,
        depth: int = 10,
        layer_norm: bool = False,
        scale: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if resolution < patch or resolution % patch or depth < 1:
            raise ConfigError(
                f"ViT needs a resolution that is a multiple of its patch of {patch} pixels and depth >= 1, "
                f"got resolution={resolution}, depth={depth}; resize the images or take another network"
            )
        width = max(1, round(512 * scale))
        self.pos_embedding = nn.Parameter(torch.empty(1, (resolution // patch) ** 2 + 1, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.to_patch_embedding = nn.Sequential(Patches(patch), nn.Linear(3 * patch * patch, width))
        self.dropout = nn.Dropout(dropout)
        self.transformer = Transformer(width, depth, layer_norm, dropout)
        norm = [nn.LayerNorm(width)] if layer_norm else []
        self.mlp_head = nn.Sequential(*norm, nn.Linear(width, num_classes))

    def embed(self, images: Tensor) -> Tensor:
        """Return what enters the last linear layer: the class token, normed where the head has a norm."""
        x = self.to_patch_embedding(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)  # (B, T, D) -> (B, 1+T, D)
        x = self.transformer(self.dropout(x + self.pos_embedding))
        return self.mlp_head[:-1](x[:, 0])  # (B, 1+T, D) -> (B, D)

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp_head[-1](self.embed(images))


class Patches(nn.Module):
    """Cut an image into patches; inside a patch the order is (row, column, channel)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        x = images.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (B, 3, H, W) -> (B, 3, h, p, w, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # -> (B, h * w, p * p * 3)


class Transformer(nn.Module):
    """Residual blocks of attention and MLP."""

    def __init__(self, width: int, depth: int, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(width, Attention(width, dropout), layer_norm),
                    PreNorm(width, FeedForward(width, dropout), layer_norm),
                ]
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attention, feed_forward = layer.children()
            x = x + attention(x)
            x = x + feed_forward(x)
        return x


class PreNorm(nn.Module):
    """A layer norm, or none, before a function."""

    def __init__(self, width: int, fn: nn.Module, layer_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values in one product without bias."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, round(width / HEAD))
        self.to_qkv = nn.Linear(width, 3 * self.heads * HEAD, bias=False)
        self.to_out = nn.Sequential(nn.Linear(self.heads * HEAD, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.to_qkv(x).unflatten(2, (3, self.heads, HEAD)).permute(2, 0, 3, 1, 4)
        )  # -> 3 x (B, heads, T, HEAD)
        weights = (q @ k.transpose(2, 3) * HEAD**-0.5).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))  # (B, heads, T, HEAD) -> (B, T, D)


class FeedForward(nn.Module):
    """An MLP with one hidden layer of the same width."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
