"""Rehearses a bundle on a machine made small: its own client under a hard limit, for as long as is asked.

`rehearsing` does it in order; each other module is one part of it.
"""

from export.rehearsal.rehearsing import RehearsalSettings, rehearse
from export.rehearsal.results import Rehearsal

__all__ = ["Rehearsal", "RehearsalSettings", "rehearse"]
