"""How a report is said to a reader: `values` writes numbers, `sentences` says what was found and compared, `table` is
the one in the terminal.

The page and the model cards say it in the same words, and neither owns them.
"""
