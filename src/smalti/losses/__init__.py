"""Loss terms, and the one table where they are weighted."""

from smalti.losses.ms_ssim import ms_ssim
from smalti.losses.reconstruction import charbonnier, l1, l2
from smalti.losses.table import RECONSTRUCTION_LOSSES, LossResult, LossTable

__all__ = ["RECONSTRUCTION_LOSSES", "LossResult", "LossTable", "charbonnier", "l1", "l2", "ms_ssim"]
