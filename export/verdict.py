"""What makes a loss a `pass`, a `fail` or an open question, and what would settle it.

The limits and the losses are `export.compare`'s; the statistics are `export.significance`'s.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from export import significance
from export.sampling import PairedTable
from export.significance import Outlook

Verdict = Literal["pass", "fail", "cannot tell"]
_WORST_FIRST: tuple[Verdict, ...] = ("fail", "cannot tell", "pass")


class Case(NamedTuple):
    """A loss as it was seen on `rows` rows, and what is allowed of it; a loss counts as positive.

    `limit` is the largest loss allowed and `bound_limit` the largest at the interval's unfavourable end. `outlook` says
    what other numbers of rows would show, and fewer than `least_rows` pass nothing. `chance` is the p-value of any loss
    at all, where it was asked for, and `level` what a `fail` asks of it.
    """

    loss: float
    favourable: float
    unfavourable: float
    limit: float
    bound_limit: float
    rows: int
    outlook: Callable[[float], Outlook]
    least_rows: int = 0
    chance: float | None = None
    level: float = 1.0


class Decision(NamedTuple):
    """A verdict; where it is open the rows that would settle it, and a note on what keeps it open."""

    verdict: Verdict
    rows_needed: int | None = None
    note: str = ""


def decide(case: Case) -> Decision:
    """The verdict on a case. An open one has `rows_needed`, or a note that says why there is no such number."""
    certain = case.chance is None or case.chance <= case.level
    verdict = _verdict(case, Outlook(case.loss, case.favourable, case.unfavourable, certain), case.rows)
    if verdict != "cannot tell":
        return Decision(verdict)
    if not (math.isfinite(case.favourable) and math.isfinite(case.unfavourable)):
        return Decision(verdict, note="without an interval nothing says how many rows would decide")

    def decides(rows: float) -> bool:
        return _verdict(case, case.outlook(rows), rows) != "cannot tell"

    needed = significance.rows_needed(decides, case.rows)
    return Decision(verdict, needed, "; ".join(part for part in (_doubt(case), _why_never(case, needed)) if part))


def decide_where_none_may_be_lost(table: PairedTable, level: float | None) -> Decision:
    """The verdict on 0/1 scores of which no row may be lost, told from chance at `level`; None asks for no such thing.

    Without a lost row a `pass`. With one never: a `fail` where chance does not explain it, else an open question that
    only more of the same losses can settle. The note says why.
    """
    if not table.lost or level is None:
        return Decision("fail" if table.lost else "pass", note="none may be lost")
    chance = significance.chance_of_loss_by_flips(table)
    odds = f"p {chance:.2g}"
    if chance <= level:
        return Decision("fail", note=f"none may be lost, and chance hardly explains it: {odds}")
    outlook = significance.outlook_of_share(table, level)
    needed = significance.rows_needed(lambda rows: outlook(rows).certain, round(table.pairs))
    why_never = ""
    if table.lost <= table.gained:
        why_never = "; as long as no more are lost than gained no number of rows would decide"
    elif needed is None:
        why_never = f"; more than {significance.MOST_ROWS:,} rows would be needed to decide"
    doubt = f"none may be lost, but chance may explain it: {odds}, where a fail asks for at most {level:.2g}"
    return Decision("cannot tell", needed, f"{doubt}; look at the rows{why_never}")


def _verdict(case: Case, seen: Outlook, rows: float) -> Verdict:
    if seen.loss <= case.limit and seen.unfavourable <= case.bound_limit:
        return "pass" if rows >= case.least_rows else "cannot tell"
    # written so that a loss that is not a number fails
    return "cannot tell" if seen.favourable <= case.limit or not seen.certain else "fail"


def _doubt(case: Case) -> str:
    """What keeps a case open although its interval alone would decide it."""
    if case.loss <= case.limit and case.unfavourable <= case.bound_limit:
        return f"inside the limit, but fewer than {case.least_rows:,} rows say too little of the worst ones to pass"
    if case.favourable > case.limit and case.chance is not None:
        return (
            f"beyond the limit, but where nothing was lost {case.chance:.2g} of all sets of as many rows show as much; "
            f"a fail asks for at most {case.level:.2g}"
        )
    return ""


def _why_never(case: Case, needed: int | None) -> str:
    if needed is not None:
        return ""
    if math.isclose(case.loss, case.limit, rel_tol=1e-9):
        return "the value lies on the limit: no number of rows would decide"
    return f"more than {significance.MOST_ROWS:,} rows would be needed to decide"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of the verdicts; without any, nothing can be told."""
    return next((verdict for verdict in _WORST_FIRST if verdict in verdicts), "cannot tell")
