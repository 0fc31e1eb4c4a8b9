"""The run-time type checker of the tests: beartype that, as PEP 484 says, takes an int where a float is expected."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
