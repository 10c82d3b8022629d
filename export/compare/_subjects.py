"""Which subjects are compared, of which checks: two of them, the steps of a run, and any against any reference."""

import math
from collections.abc import Mapping, Sequence

from export import significance
from export.checks import Measurement
from export.compare._comparison import Comparison
from export.compare._divergence import divergence_comparison
from export.compare._paired import NO_CHANCE, change_between, is_judged, paired_comparison, rows_that_differ
from export.limits import Gate, Limits
from export.verdict import Verdict, overall

# The chance of failing an artifact that lost nothing, shared by all its paired checks but those of `NO_CHANCE` (see
# `significance.shared_level`). A 95 % bound alone errs more often: with a tenth of the rows flipping either way, 2 to 4
# in 100 fail on 50 to 500 rows.
CHANCE = 0.01
# How the model as training left it is called in a run: an adapter beside its base, or a model that was trained whole.
AS_TRAINED = ("adapter", "trained")


def compare(
    before: Sequence[Measurement],
    after: Sequence[Measurement],
    limits: Limits | None,
    *,
    names: tuple[str, str],
    seed: int,
) -> tuple[Comparison, ...]:
    """Compares every check that both subjects have, and the divergence, which only one of them can have.

    The divergence of a subject from the reference is itself the change, whichever of the two is the reference. Facts
    without a sample are not compared, and neither is speed: engines count its seconds differently. `names` are the two
    subjects', before and after; either may have no measurements. Raises ValueError when a check has other rows before
    than after.
    """
    earlier, later = ({m.check: m for m in subject} for subject in (before, after))
    one_sided = {
        name: m for side in (earlier, later) for name, m in side.items() if name.startswith(("kl_", "same_top"))
    }
    both = [name for name in later if name in earlier and name not in one_sided and name != "tokens_per_second"]
    paired = [name for name in both if later[name].sample]
    changes = {name: change_between(earlier[name], later[name], seed) for name in paired}
    asked = {name: change for name, change in changes.items() if is_judged(change.after)}
    by_chance = {name: rows_that_differ(change) for name, change in asked.items() if name not in NO_CHANCE}
    done = []
    for name, change in changes.items():
        others = [rows for other, rows in by_chance.items() if other != name]
        done.append(paired_comparison(change, limits, level=significance.shared_level(CHANCE, others), seed=seed))
    if limits is not None:
        done += [divergence_comparison(m, names, limits, seed) for m in one_sided.values()]
        done += [_asked_of_no_row(later[name], names) for name in both if later[name].n == 0 and is_judged(later[name])]
    return tuple(done)


def _asked_of_no_row(measured: Measurement, names: tuple[str, str]) -> Comparison:
    """A check that was asked for, and of which no row says anything: to leave it out would pass it."""
    return Comparison(
        check=measured.check,
        before=names[0],
        after=names[1],
        delta=math.nan,
        scale="difference",
        interval=None,
        limit=0.0,
        bound_limit=None,
        n=0,
        verdict="cannot tell",
        note="no held-out row asks for it: leave the check out, or measure on rows that do (check.rows, the data)",
    )


def compare_steps(
    measured: Mapping[str, Sequence[Measurement]],
    gate: Gate | None,
    *,
    four_bit_base: bool,
    seed: int,
    bits: Mapping[str, float | None] | None = None,
) -> tuple[Comparison, ...]:
    """The steps of a run: what fine-tuning gained (nothing is asked of it), what merging and each export cost.

    Without a gate nothing is asked of any step.
    `measured` holds each subject's measurements by its name, `merged` among them. `four_bit_base`: the adapter was
    trained on, and observed beside, a base in 4 bits. `bits`, as in `compare_against`, of exports whose name promises
    none.
    """
    merged = measured["merged"]
    done: list[Comparison] = []
    if "base" in measured:
        done += compare(measured["base"], merged, None, names=("base", "merged"), seed=seed)
    for trained in AS_TRAINED:
        if trained in measured:
            limits = None if gate is None else gate.limits_for_merge(four_bit_base=four_bit_base)
            done += compare(measured[trained], merged, limits, names=(trained, "merged"), seed=seed)
    exports = {name: subject for name, subject in measured.items() if name not in ("base", *AS_TRAINED)}
    return (*done, *compare_against(exports, gate, "merged", bits or {}, seed=seed))


def compare_against(
    measured: Mapping[str, Sequence[Measurement]],
    gate: Gate | None,
    reference: str,
    bits: Mapping[str, float | None],
    *,
    seed: int,
) -> tuple[Comparison, ...]:
    """Every other subject of `measured` against the one named `reference`, whatever they are.

    Each is held to the limits of the bits that its name promises, or where it promises none to those of `bits`: bits
    per weight, measured or otherwise known, by the subject's name. Without either the limits are the strict ones.
    """
    return tuple(
        comparison
        for name, subject in measured.items()
        if name != reference
        for comparison in compare(
            measured[reference],
            subject,
            None if gate is None else gate.limits_for(name, bits.get(name)),
            names=(reference, name),
            seed=seed,
        )
    )


def worst_by_subject(comparisons: Sequence[Comparison]) -> Mapping[str, Verdict]:
    """Each judged subject's verdict: the worst of its checks."""
    judged: dict[str, list[Verdict]] = {}
    for comparison in comparisons:
        if comparison.verdict is not None:
            judged.setdefault(comparison.after, []).append(comparison.verdict)
    return {subject: overall(verdicts) for subject, verdicts in judged.items()}
