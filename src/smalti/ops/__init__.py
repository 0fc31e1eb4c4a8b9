"""Pure tensor functions: no `nn.Module`, no state, no files. All other packages may import them."""

from smalti.ops.device import without_autocast
from smalti.ops.entropy import bit_entropy, divergence_from_uniform, mean_bit_code_distribution
from smalti.ops.group_norm import group_norm
from smalti.ops.index_backpropagation import index_backpropagation
from smalti.ops.kmeans import kmeans, kmeans_start
from smalti.ops.multi_scale import add_scale, proportional_grids, to_grid
from smalti.ops.nearest import nearest_code
from smalti.ops.recomputation import recomputing
from smalti.ops.rotation import rotation_trick
from smalti.ops.straight_through import straight_through
from smalti.ops.tiles import map_tiles
from smalti.ops.unit_sphere import unit_sphere
from smalti.ops.usage import UsageStatistics, code_sums, count_codes, usage_statistics

__all__ = [
    "UsageStatistics",
    "add_scale",
    "bit_entropy",
    "code_sums",
    "count_codes",
    "divergence_from_uniform",
    "group_norm",
    "index_backpropagation",
    "kmeans",
    "kmeans_start",
    "map_tiles",
    "mean_bit_code_distribution",
    "nearest_code",
    "proportional_grids",
    "recomputing",
    "rotation_trick",
    "straight_through",
    "to_grid",
    "unit_sphere",
    "usage_statistics",
    "without_autocast",
]
