"""`fieldtune batch`: answers every row of a file with a model, in order, and goes on where it was stopped.

What a row asks is `prompts`, how an answer is written `answers`, the file on disk `output`; `work` ties them together.
The model is opened as `fieldtune chat` opens it.
"""

from finetune.batching.settings import BatchSettings
from finetune.batching.work import Outcome, answer_file

__all__ = ["BatchSettings", "Outcome", "answer_file"]
