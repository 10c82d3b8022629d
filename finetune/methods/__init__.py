"""One file per training method; the file's name is the word in the recipe."""
