"""Search with a kernel built under AddressSanitizer, at odd shapes and several threads; run as a script by its test.

    python addressed.py FOLDER_OF_THE_BUILD

Needs NumPy only: torch would have to be built under the sanitizer, too.
"""

import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
import _native

SHAPES = [
    *((n, k, d) for n in (1, 2, 7, 33) for k in (1, 2, 15, 17, 65) for d in (1, 3, 4, 8, 16, 31, 33)),
    *((1000, 1023, 5), (257, 4097, 13), (3, 2, 2049), (70, 5000, 64)),
]


def nearest(z: np.ndarray, codes: np.ndarray, metric: int) -> np.ndarray:
    """Float64 brute force: euclidean, cosine, dot."""
    z, codes = z.astype(np.float64), codes.astype(np.float64)
    if metric == 0:
        return ((z[:, None] - codes[None]) ** 2).sum(-1).argmin(1)
    if metric == 1:
        codes = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
    return (z @ codes.T).argmax(1)


random = np.random.default_rng(0)
for kernel in _native.kernels():
    for n, k, d in SHAPES:
        z, codes = (random.standard_normal((rows, d)).astype(np.float32) for rows in (n, k))
        for metric in range(3):
            for threads in (1, 3, 8):
                packed = _native.PackedCodebook(codes, metric, threads, kernel)
                cost, index = np.full(n, np.inf), np.zeros(n, np.int64)
                packed.search(codes, z, cost, index, 0, threads)
                if threads == 3 and n * k * d < 200_000:
                    assert (index == nearest(z, codes, metric)).mean() > 0.99, (kernel, n, k, d, metric)
        _native.fingerprint(codes)
    print(kernel, "whole", flush=True)
