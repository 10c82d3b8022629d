"""What a recipe needs of a machine before it is run: memory, disk and time, each with its error. Nothing is loaded.

The dimensions of a base come from its config.json or a table, rows from where they lie; `wording` says it to people.
"""

from finetune.estimate.estimating import Estimate, estimate, estimates
from finetune.estimate.hardware import THIS_MACHINE, Hardware, find_hardware, known_hardware

__all__ = ["THIS_MACHINE", "Estimate", "Hardware", "estimate", "estimates", "find_hardware", "known_hardware"]
