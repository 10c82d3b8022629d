"""The starter model: a small bilingual base model that the project writes, trains and ships by itself."""
