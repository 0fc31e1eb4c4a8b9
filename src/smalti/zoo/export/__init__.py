"""Writes tokenizers in the formats of other projects, for users of their code; one file per format."""
