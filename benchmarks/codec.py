"""What a token file costs in each coding, and how fast the codec is: on center crops of photographs, one file each.

    python benchmarks/codec.py RUN PHOTOS [--size 256] [--out FILE.json]

RUN holds a tokenizer and its codec.safetensors; PHOTOS are images that neither was trained on. Sizes are means over
whole files, header, name and checksum included. Speeds are of one thread, in megabytes of uint8 pixels a second of CPU
time: of the coding alone (`coding`), and with the tokenizer (`whole`).
"""

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path

import torch

from smalti.codec import coding_tables, find_codec
from smalti.data import open_images
from smalti.data.views import ViewsConfig, view_batches
from smalti.formats import TokenFile
from smalti.tokenizers import to_token_image, to_tokens
from smalti.zoo import load

CODINGS = ("packed", "adaptive", "learned", "context")


def measure(run: str, photos: str, side: int) -> dict:
    """Mean bytes of a file in each coding, and speeds."""
    tokenizer, codec = load(run), find_codec(run)
    tables, fingerprint = coding_tables(tokenizer), tokenizer.fingerprint
    size = {coding: 0 for coding in CODINGS if coding != "learned" or tables is not None}
    seconds = dict.fromkeys(("tokenize", "encode", "decode", "reconstruct"), 0.0)
    pixels = images = 0
    source = open_images(photos)
    for batch in view_batches(source, ViewsConfig([side, side]), [[i] for i in range(len(source))]):
        for viewed in batch.images:
            view = viewed.views[0]
            start = time.process_time()
            tokens = tokenizer.encode(view.pixels[None])
            seconds["tokenize"] += time.process_time() - start
            image = to_token_image(Path(viewed.key).name, tokens, tokenizer.image_channels)
            for coding in size:
                token_file = TokenFile(fingerprint, tokenizer.vocab_size, (image,), coding)
                start = time.process_time()
                data = token_file.to_bytes(tables, codec)
                encoded = time.process_time()
                read = TokenFile.from_bytes(data, fingerprint, tables, codec)
                decoded = time.process_time()
                assert read == token_file
                size[coding] += len(data)
            seconds["encode"] += encoded - start
            seconds["decode"] += decoded - encoded
            start = time.process_time()
            tokenizer.decode(to_tokens(image, tokenizer.vocab_size))
            seconds["reconstruct"] += time.process_time() - start
            pixels, images = pixels + view.pixels.numel(), images + 1
    megabytes = pixels / 1e6
    return {
        "images": images,
        "bytes": {coding: total / images for coding, total in size.items()},
        "MB/s": {
            "coding": {"encode": megabytes / seconds["encode"], "decode": megabytes / seconds["decode"]},
            "whole": {
                "encode": megabytes / (seconds["tokenize"] + seconds["encode"]),
                "decode": megabytes / (seconds["decode"] + seconds["reconstruct"]),
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("photos")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), one used"
    result = {"date": datetime.date.today().isoformat(), "machine": machine, "run": Path(arguments.run).name}
    result |= measure(arguments.run, arguments.photos, arguments.size)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
