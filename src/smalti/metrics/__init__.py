"""Accumulators over a set of images: `update` with batches of any size, then `compute`."""

from smalti.metrics.code_usage import CodeUsage, CodeUsageResult
from smalti.metrics.image_quality import ImageQuality, mean_color, psnr, ssim

__all__ = ["CodeUsage", "CodeUsageResult", "ImageQuality", "mean_color", "psnr", "ssim"]
