"""More publishers' tokenizers as plain functions of tensors, see `publishers.py`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from publishers import MaskGIT, Network, OpenMAGVIT2
from torch import Tensor


class SimVQ(OpenMAGVIT2):
    """Open-MAGVIT2's networks without norms that look at the latent; codes behind a linear layer."""

    def enter(self, name: str, x: Tensor, z_q: Tensor) -> Tensor:
        return x

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.linear("quantize.embedding_proj", self.codebook(z), z.shape[1])
        indices = self.score(z.movedim(1, -1), codes).argmax(-1)
        return indices, codes[indices].movedim(-1, 1)


class MoVQ(Network):
    """Every norm of the decoder looks at the codes."""

    z_q: Tensor

    def decode(self, z_q: Tensor) -> Tensor:
        self.z_q = z_q
        return super().decode(z_q)

    def norm(self, name: str, x: Tensor) -> Tensor:
        if name.startswith("encoder"):
            return super().norm(name, x)
        near = F.interpolate(self.z_q, size=x.shape[2:], mode="nearest")
        scale, shift = (self.conv(f"{name}.{part}", near, x.shape[1], 1) for part in ("conv_y", "conv_b"))
        return super().norm(f"{name}.norm_layer", x) * scale + shift


@dataclass
class RQVAE(Network):
    """Levels that quantize what the ones before left over; a table ends in a row that is never searched."""

    levels: int = 3
    shared: bool = True

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        left, chosen = z.movedim(1, -1), []
        for level in range(self.levels):
            first = self.codebook(z) * (1.0 if self.shared else 0.7**level)
            row = torch.zeros(1, z.shape[1])
            self.tensors[f"quantizer.codebooks.{level}.weight"] = torch.cat([first, row])
            self.tensors[f"quantizer.codebooks.{level}.embed_ema"] = first * 9
            chosen.append(self.score(left, first).argmax(-1))
            left = left - first[chosen[-1]]
        del self.tensors["quantize.embedding.weight"]
        return torch.stack(chosen, -1), z - left.movedim(-1, 1)


@dataclass
class Infinity(Network):
    """Every layer in a module of its own (or not), no attention; signs of the residual at every scale."""

    wrapped: bool = True
    sides: tuple[int, ...] = (1, 2, 4)
    mid_attention: bool = False

    def conv(self, name: str, x: Tensor, out: int, kernel: int = 3, *, bias: bool = True, **how: int) -> Tensor:
        return super().conv(f"{name}.conv" if self.wrapped else name, x, out, kernel, bias=bias, **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return super().norm(f"{name}.norm" if self.wrapped else name, x)

    def to_codes(self, h: Tensor) -> Tensor:
        self.tensor("quantizer.lfq.mask", self.z)
        self.tensor("quantize.lfq.mask", self.z)
        return h

    def from_codes(self, z_q: Tensor) -> Tensor:
        return z_q

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """All bits (B, L d), coarse to fine, and the sum of the codes."""
        total, bits = torch.zeros_like(z), []
        for side in self.sides:
            found = F.adaptive_avg_pool2d(z - total, side) > 0
            code = (found.float() * 2 - 1) / z.shape[1] ** 0.5
            total = total + F.interpolate(code, size=z.shape[2:], mode="bilinear", align_corners=False)
            bits.append(found.movedim(1, -1).flatten(1).long())
        return torch.cat(bits, 1), total


def signs(z: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
    return ((z > 0).long() * powers[:, None, None]).sum(1), (z > 0) * 2.0 - 1.0


class MaskBit(MaskGIT):
    """Convolutions with a stride, the decoder's levels as they run, signs for codes."""

    unit, fine_to_coarse = "res_blocks", False

    def middle(self, half: str, x: Tensor) -> Tensor:
        for k in range(self.blocks):
            x = self.block(f"{half}.mid.res_blocks.{k}", x, x.shape[1])
        return x

    def halve(self, name: str, x: Tensor) -> Tensor:
        return self.conv(f"{name}.down_conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], stride=2, padding=0)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.tensors["quantize.bits_to_indices"] = 2 ** torch.arange(self.z, dtype=torch.int32)
        return signs(z, 2 ** torch.arange(self.z))


class LegacyMaskBit(MaskBit):
    """The decoder's levels listed backwards, and a codebook (VQGAN+)."""

    fine_to_coarse = True

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return Network.quantize(self, z)


@dataclass
class ShowO(Network):
    """Widths and blocks of each level, of encoder and decoder apart; the first channel is the highest bit."""

    decoder_mult: tuple[int, ...] = (1, 3)
    counts: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 1), (1, 3))

    def level(self, name: str, x: Tensor, i: int, width: int, blocks: int) -> Tensor:
        return super().level(name, x, i, width, self.counts[name.startswith("decoder")][i])

    def decode(self, z_q: Tensor) -> Tensor:
        mult, self.mult = self.mult, self.decoder_mult
        image = super().decode(z_q)
        self.mult = mult
        return image

    def to_codes(self, h: Tensor) -> Tensor:
        return self.conv("encoder.quant_conv", h, self.z, 1)

    def from_codes(self, z_q: Tensor) -> Tensor:
        return self.conv("decoder.post_quant_conv", z_q, self.z, 1)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.tensors["quantize.power_vals"] = 2 ** torch.arange(self.z)
        self.tensors["quantize.embedding"] = torch.ones(2**self.z, self.z)
        return signs(z, 2 ** torch.arange(self.z).flip(0))


@dataclass
class WeTok(OpenMAGVIT2):
    """Groups of eight signs; with `noise` the decoder sees as much noise as code."""

    noise: bool = False

    def from_codes(self, z_q: Tensor) -> Tensor:
        return torch.cat([z_q, torch.randn_like(z_q)], dim=1) if self.noise else z_q

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        groups = [signs(part, 2 ** torch.arange(8)) for part in z.split(8, dim=1)]
        z_q = torch.cat([codes for _, codes in groups], dim=1)
        return torch.stack([indices for indices, _ in groups], -1), z_q.contiguous(memory_format=torch.channels_last)


@dataclass
class Cosmos(Network):
    """Haar patches as convolutions with outer products, fewer or more halvings than levels, rounded components."""

    rounds: int = 1
    samplings: int = 1

    @property
    def stride(self) -> int:
        return 2 ** (self.rounds + self.samplings)

    def kernels(self, channels: int) -> Tensor:
        low, high = torch.tensor([1.0, 1.0]) / 2, torch.tensor([1.0, -1.0]) / 2
        pairs = [(low, low), (low, high), (high, low), (high, high)]  # over the width, over the height
        kernels = torch.stack([down[:, None] * across[None] for across, down in pairs])
        return kernels.repeat_interleave(channels, 0)[:, None]

    def encode(self, image: Tensor) -> Tensor:
        for _ in range(self.rounds):
            channels = image.shape[1]
            image = F.conv2d(image.repeat(1, 4, 1, 1), self.kernels(channels), stride=2, groups=4 * channels)
        x = self.conv("encoder.conv_in", image, self.ch)
        for i, mult in enumerate(self.mult):
            x = self.level(f"encoder.down.{i}", x, i, self.ch * mult, self.blocks)
            x = self.halve(f"encoder.down.{i}", x) if i < self.samplings else x
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        return self.to_codes(self.conv("encoder.conv_out", x, self.z))

    def decode(self, z_q: Tensor) -> Tensor:
        x = self.middle("decoder", self.conv("decoder.conv_in", self.from_codes(z_q), self.ch * self.mult[-1]))
        for i in reversed(range(len(self.mult))):
            x = self.level(f"decoder.up.{i}", x, i, self.ch * self.mult[i], self.blocks + 1)
            x = self.double(f"decoder.up.{i}", x) if i >= len(self.mult) - self.samplings else x
        x = self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), 3 * 4**self.rounds)
        for _ in range(self.rounds):
            channels = x.shape[1] // 4
            wide = F.conv_transpose2d(x, 4 * self.kernels(channels), stride=2, groups=4 * channels)
            x = wide.unflatten(1, (4, channels)).sum(1)
        return x

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        levels = torch.tensor([8, 5] * (self.dim // 2))
        half, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = (z.movedim(1, -1) + (offset / half).atanh()).tanh() * half - offset
        digits = bounded.round() + levels // 2
        worth = torch.cat([torch.ones(1, dtype=torch.int64), levels.cumprod(0)[:-1]])
        codes = (digits - levels // 2) / (levels // 2)
        return (digits.long() * worth).sum(-1), codes.movedim(-1, 1)


@dataclass
class DVAE(Network):
    """OpenAI's, under the names that encoder and decoder have when they are one."""

    code_width: int = 6
    groups: int = 3
    decoder_ch: int = 16

    @property
    def stride(self) -> int:
        return 2 ** (self.groups - 1)

    def conv(self, name: str, x: Tensor, out: int, kernel: int = 3, *, bias: bool = True, **how: int) -> Tensor:
        weight = self.tensor(f"{name}.w", out, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.tensor(f"{name}.b", out, spread=0.1), padding=kernel // 2)

    def group(self, name: str, x: Tensor, out: int, kernels: tuple[int, ...]) -> Tensor:
        for j in range(1, self.blocks + 1):
            block, h = f"{name}.block_{j}", x
            for k, kernel in enumerate(kernels, start=1):
                h = self.conv(f"{block}.res_path.conv_{k}", h.relu(), out if k == 4 else out // 4, kernel)
            x = x if x.shape[1] == out else self.conv(f"{block}.id_path", x, out, 1)
            x = x + h / (self.groups * self.blocks) ** 2
        return x

    def encode(self, image: Tensor) -> Tensor:
        x = self.conv("encoder.blocks.input", image, self.ch, 7)
        for i in range(self.groups):
            x = self.group(f"encoder.blocks.group_{i + 1}", x, self.ch * 2**i, (3, 3, 3, 1))
            x = F.max_pool2d(x, 2) if i < self.groups - 1 else x
        return self.conv("encoder.blocks.output.conv", x.relu(), self.codes, 1)

    def decode(self, z_q: Tensor) -> Tensor:
        x = self.conv("decoder.blocks.input", z_q, self.code_width, 1)
        for i in range(self.groups):
            width = self.decoder_ch * 2 ** (self.groups - 1 - i)
            x = self.group(f"decoder.blocks.group_{i + 1}", x, width, (1, 3, 3, 3))
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if i < self.groups - 1 else x
        return (self.conv("decoder.blocks.output.conv", x.relu(), 6, 1)[:, :3].sigmoid() - 0.1) / 0.8

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        indices = z.argmax(1)
        return indices, F.one_hot(indices, self.codes).movedim(-1, 1).float()
