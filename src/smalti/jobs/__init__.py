"""One verb per file: train, evaluate, encode, decode, reconstruct, … Config in, result out, no printing."""
