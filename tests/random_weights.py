"""Models of other packages with random weights, and images for them."""

import torch


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight and statistic random, so that nothing passes by being 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.05 if parameter.dim() < 2 else 0.7 * parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model.eval()


def photo(height: int, width: int) -> torch.Tensor:
    """Two smooth images in [-1, 1]."""
    y, x = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 5, width)[None]
    waves = [torch.sin(k * x + c) * torch.cos(y * (c + 1) - k) for k in (1, 2) for c in range(3)]
    return torch.stack(waves).reshape(2, 3, height, width)


def codes_like(latent: torch.Tensor, embedding: torch.nn.Embedding) -> None:
    """Spread the codes over the latents, so that many different ones are chosen."""
    rows = latent.movedim(1, -1).reshape(-1, latent.shape[1])
    generator = torch.Generator().manual_seed(1)
    picked = rows[torch.randint(len(rows), (embedding.num_embeddings,), generator=generator)]
    embedding.weight.data.copy_(picked + torch.randn(picked.shape, generator=generator) * rows.std() * 0.3)


DIFFUSERS = {
    "plain": {},
    "amused": {"mid_block_add_attention": False, "lookup_from_codebook": True, "vq_embed_dim": 6},
    "movq": {"norm_type": "spatial"},
    "sixteen groups": {"norm_num_groups": 16, "layers_per_block": 2},
}
"""Options of diffusers' `VQModel` in the kinds that were published."""
