"""Encode 2000 images of varying size, print the resident bytes after 1000 and all; run as a script by its test."""

import os
import random
import sys
from pathlib import Path

import torch

from smalti.zoo import load


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    model, moment = load(sys.argv[1]), random.Random(0)
    torch.set_num_threads(1)
    for n in range(2000):
        size = moment.randint(1, 200), moment.randint(1, 200)
        model.encode(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8))
        if n == 999:
            print(resident())
    print(resident())
