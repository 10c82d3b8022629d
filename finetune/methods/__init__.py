"""One file per training method; the file's name is the word in the recipe.

What all of them share is named here: the file it stands in begins with an underscore because every other file of this
package is a method.
"""

from finetune.methods._base import Adapter, FullModel, LossPoint, Method, TrainingResult
from finetune.methods._footprint import Footprint, LoraSize

__all__ = ["Adapter", "Footprint", "FullModel", "LoraSize", "LossPoint", "Method", "TrainingResult"]
