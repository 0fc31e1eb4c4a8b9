"""Tokenizers in the formats of other projects, for code that its users already have; one file per format."""
