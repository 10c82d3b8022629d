"""One file per quality check; the file's name is the word in the recipe."""
