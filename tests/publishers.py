"""The publishers' tokenizers written out once more, as plain functions of tensors under the publishers' own names.

An oracle for `load_published`: nothing here comes from the package. A network draws each weight when it first meets its
name, so running it once defines names, shapes and values; `tensors` is then what its publisher would have saved.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Network:
    """taming-transformers; the others override what they do differently."""

    ch: int = 32
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    mid_attention: bool = True
    z: int = 8
    dim: int = 4
    codes: int = 40
    seed: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    down, up, unit = "down", "up", "block"
    fine_to_coarse = True  # how the decoder's levels are numbered
    biased = True
    latent_kernel = 3
    quant_kernel = 1
    decoder_extra = 1  # more blocks a level than the encoder has

    # ---- layers -------------------------------------------------------------------------------------------------

    def tensor(self, name: str, *shape: int, spread: float | None = None, around: float = 0.0) -> Tensor:
        """The weight of that name, drawn from a normal distribution the first time."""
        if name not in self.tensors:
            value = torch.empty(shape)
            if not value.is_meta:  # else names and shapes are all that matters, and drawing nothing takes long
                fan_in = max(1, torch.Size(shape[1:]).numel())
                value.normal_(generator=torch.Generator().manual_seed(self.seed + len(self.tensors)))
                value = value * (spread or fan_in**-0.5) + around
            self.tensors[name] = value
        assert self.tensors[name].shape == shape, name
        return self.tensors[name]

    def conv(self, name: str, x: Tensor, out: int, kernel: int = 3, *, bias: bool = True, **how: int) -> Tensor:
        weight = self.tensor(f"{name}.weight", out, x.shape[1], kernel, kernel)
        offset = self.tensor(f"{name}.bias", out, spread=0.1) if bias else None
        return F.conv2d(x, weight, offset, **{"padding": kernel // 2, **how})

    def linear(self, name: str, x: Tensor, out: int) -> Tensor:
        return x @ self.tensor(f"{name}.weight", out, x.shape[-1]).T + self.tensor(f"{name}.bias", out, spread=0.1)

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensor(f"{name}.weight", x.shape[1], spread=0.2, around=1.0)
        return F.group_norm(x, 32, weight, self.tensor(f"{name}.bias", x.shape[1], spread=0.2), eps=1e-6)

    def block(self, name: str, x: Tensor, out: int) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), out, bias=self.biased)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), out, bias=self.biased)
        return h + (x if x.shape[1] == out else self.shortcut(f"{name}.nin_shortcut", x, h))

    def shortcut(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        return self.conv(name, x, h.shape[1], 1, bias=self.biased)

    def attend(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2) for part in self.qkv(name, self.norm(f"{name}.norm", x)))
        weights = (torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5).softmax(dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).view_as(x), x.shape[1], 1)

    def qkv(self, name: str, x: Tensor) -> list[Tensor]:
        return [self.conv(f"{name}.{part}", x, x.shape[1], 1) for part in "qkv"]

    # ---- encoder and decoder ------------------------------------------------------------------------------------

    @property
    def stride(self) -> int:
        return 2 ** (len(self.mult) - 1)

    def encode(self, image: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", image, self.ch, bias=self.biased)
        for i, mult in enumerate(self.mult):
            x = self.level(f"encoder.{self.down}.{i}", x, i, self.ch * mult, self.blocks)
            if i < len(self.mult) - 1:
                x = self.halve(f"encoder.{self.down}.{i}", x)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        return self.to_codes(self.conv("encoder.conv_out", x, self.z, self.latent_kernel))

    def decode(self, z_q: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", self.from_codes(z_q), self.ch * self.mult[-1])
        x = self.middle("decoder", x)
        for i in reversed(range(len(self.mult))):
            number = i if self.fine_to_coarse else len(self.mult) - 1 - i
            x = self.enter(f"decoder.adaptive.{number}", x, z_q)
            blocks = self.blocks + self.decoder_extra
            x = self.level(f"decoder.{self.up}.{number}", x, i, self.ch * self.mult[i], blocks)
            if i > 0:
                x = self.double(f"decoder.{self.up}.{number}", x)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), 3)

    def level(self, name: str, x: Tensor, i: int, width: int, blocks: int) -> Tensor:
        for j in range(blocks):
            x = self.block(f"{name}.{self.unit}.{j}", x, width)
            if i in self.attention:
                x = self.attend(f"{name}.attn.{j}", x)
        return x

    def middle(self, half: str, x: Tensor) -> Tensor:
        x = self.block(f"{half}.mid.block_1", x, x.shape[1])
        x = self.attend(f"{half}.mid.attn_1", x) if self.mid_attention else x
        return self.block(f"{half}.mid.block_2", x, x.shape[1])

    def halve(self, name: str, x: Tensor) -> Tensor:
        return self.conv(f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], stride=2, padding=0)

    def double(self, name: str, x: Tensor) -> Tensor:
        twice = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return self.conv(f"{name}.upsample.conv", twice, x.shape[1])

    def enter(self, name: str, x: Tensor, z_q: Tensor) -> Tensor:
        return x

    def to_codes(self, h: Tensor) -> Tensor:
        return self.conv("quant_conv", h, self.dim, self.quant_kernel)

    def from_codes(self, z_q: Tensor) -> Tensor:
        return self.conv("post_quant_conv", z_q, self.z, self.quant_kernel)

    # ---- codes --------------------------------------------------------------------------------------------------

    def codebook(self, z: Tensor) -> Tensor:
        """Codes among the latents, so that many different ones are chosen."""
        if "quantize.embedding.weight" not in self.tensors:
            rows = z.movedim(1, -1).reshape(-1, z.shape[1])
            generator = torch.Generator().manual_seed(self.seed)
            picked = rows[torch.randint(len(rows), (self.codes,), generator=generator)]
            noise = torch.randn(picked.shape, generator=generator) * rows.std() * 0.3
            self.tensors["quantize.embedding.weight"] = picked + noise
        return self.tensors["quantize.embedding.weight"]

    def score(self, z_BhwD: Tensor, codes: Tensor) -> Tensor:
        """(B, h, w, K): the larger, the better a code fits."""
        return -(z_BhwD.unsqueeze(-2) - codes).square().sum(-1)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (B, h, w) and codes (B, D, h, w)."""
        codes = self.codebook(z)
        indices = self.score(z.movedim(1, -1), codes).argmax(-1)
        return indices, codes[indices].movedim(-1, 1)


class Gumbel(Network):
    """taming's Gumbel model without its noise."""

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        indices = self.conv("quantize.proj", z, self.codes, 1).argmax(1)
        return indices, self.tensor("quantize.embed.weight", self.codes, self.dim)[indices].movedim(-1, 1)


class IBQ(Network):
    """The largest dot product."""

    def score(self, z_BhwD: Tensor, codes: Tensor) -> Tensor:
        return z_BhwD @ codes.T


class LlamaGen(Network):
    """A list in the middle, decoder levels as they run, unit codes."""

    down, up, unit, fine_to_coarse = "conv_blocks", "conv_blocks", "res", False

    def middle(self, half: str, x: Tensor) -> Tensor:
        x = self.attend(f"{half}.mid.1", self.block(f"{half}.mid.0", x, x.shape[1]))
        return self.block(f"{half}.mid.2", x, x.shape[1])

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = F.normalize(self.codebook(z), dim=1)
        indices = (z.movedim(1, -1) @ codes.T).argmax(-1)
        return indices, codes[indices].movedim(-1, 1)


class MaskGIT(Network):
    """No bias, no attention, pooling, a shortcut that looks at the result; images in [0, 1]."""

    biased, latent_kernel, decoder_extra = False, 1, 0

    def shortcut(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        return self.conv(name, h, h.shape[1], 1, bias=False)

    def middle(self, half: str, x: Tensor) -> Tensor:
        for k in range(self.blocks):
            x = self.block(f"{half}.mid.{k}", x, x.shape[1])
        return x

    def halve(self, name: str, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def double(self, name: str, x: Tensor) -> Tensor:
        return self.conv(f"{name}.upsample_conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), x.shape[1])

    def to_codes(self, h: Tensor) -> Tensor:
        return h

    def from_codes(self, z_q: Tensor) -> Tensor:
        return z_q


class OpenMAGVIT2(MaskGIT):
    """Symmetric strides, channels to pixels, norms that look at the latent, signs for codes."""

    shortcut = Network.shortcut

    def middle(self, half: str, x: Tensor) -> Tensor:
        for k in range(self.blocks):
            x = self.block(f"{half}.mid_block.{k}", x, x.shape[1])
        return x

    def halve(self, name: str, x: Tensor) -> Tensor:
        return self.conv(f"{name}.downsample", x, x.shape[1], stride=2)

    def double(self, name: str, x: Tensor) -> Tensor:
        wide = self.conv(f"{name}.upsample.conv1", x, 4 * x.shape[1])
        pixels = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        for i, part in enumerate(wide.chunk(4, dim=1)):
            pixels[:, :, i // 2 :: 2, i % 2 :: 2] = part
        return pixels

    def enter(self, name: str, x: Tensor, z_q: Tensor) -> Tensor:
        scale = self.linear(f"{name}.gamma", (z_q.flatten(2).var(2) + 1e-6).sqrt(), x.shape[1])
        shift = self.linear(f"{name}.beta", z_q.flatten(2).mean(2), x.shape[1])
        return F.group_norm(x, 32, eps=1e-6) * scale[:, :, None, None] + shift[:, :, None, None]

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        powers = 2 ** torch.arange(self.z)
        return ((z > 0).long() * powers[:, None, None]).sum(1), (z > 0) * 2.0 - 1.0


@dataclass
class VAR(Network):
    """One convolution for queries, keys and values, 3x3 convolutions around the codes, many scales."""

    patch_nums: tuple[int, ...] = (1, 2, 3, 4)
    shared: int = 4  # φ: 0 one a scale, 1 one for all, else that many
    znorm: bool = False
    ratio: float = 0.5

    quant_kernel = 3

    def qkv(self, name: str, x: Tensor) -> list[Tensor]:
        return list(self.conv(f"{name}.qkv", x, 3 * x.shape[1], 1).chunk(3, dim=1))

    def phi(self, k: int, h: Tensor) -> Tensor:
        """φ of scale k: the one whose place on the way from 0 to 1 is nearest."""
        count = self.shared or len(self.patch_nums)
        margin = 1 / (3 if count == 4 else 2) / count
        places = np.linspace(margin, 1 - margin, count)
        nearest = int(np.abs(places - k / (len(self.patch_nums) - 1)).argmin())
        front = "quantize.quant_resi"
        names = {0: [f"{front}.{i}" for i in range(count)], 1: [f"{front}.qresi"]}
        mixed = [
            self.conv(name, h, h.shape[1])  # all of them are saved, chosen or not
            for name in names.get(self.shared, [f"{front}.qresi_ls.{i}" for i in range(count)])
        ]
        return (1 - self.ratio) * h + self.ratio * mixed[nearest]

    def score(self, z_BhwD: Tensor, codes: Tensor) -> Tensor:
        if self.znorm:
            return F.normalize(z_BhwD, dim=-1) @ F.normalize(codes, dim=1).T
        return super().score(z_BhwD, codes)

    def scales(self, z: Tensor, grids: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor]]:
        """Indices (B, h_k, w_k) and f_hat (B, D, H, W) after each scale."""
        codes, left, f_hat = self.codebook(z), z, torch.zeros_like(z)
        indices, f_hats = [], []
        for k, grid in enumerate(grids):
            seen = F.interpolate(left, size=grid, mode="area")
            indices.append(self.score(seen.movedim(1, -1), codes).argmax(-1))
            h = codes[indices[-1]].movedim(-1, 1)
            h = self.phi(k, h if grid == z.shape[2:] else F.interpolate(h, size=z.shape[2:], mode="bicubic"))
            f_hat, left = f_hat + h, left - h
            f_hats.append(f_hat)
        self.tensors["quantize.ema_vocab_hit_SV"] = torch.zeros(len(grids), self.codes)
        return indices, f_hats


@dataclass
class TiTok(Network):
    """Two transformers; the pixels by the decoder of a MaskGIT-VQGAN (`two_stages`) or directly."""

    two_stages: bool = True
    width: int = 128
    layers: int = 2
    side: int = 32
    patch: int = 8
    tokens: int = 6
    decoder_width: int | None = None  # None: as the encoder
    decoder_layers: int | None = None
    pixel_codes: int = 50

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.tensor(f"{name}.weight", x.shape[-1], spread=0.2, around=1.0)
        return F.layer_norm(x, x.shape[-1:], weight, self.tensor(f"{name}.bias", x.shape[-1], spread=0.2))

    def transformer(self, half: str, x: Tensor) -> Tensor:
        x, width = self.layer_norm(f"{half}.ln_pre", x), x.shape[-1]
        for i in range(self.layers if half == "encoder" else self.decoder_layers or self.layers):
            name = f"{half}.transformer.{i}"
            weight = self.tensor(f"{name}.attn.in_proj_weight", 3 * width, width)
            bias = self.tensor(f"{name}.attn.in_proj_bias", 3 * width, spread=0.1)
            parts = (self.layer_norm(f"{name}.ln_1", x) @ weight.T + bias).chunk(3, dim=-1)
            q, k, v = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in parts)
            looked = (q @ k.transpose(2, 3) / 8).softmax(-1) @ v
            x = x + self.linear(f"{name}.attn.out_proj", looked.transpose(1, 2).flatten(2), width)
            hidden = F.gelu(self.linear(f"{name}.mlp.c_fc", self.layer_norm(f"{name}.ln_2", x), 4 * width))
            x = x + self.linear(f"{name}.mlp.c_proj", hidden, width)
        return self.layer_norm(f"{half}.ln_post", x)

    def table(self, name: str, rows: int, width: int) -> Tensor:
        return self.tensor(name, rows, width, spread=0.3)

    def encode(self, image: Tensor) -> Tensor:
        batch, places = image.shape[0], (self.side // self.patch) ** 2
        patches = self.conv("encoder.patch_embed", image, self.width, self.patch, stride=self.patch, padding=0)
        first = self.table("encoder.class_embedding", 1, self.width).expand(batch, 1, -1)
        x = torch.cat([first, patches.flatten(2).mT], dim=1)
        x = x + self.table("encoder.positional_embedding", places + 1, self.width)
        latent = self.table("latent_tokens", self.tokens, self.width)
        latent = latent + self.table("encoder.latent_token_positional_embedding", self.tokens, self.width)
        x = self.transformer("encoder", torch.cat([x, latent.expand(batch, -1, -1)], dim=1))[:, -self.tokens :]
        # The two-stage models read (tokens, width) as (width, tokens)
        x = x.reshape(batch, self.width, self.tokens, 1) if self.two_stages else x.mT.unsqueeze(3)
        return self.conv("encoder.conv_out", x, self.dim, 1).reshape(batch, self.dim, 1, self.tokens)

    def decode(self, z_q: Tensor) -> Tensor:
        batch, grid, width = z_q.shape[0], self.side // self.patch, self.decoder_width or self.width
        x = self.linear("decoder.decoder_embed", z_q.squeeze(2).mT, width)
        x = x + self.table("decoder.latent_token_positional_embedding", self.tokens, width)
        mask = self.tensor("decoder.mask_token", 1, 1, width).expand(1, grid**2, -1)[0]
        places = torch.cat([self.table("decoder.class_embedding", 1, width), mask])
        places = places + self.table("decoder.positional_embedding", grid**2 + 1, width)
        x = self.transformer("decoder", torch.cat([places.expand(batch, -1, -1), x], dim=1))[:, 1 : grid**2 + 1]
        x = x.mT.reshape(batch, width, grid, grid)
        if self.two_stages:
            return self.paint(x)
        squares = self.conv("decoder.ffn.0", x, 3 * self.patch**2, 1).unflatten(1, (self.patch, self.patch, 3))
        pixels = torch.einsum("bpqchw->bchpwq", squares).reshape(batch, 3, self.side, self.side)
        return self.conv("decoder.conv_out", pixels, 3)

    def paint(self, x: Tensor) -> Tensor:
        """Shares of the codes of a MaskGIT-VQGAN, and its decoder; `patch` must be that VQGAN's stride."""
        hidden = self.conv("decoder.ffn.0", x, 2 * x.shape[1], 1).tanh()
        shares = self.conv("decoder.ffn.2", hidden, self.pixel_codes, 1).softmax(1)
        codes = self.tensor("pixel_quantize.embedding.weight", self.pixel_codes, self.z, spread=1.0)
        vqgan = MaskGIT(self.ch, self.mult, self.blocks, z=self.z, seed=self.seed + 1000)
        image = vqgan.decode(torch.einsum("bkhw,kd->bdhw", shares, codes))
        self.tensors |= {f"pixel_{name}": tensor for name, tensor in vqgan.tensors.items()}
        return image

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.codebook(z)
        if self.two_stages:
            codes = F.normalize(codes, dim=1)
        indices = self.score((F.normalize(z, dim=1) if self.two_stages else z).movedim(1, -1), codes).argmax(-1)
        return indices, codes[indices].movedim(-1, 1)
