"""Judging tokenizers and samples: which networks judge, how images are prepared, what is measured, how it is shown."""
