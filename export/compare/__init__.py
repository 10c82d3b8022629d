"""From two subjects' measurements, paired row by row, to a verdict.

A verdict is one of three. `pass`: the change is inside the limit and so is the bound of its interval. `fail`: even the
favourable end of the interval is outside the limit, and that anything was lost at all is no chance. `cannot tell`: the
held-out rows are too few to decide. The limits are for what the step is allowed to cost; nothing is asked of a change
that has no limit. Every score between 0 and 1 is held to those of task scores, but for numbers that only tell more of
another (`Measurement.judged`). Where none may be lost, no row lost passes, and rows lost fail when chance does not
explain them.

What errors are left, from the simulations of tests/export/test_compare.py. An artifact that lost nothing is failed for
anything that a row may show by chance in at most 1 of 100 sets of rows, by construction (see `CHANCE`); the interval
alone would fail up to 4 for its task score, and one lost row as a failure 77 where a check has 300 rows of which 0.5 %
are lost and gained. A loss of 5 points on 500 rows, one task score and perplexity being judged and the rest unchanged,
fails in 95 of 100 or more while at most 1 point of the rows is lost and gained besides (7 % differ), in 88 at 2 points,
in 59 at 5; where stopping, loops, the template and the format have rows that differ too, 8 or more of each, in 92, 77
and 44. One safety item lost, or one row of predictions that are not finite, fails: there chance is no excuse.
"""

from export.compare._comparison import Comparison
from export.compare._paired import NO_CHANCE, NONE_LOST, case_of_share, too_few_rows
from export.compare._subjects import AS_TRAINED, CHANCE, compare, compare_against, compare_steps, worst_by_subject
from export.limits import Gate, Limits
from export.verdict import Verdict, overall

__all__ = [
    "AS_TRAINED",
    "CHANCE",
    "NONE_LOST",
    "NO_CHANCE",
    "Comparison",
    "Gate",
    "Limits",
    "Verdict",
    "case_of_share",
    "compare",
    "compare_against",
    "compare_steps",
    "overall",
    "too_few_rows",
    "worst_by_subject",
]
