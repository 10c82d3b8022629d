"""One file per way of running a model; every artifact is measured by the engine that will run it.

What all engines share is named here; what else is asked of llama.cpp, in `llama_library`.
"""

from export.engines._base import Engine, Generation, Subject

__all__ = ["Engine", "Generation", "Subject"]
