"""One file per export format; the file's name is the word in the recipe."""
