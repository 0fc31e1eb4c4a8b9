"""What quantizers learn, declared by kind, for whoever moves and averages weights.

A layer of one of these classes computes what its base class computes; the name says how its weight is to be treated.
"""

from typing import final

from torch import nn


@final
class Codebook(nn.Embedding):
    """A table of codes. An averaged model copies it, and it has no weight decay.

    A code is not only moved by gradients: initialisation and the revival of dead codes replace it at once by a vector
    of the batch, and the average of a dead code and its successor lies where there is no data. Decay would pull a code
    that is rarely chosen to 0, where it dies.
    """


@final
class CodeTransform(nn.Linear):
    """A linear layer that makes all codes out of others. It has no weight decay, which would pull every code to 0."""
