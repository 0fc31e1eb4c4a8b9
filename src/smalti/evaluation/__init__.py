"""Evaluation of tokenizers and samples: metric networks, preparation of images, measurements, reports."""
