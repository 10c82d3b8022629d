"""Read what is stored, one file per kind of artifact, without the runtime that will run it."""
