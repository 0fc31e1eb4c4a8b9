"""Metrics accumulated over a set of images (`update` per batch, then `compute`), and distances between two sets."""

from smalti.metrics.code_usage import CodeUsage, CodeUsageResult
from smalti.metrics.codecs import CURVES, TITLES, Codec, CodedImage, code_at, code_near, require_codec
from smalti.metrics.feature_extractor import (
    ConvolutionalFeatures,
    FeatureExtractor,
    load_convolutional_features,
    save_convolutional_features,
)
from smalti.metrics.feature_statistics import FeatureAccumulator, FeatureStatistics
from smalti.metrics.frechet import frechet_distance
from smalti.metrics.image_quality import ImageQuality, mean_color, psnr, ssim
from smalti.metrics.inception_score import InceptionScore, inception_score
from smalti.metrics.kernel_distance import KernelDistance, kernel_distance
from smalti.metrics.protocol import PixelHash, Protocol
from smalti.metrics.statistics_file import ReferenceStatistics, read_statistics, write_statistics

__all__ = [
    "CURVES",
    "TITLES",
    "CodeUsage",
    "CodeUsageResult",
    "Codec",
    "CodedImage",
    "ConvolutionalFeatures",
    "FeatureAccumulator",
    "FeatureExtractor",
    "FeatureStatistics",
    "ImageQuality",
    "InceptionScore",
    "KernelDistance",
    "PixelHash",
    "Protocol",
    "ReferenceStatistics",
    "code_at",
    "code_near",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_convolutional_features",
    "mean_color",
    "psnr",
    "read_statistics",
    "require_codec",
    "save_convolutional_features",
    "ssim",
    "write_statistics",
]
