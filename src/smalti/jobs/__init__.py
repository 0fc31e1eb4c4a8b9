"""One verb a file: train, evaluate, encode, decode, reconstruct, demonstrate. Config in, result out, no printing."""
