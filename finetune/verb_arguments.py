"""What several verbs of the command line read alike."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

SET_EMPTY = "KEY= is the empty text (data.system_prompt= removes every system message), KEY=null no value"


def above_nothing(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; found {text!r}")
    return value


def positive(text: str) -> int:
    """A number of which there must be at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up; found {text!r}")
    return int(text)
