"""The heads of an official DiT, which its weights do not tell."""

import pytest
import torch

import ld3m

HEADS = {384: 6, 768: 12, 1152: 16}  # Peebles & Xie 2023, table 1: S, B, XL


@pytest.mark.parametrize("width", HEADS)
def test_a_published_width_has_the_published_heads(width, d3hr, dit_folder, tmp_path):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed  # slow

    wider = {32: width, 64: 2 * width, 96: 3 * width, 128: 4 * width, 192: 6 * width}
    weights = {}
    for key, tensor in d3hr.items():
        name = key.removeprefix("w/")
        if key.startswith("w/") and "blocks.1." not in name:
            size = [wider.get(count, count) for count in tensor.shape]
            if name.startswith("final_layer.linear"):
                size[0] = len(tensor)  # pixels of a patch
            weights[name] = torch.zeros(size, dtype=torch.float16)
    weights["pos_embed"] = get_2d_sincos_pos_embed(width, 4, base_size=4, output_type="pt")[None].float()
    torch.save(weights, tmp_path / "wide.pt")
    for folder in ("vae", "scheduler"):
        (tmp_path / folder).symlink_to(dit_folder / folder)
    prior = ld3m.load_prior(tmp_path / "wide.pt")
    attention = prior.denoiser.dit.transformer_blocks[0].attn1
    assert (attention.heads, attention.to_q.out_features) == (HEADS[width], width)
