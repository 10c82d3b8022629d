"""What a check's number is called when it is not of the held-out rows but of a set measured beside them.

`general/perplexity` is the perplexity of the set named general. Measurements and comparisons carry such names through
the report; `export.companions` makes them, and `export.wording` puts them in words.
"""

from typing import NamedTuple

_SEPARATOR = "/"


class CheckName(NamedTuple):
    """A check and the set it was made on; the set of the held-out rows has no name."""

    companion: str
    check: str


def of_companion(companion: str, check: str) -> str:
    """The name of a check that was made on a companion set."""
    return f"{companion}{_SEPARATOR}{check}"


def read_name(name: str) -> CheckName:
    """A name taken apart."""
    companion, separator, check = name.rpartition(_SEPARATOR)
    return CheckName(companion, check) if separator else CheckName("", name)
