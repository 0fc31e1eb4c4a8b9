"""What a benchmark says of the machine that it ran on."""

import platform
from pathlib import Path

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Sets of instructions that decide how fast matrix products are."""


def processor() -> str:
    """The processor's name, where the system tells it, and its sets of instructions."""
    info = Path("/proc/cpuinfo")
    facts = info.read_text() if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    return " ".join(
        [names[0] if names else platform.machine(), *(name for name in INSTRUCTIONS if f" {name}" in facts)]
    )
