"""What is asked of the llama.cpp library besides running a model: its reading of a file's vocabulary, its
grammars, and its log.

Formats, the checks of identity and `fieldtune chat` ask it. They are not named in `export.engines`, because
`_llama_answers` also runs as a process of its own, and must not have been imported there before it is run.
"""

from export.engines._llama_answers import Answers, ask
from export.engines._llama_grammar import GrammarWalk
from export.engines._llama_log import captured_log
from export.engines._llama_model import Vocabulary, model_parameters, open_vocabulary

__all__ = ["Answers", "GrammarWalk", "Vocabulary", "ask", "captured_log", "model_parameters", "open_vocabulary"]
