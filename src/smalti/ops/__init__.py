"""Pure tensor functions: no `nn.Module`, no state, no files. Every other room stands on these."""

from smalti.ops.kmeans import kmeans
from smalti.ops.multi_scale import add_scale, proportional_grids, to_grid
from smalti.ops.nearest import nearest_code
from smalti.ops.straight_through import straight_through
from smalti.ops.usage import UsageStatistics, code_sums, count_codes, usage_statistics

__all__ = [
    "UsageStatistics",
    "add_scale",
    "code_sums",
    "count_codes",
    "kmeans",
    "nearest_code",
    "proportional_grids",
    "straight_through",
    "to_grid",
    "usage_statistics",
]
