"""A decoder of version 3 of the token file, written from its description alone: plain Python integers, token by token.

It imports nothing of smalti and reads the codec's tensors from their file. Only the range decoder is a package.
"""

import json
from math import isqrt

import constriction
import numpy as np
from safetensors import safe_open

WITHIN = [(0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-2, -1), (-2, 1), (-2, 2)]


def power(i: int) -> int:
    """floor(2 ** (24 - i / 32)), at least 1."""
    root = 2 ** max(0, 768 - i)
    for _ in range(5):
        root = isqrt(root)
    return root


def rounded(number: int, bits: int) -> int:
    return (number + 2 ** (bits - 1)) // 2**bits


def times(vector: list[int], matrix: list[list[int]], bias: list[int]) -> list[int]:
    return [b + sum(v * row[j] for v, row in zip(vector, matrix, strict=True)) for j, b in enumerate(bias)]


def read(coder, logits: list[int]) -> int:
    weights = [power(max(logits) - logit) for logit in logits]
    room = 2**24 - len(weights)
    frequencies = [1 + weight * room // sum(weights) for weight in weights]
    frequencies[weights.index(max(weights))] += 2**24 - sum(frequencies)
    return int(coder.decode(constriction.stream.model.Categorical(np.array(frequencies, float), perfect=False)))


def decode(file: str, codec: str) -> list[tuple[str, tuple[int, int, int], list[list[int]], list[int]]]:
    """Name, (height, width, channels), grids and indices of each image."""
    with open(file, "rb") as opened:  # noqa: PTH123
        data = opened.read()
    with safe_open(codec, "numpy") as opened:
        words = opened.metadata()
        t = {name: opened.get_tensor(name).astype(int).tolist() for name in opened.keys()}  # noqa: SIM118
    at = 10

    def number() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            at += 1
            value |= (data[at - 1] & 127) << shift
            shift += 7
            if data[at - 1] < 128:
                return value

    assert data[:10] == b"\x89SMLT\r\n\x1a\x03\x00"
    assert number() == len(data)
    assert data[at : at + 8].hex() == words["fingerprint"][:16]
    at += 8
    heads = []
    for _ in range(number()):
        n = number()
        name, at = data[at : at + n].decode(), at + n
        size = (number(), number(), number())
        grids = [[number() for _ in range(number())] for _ in range(number())]
        heads.append((name, size, grids or json.loads(words["grids"])))
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data[at:-4], "<u4").astype(np.uint32))
    return [(*head, decode_image(coder, t, head[2])) for head in heads]


def decode_image(coder, t: dict, grids: list[list[int]]) -> list[int]:
    """Scales coarse to fine, each by rising x + 2y, in a wave by rising y; all groups of a wave, then all members."""
    G, M = len(t["members"]), len(t["members"][0])
    C, nothing = len(t["repeat_bias"]) // 2, G * M
    ranks: list[dict[tuple[int, int], int]] = []
    for s, (h, w) in enumerate(grids):
        ranks.append({})
        for wave in range(w + 2 * h - 2):
            found = []
            for y, x in [(y, wave - 2 * y) for y in range(h) if 0 <= wave - 2 * y < w]:
                around = [ranks[s].get((y + dy, x + dx), nothing) for dy, dx in WITHIN]
                for back, r in [(1, 1), (2, 1), (3, 0)] if len(grids) > 1 else []:
                    for dy in range(-r, r + 1):
                        for dx in range(-r, r + 1):
                            if back > s:
                                around.append(nothing)
                                continue
                            above_h, above_w = grids[s - back]
                            place = ((2 * y + 1) * above_h // (2 * h) + dy, (2 * x + 1) * above_w // (2 * w) + dx)
                            around.append(ranks[s - back].get(place, nothing))
                embedded = [component for rank in around for component in t["embedding"][rank]]
                hidden = [min(max(rounded(v, 7), 0), 32767) for v in times(embedded, t["first"], t["first_bias"][s])]
                hidden = [min(max(rounded(v, 10), 0), 32767) for v in times(hidden, t["second"], t["second_bias"])]
                repeat = [rounded(v, 13) for v in times(hidden, t["repeat"], t["repeat_bias"])]
                query = [
                    min(max(rounded(v, 10), -32767), 32767) for v in times(hidden, t["query"], [0] * len(t["query"][0]))
                ]
                logits = [
                    rounded(v, 13) + b
                    for v, b in zip(times(hidden, t["group"], [0] * G), t["group_bias"][s], strict=True)
                ]
                for c, rank in enumerate(around):
                    if rank != nothing:
                        logits[rank // M] += repeat[c]
                found.append((y, x, around, repeat, query, read(coder, logits)))
            for y, x, around, repeat, query, group in found:
                logits = []
                for m in range(group * M, group * M + M):
                    product = sum(q * v for q, v in zip(query, t["member"][m], strict=True))
                    logits.append(rounded(product, 8) + t["member_bias"][s][m])
                for c, rank in enumerate(around):
                    if rank != nothing and rank // M == group:
                        logits[rank % M] += repeat[C + c]
                ranks[s][y, x] = group * M + read(coder, logits)
    codes = [code for row in t["members"] for code in row]
    return [codes[ranks[s][y, x]] for s, (h, w) in enumerate(grids) for y in range(h) for x in range(w)]
