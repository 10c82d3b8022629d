"""One file per quality check; the file's name is the word in the recipe.

What all of them share, and what is measured with, is named here: the file it stands in begins with an underscore
because every other file of this package is a check.
"""

from export.checks._base import (
    Check,
    Item,
    ItemObservation,
    Items,
    Measurement,
    Observation,
    SafetyItem,
    measurement,
    share,
)
from export.checks._json_answer import Answer as JsonAnswer
from export.checks._json_answer import read as read_json
from export.checks._json_answer import same as same_json
from export.checks._json_schema import schema_validator

__all__ = [
    "Check",
    "Item",
    "ItemObservation",
    "Items",
    "JsonAnswer",
    "Measurement",
    "Observation",
    "SafetyItem",
    "measurement",
    "read_json",
    "same_json",
    "schema_validator",
    "share",
]
