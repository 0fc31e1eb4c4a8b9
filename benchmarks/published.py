"""Published tokenizers side by side: the package that its publisher maintains on PyPI, and ours on the same weights.

    python benchmarks/published.py [--rounds 7] [--only janus] [--out published.json]

Every model has its published sizes and random weights. It is saved by its own package, loaded by `load_published`, and
checked to give the same tokens and images. Each round then times theirs and ours on one image, taking turns to begin,
so that whatever else the machine does hits both; a ratio is the median over the rounds of ours / theirs, below 1 where
ours is faster. A table in Markdown goes beside the JSON file.

Of taming-transformers and open-magvit2 only the networks are used, which need no more than torch and einops.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from report import Terms, beginning, facts, write
from taming.modules.diffusionmodules import model as taming_networks
from taming.modules.vqvae.quantize import VectorQuantizer as TamingQuantizer
from torch import Tensor, nn

from smalti import load_published

with warnings.catch_warnings():  # the packages' own imports may warn
    warnings.simplefilter("ignore")
    from diffusers import VQModel
    from open_magvit2.taming.modules.diffusionmodules import improved_model as magvit2_networks
    from open_magvit2.taming.modules.vqvae.lookup_free_quantize import LFQ
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAE, Emu3VQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConfig

THREADS = 2
PACKAGES = ("taming-transformers", "open-magvit2", "diffusers", "transformers")


class Contestant(NamedTuple):
    """One published tokenizer as its own package has it."""

    model: nn.Module
    side: int
    """Pixels a side of the image: as large as a round of a few seconds allows."""
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor] | None


def of_diffusers(widths: list[int], attention: bool, **options) -> Contestant:
    kinds = ["EncoderBlock2D"] * (len(widths) - 1) + (["AttnEncoder"] if attention else ["EncoderBlock2D"])
    down = ["AttnDownEncoderBlock2D" if kind == "AttnEncoder" else "DownEncoderBlock2D" for kind in kinds]
    up = ["AttnUpDecoderBlock2D" if kind == "AttnEncoder" else "UpDecoderBlock2D" for kind in reversed(kinds)]
    model = VQModel(block_out_channels=widths, down_block_types=down, up_block_types=up, layers_per_block=2, **options)
    model = model.eval()

    def encode(image: Tensor) -> Tensor:
        latent = model.encode(image).latents
        return model.quantize(latent)[2][2].reshape(len(image), *latent.shape[2:])

    def decode(indices: Tensor) -> Tensor:
        shape = (*indices.shape, model.quantize.vq_embed_dim)
        return model.decode(model.quantize.get_codebook_entry(indices.flatten(), shape), force_not_quantize=True).sample

    return Contestant(model, 256, encode, decode)


def amused() -> Contestant:
    options = {"latent_channels": 64, "num_vq_embeddings": 8192, "mid_block_add_attention": False}
    return of_diffusers([128, 256, 256, 512, 768], attention=False, **options)


def movq() -> Contestant:
    options = {"latent_channels": 4, "num_vq_embeddings": 16384, "norm_type": "spatial"}
    return of_diffusers([128, 256, 256, 512], attention=True, **options)


def latent_diffusion() -> Contestant:
    return of_diffusers([128, 256, 512], attention=False, latent_channels=3, num_vq_embeddings=8192)


def chameleon() -> Contestant:
    model = ChameleonVQVAE(ChameleonVQVAEConfig()).eval()
    return Contestant(model, 256, lambda image: model.encode(image).image_tokens.reshape(1, 16, 16), None)


def janus() -> Contestant:
    model = JanusVQVAE(JanusVQVAEConfig(num_patches=16)).eval()
    return Contestant(
        model,
        256,
        lambda image: model.encode(image).image_tokens.reshape(1, 16, 16),
        lambda indices: model.decode(indices.flatten(1)),
    )


def emu3() -> Contestant:
    model = Emu3VQVAE(Emu3VQVAEConfig()).eval()

    def encode(image: Tensor) -> Tensor:
        return torch.stack(model.encode(image, image_sizes=torch.tensor([image.shape[2:]])).image_tokens)

    return Contestant(model, 128, encode, model.decode)


class TamingVQGAN(nn.Module):
    """taming's f16 model with 1024 codes, put together without Lightning."""

    def __init__(self):
        super().__init__()
        sizes = {
            "ch": 128, "out_ch": 3, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": [16],
            "in_channels": 3, "resolution": 256, "z_channels": 256,
        }  # fmt: skip
        self.encoder = taming_networks.Encoder(**sizes, double_z=False)
        self.decoder = taming_networks.Decoder(**sizes)
        self.quantize = TamingQuantizer(1024, 256, beta=0.25)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(256, 256, 1), nn.Conv2d(256, 256, 1)


def taming() -> Contestant:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its sizes
        model = TamingVQGAN().eval()

    def encode(image: Tensor) -> Tensor:
        return model.quantize(model.quant_conv(model.encoder(image)))[2][2].reshape(1, 16, 16)

    def decode(indices: Tensor) -> Tensor:
        z_q = model.quantize.get_codebook_entry(indices.flatten(), (*indices.shape, 256))
        return model.decoder(model.post_quant_conv(z_q))

    return Contestant(model, 256, encode, decode)


def magvit2() -> Contestant:
    sizes = {
        "ch": 128, "out_ch": 3, "in_channels": 3, "num_res_blocks": 4, "z_channels": 18, "ch_mult": (1, 1, 2, 2, 4),
        "resolution": 128,
    }  # fmt: skip
    model = nn.Module().eval()
    model.encoder, model.decoder = magvit2_networks.Encoder(**sizes), magvit2_networks.Decoder(**sizes)
    model.quantize = LFQ(dim=18, codebook_size=2**18).eval()

    def encode(image: Tensor) -> Tensor:
        return model.quantize(model.encoder(image), return_loss_breakdown=True)[0][2].reshape(1, 16, 16)

    def decode(indices: Tensor) -> Tensor:
        return model.decoder(model.quantize.get_codebook_entry(indices.flatten(1), (*indices.shape, 18), None))

    return Contestant(model, 256, encode, decode)


CONTESTANTS = {
    "taming VQGAN f16": ("taming-transformers", taming),
    "Open-MAGVIT2 256": ("open-magvit2", magvit2),
    "aMUSEd": ("diffusers", amused),
    "latent diffusion vq-f4": ("diffusers", latent_diffusion),
    "Kandinsky MoVQ": ("diffusers", movq),
    "Chameleon": ("transformers", chameleon),
    "Janus": ("transformers", janus),
    "Emu3": ("transformers", emu3),
}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(calls: tuple[Callable[[], object], Callable[[], object]], ours_first: bool) -> tuple[float, float]:
    """Seconds of theirs and of ours."""
    theirs, ours = calls
    if ours_first:
        our = seconds(ours)
        return seconds(theirs), our
    return seconds(theirs), seconds(ours)


def compare(make: Callable[[], Contestant], rounds: int) -> dict:
    """Milliseconds of both, and the ratios."""
    torch.manual_seed(0)
    theirs = make()
    if hasattr(theirs.model.quantize, "embedding"):
        nn.init.normal_(theirs.model.quantize.embedding.weight)
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(theirs.model, "save_pretrained"):
            theirs.model.save_pretrained(folder)
        else:
            torch.save({"state_dict": theirs.model.state_dict()}, Path(folder, "pytorch_model.bin"))
        ours = load_published(folder)
    image = torch.rand(1, 3, theirs.side, theirs.side) * 2 - 1
    tokens, indices = ours.encode(image), theirs.encode(image)
    agree = (tokens.indices[0] == indices).double().mean().item()
    calls = {"encode": (lambda: theirs.encode(image), lambda: ours.encode(image))}
    difference = None
    if theirs.decode is not None:
        decode = theirs.decode
        difference = (ours.decode(tokens) - decode(tokens.indices[0]).clamp(-1, 1)).abs().max().item()
        calls["decode"] = (lambda: decode(tokens.indices[0]), lambda: ours.decode(tokens))
    row = {"side": theirs.side, "tokens_equal": agree, "largest_difference": difference}
    for name, both in calls.items():
        pairs = [in_turn(both, ours_first=number % 2 == 1) for number in range(rounds)]
        row[name] = {
            "theirs_ms": round(1e3 * statistics.median(their for their, _ in pairs), 1),
            "ours_ms": round(1e3 * statistics.median(our for _, our in pairs), 1),
            "ratio": round(statistics.median(our / their for their, our in pairs), 3),
        }
    return row


TERMS = Terms(
    compared="Milliseconds to encode and to decode one image by a published tokenizer: its publisher's package and "
    "ours with the same weights; medians of rounds in turns, ratio = ours / theirs.",
    number_format="fp32 for both.",
    layout="Each package's own: ours channels last, theirs contiguous. Much of the difference may be this.",
    threads=f"{THREADS} for both.",
    tuning="Nobody; the weights are random where they are not at hand, which costs the same.",
    not_shown="How the packages stand on GPUs, in larger batches, or in channels last, which theirs could be given.",
)


def table(result: dict) -> str:
    """The result in Markdown."""
    lines = [
        *beginning("Published tokenizers: their package and ours, the same weights", TERMS, result),
        "| model | pixels | encode, theirs | ours | ratio | decode, theirs | ours | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        cells = [f"{name} ({row['package']})", f"{row['side']}×{row['side']}"]
        for part in (row.get("encode"), row.get("decode")):
            if part:
                cells += [f"{part['theirs_ms']} ms", f"{part['ours_ms']} ms", f"{part['ratio']:.2f}"]
            else:
                cells += ["–"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="run the models whose name contains this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    rows = {}
    for name, (package, make) in CONTESTANTS.items():
        if options.only is None or options.only.lower() in name.lower():
            rows[name] = {"package": package, **compare(make, options.rounds)}
            print(name, json.dumps(rows[name]), flush=True)
    result = {
        **facts(*PACKAGES),
        "threads": THREADS,
        "rounds": options.rounds,
        "rows": rows,
    }
    if options.out:
        earlier = json.loads(options.out.read_text())["rows"] if options.only and options.out.is_file() else {}
        result["rows"] = {name: {**earlier, **rows}[name] for name in CONTESTANTS if name in {**earlier, **rows}}
        write(options.out, result, table(result))


if __name__ == "__main__":
    main()
