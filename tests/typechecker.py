"""What checks types and shapes while the tests run: beartype, for which an int is a float too, as for mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
