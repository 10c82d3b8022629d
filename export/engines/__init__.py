"""One file per way of running a model; every artifact is measured by the engine that will run it."""
