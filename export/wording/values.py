"""How checks, numbers and changes are written for a reader of the page or of a model card. Nothing is computed.

A value is written to the digits that its standard error allows (two digits of the error), and never as nothing but
zeros.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from export.check_names import read_name
from export.checks import Measurement
from export.compare import Comparison
from export.sampling import wilson_interval

NOT_MEASURED = "–"
NOT_FINITE = "not finite"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Below this, a number that is not a share is written with its power of ten.
_SMALLEST_PLAIN = 1e-3
_SMALLEST_WITH_ERROR = 1e-300  # below it there is no power of ten to divide by


class Unit(NamedTuple):
    """How values of a unit are shown: times `factor`, as `shown`, with `digits` decimals where no error decides.

    Without `digits`, with three significant ones.
    """

    factor: float
    shown: str
    digits: int | None


_UNITS: Mapping[str, Unit] = {
    "share": Unit(100, "%", 1),
    "bytes": Unit(1e-6, "MB", 1),
    "nats": Unit(1, "nats", None),
    "perplexity": Unit(1, "", 3),
    "tokens/s": Unit(1, "tokens/s", 1),
    "tokens": Unit(1, "tokens", 1),
    "×": Unit(1, "×", 2),
}

_NAMES: Mapping[str, str] = {
    "exact_match": "exact match",
    "label_accuracy": "right label",
    "label_likelihood": "right label by likelihood",
    "label_likelihood_per_token": "right label by likelihood per token",
    "label_given": "a label given",
    "label_macro_f1": "macro F1 of labels",
    "number_match": "right number",
    "number_given": "a number given",
    "fields_match": "all fields right",
    "fields_row_f1": "F1 of fields by row",
    "fields_json": "JSON",
    "fields_schema": "by the schema",
    "slot_f1": "F1 of all slots",
    "slot_precision": "precision of all slots",
    "slot_recall": "recall of all slots",
    "refusal": "refused out of scope",
    "in_scope_answered": "answered in scope",
    "span_match": "right span",
    "span_f1": "F1 of span",
    "quote_in_context": "quoted from the prompt",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "length_ratio": "length beside the reference",
    "thinking_closed": "thoughts closed by the model",
    "thinking_cut": "thoughts cut by the budget",
    "thinking_stopped": "turns ended within the thought",
    "thinking_none": "answers without a thought",
    "thinking_tokens": "length of thoughts",
    "thinking_waits": "waits used",
    "stops": "stops",
    "ends_without_loop": "no loop",
    "no_template_leak": "no template token",
    "finite": "finite",
    "valid_format": "format",
    "safety": "safe answers",
    "kl_mean": "mean KL",
    "kl_median": "median KL",
    "kl_percentile_99": "99 % KL",
    "kl_max": "largest KL",
    "same_top_token": "same top token",
    "size_bytes": "size",
    "peak_memory_bytes": "peak memory",
    "tokens_per_second": "speed",
}

# Checks that some of the rows alone are of: so many more of these are needed, and not of any.
_KINDS_OF_ROWS = {"refusal": " out of scope", "in_scope_answered": " in scope"}

# The score of each check of answers, which a chart and the terminal's table show. Of those that a recipe has, the first
# is the one that its answers are counted right or wrong by.
TASK_SCORES = (
    "label_accuracy",
    "number_match",
    "fields_match",
    "span_match",
    "label_likelihood",
    "span_f1",
    "rouge_l",
    "exact_match",
)
_TASK_DETAILS = (
    *("label_likelihood_per_token", "label_macro_f1", "label_given", "number_given", "fields_row_f1", "slot_f1"),
    *("slot_precision", "slot_recall", "fields_json", "fields_schema", "refusal", "in_scope_answered"),
    *("quote_in_context", "chrf", "length_ratio"),
    *("thinking_closed", "thinking_cut", "thinking_stopped", "thinking_none", "thinking_tokens", "thinking_waits"),
)

# The subject table's columns from left to right; a check that is not named here stands before the resources.
_SCORES = ("exact_match", *TASK_SCORES[:-1])
_DETAILS = (*_TASK_DETAILS, "safety", "perplexity", "kl_mean", "same_top_token")
_BEHAVIOUR = ("stops", "ends_without_loop", "no_template_leak", "finite", "valid_format")
_RESOURCES = ("size_bytes", "peak_memory_bytes", "tokens_per_second")
_DIVERGENCE_DETAILS = ("kl_median", "kl_percentile_99", "kl_max")


def check_name(check: str) -> str:
    """A check's name in words, behind that of the set it was made on where it is not the held-out rows."""
    companion, own = read_name(check)
    words = _NAMES.get(own, own.replace("_", " "))
    return f"{companion}: {words}" if companion else words


def unit_of(unit: str) -> Unit:
    """How values of a measurement's unit are shown; one that is not known stands as it is."""
    return _UNITS.get(unit, Unit(1, unit, None))


def main_score(checks: Collection[str]) -> str | None:
    """The task score that stands for all of them where only one has room; None where none was measured."""
    return next((check for check in TASK_SCORES if check in checks), None)


def in_column_order(checks: Sequence[str]) -> list[str]:
    """The checks that the subject table has columns for, in order."""
    beside = [check for check in checks if read_name(check).companion]  # both scores are to be seen at once
    elsewhere = (*_SCORES, *beside, *_DETAILS, *_RESOURCES, *_DIVERGENCE_DETAILS, *_BEHAVIOUR)
    middle = [check for check in checks if check not in elsewhere]
    return [check for check in (*_SCORES, *beside, *_DETAILS, *middle, *_RESOURCES) if check in checks]


def of_behaviour(checks: Sequence[str]) -> list[str]:
    """The checks of how answers behave whatever was asked, in order."""
    return [check for check in _BEHAVIOUR if check in checks]


def counted(check: str, n: int) -> str:
    """What a number stands on, in words."""
    check = read_name(check).check
    if check in ("size_bytes", "peak_memory_bytes"):
        return "one file" if check == "size_bytes" else "one run"
    things = "tokens" if check.startswith(("kl_", "same_top", "perplexity")) else "rows"
    things = "slots" if check.startswith("slot_") else things
    things = {"tokens_per_second": "timed rows", "safety": "safety items"}.get(check, things)
    kind = _KINDS_OF_ROWS.get(check, "")
    return f"{n:,} {things if n != 1 else things.removesuffix('s')}{kind}"


def about(rows: int, check: str = "") -> str:
    """A number of rows that is an estimate, rounded up to two digits; of the kind that the check stands on."""
    power = max(0, len(str(rows)) - 2)
    kind = _KINDS_OF_ROWS.get(read_name(check).check, "")
    return f"about {math.ceil(rows / 10**power) * 10**power:,} held-out rows{kind}"


def value_text(measured: Measurement | None) -> str:
    """A measurement with its standard error where it has one, without its unit."""
    if measured is None or measured.n == 0:
        return NOT_MEASURED
    if all_alike(measured):
        return with_reach(measured)
    return with_error(measured.value, measured.stderr, unit_of(measured.unit))


def all_alike(measured: Measurement) -> bool:
    """Whether a share is 0 or 1 and has no standard error: of the rows that were seen, not of those that were not."""
    return measured.unit == "share" and measured.n > 0 and measured.value in (0, 1) and not measured.stderr


def interval_of_share(low: float, high: float) -> str:
    """The interval of a share in per cent, such as `41–67`."""
    return f"{low * 100:.0f}–{high * 100:.0f}"


def with_reach(measured: Measurement) -> str:
    """A share of 0 or 100 % and how far its 90 % Wilson interval reaches to the one side that there is: `100.0−6.3`."""
    low, high = wilson_interval(measured.value, measured.n)
    reach = (high if measured.value == 0 else 1 - low) * 100
    digits = max(1, -_power(reach))
    return f"{_fixed(measured.value * 100, digits)}{'+' if measured.value == 0 else '−'}{_fixed(reach, digits)}"


def with_error(value: float, stderr: float | None, unit: Unit) -> str:
    """A value, and behind ± its standard error, both to the digits that the error allows."""
    if not math.isfinite(value):
        return NOT_FINITE
    shown, error = value * unit.factor, None if stderr is None else stderr * unit.factor
    if error is None or not math.isfinite(error):
        return plain(shown, unit.digits)
    if _SMALLEST_WITH_ERROR < abs(shown) < _SMALLEST_PLAIN and unit.factor == 1:
        power = _power(shown)
        digits = _digits_for(error / 10.0**power, 2)
        return f"({_fixed(shown / 10.0**power, digits)}±{_fixed(error / 10.0**power, digits)}){_times_ten_to(power)}"
    digits = _digits_for(error, unit.digits)
    return f"{_fixed(shown, digits)}±{_fixed(error, digits)}"


def plain(shown: float, digits: int | None = None) -> str:
    """A number with so many decimals, else with three digits; with its power of ten where nothing would be left."""
    if not math.isfinite(shown):
        return NOT_FINITE
    if shown and abs(shown) < (_SMALLEST_PLAIN if digits is None else 10.0**-digits):
        factor, _, power = f"{shown:.1e}".partition("e")
        return f"{factor}{_times_ten_to(int(power))}".replace("-", "−")
    if digits is None:
        digits = 0 if shown == 0 else max(0, 2 - _power(shown))
    return _fixed(shown, 0 if abs(shown) >= 1000 else digits)


def power_of_ten(exponent: int) -> str:
    """The text of 10 to an exponent, as an axis shows it."""
    return "1" if exponent == 0 else f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def change_text(comparison: Comparison, unit: str) -> str:
    """By how much the subject changed, with its sign and unit, to the digits that its interval allows."""
    if not math.isfinite(comparison.delta):
        return NOT_FINITE if comparison.n else NOT_MEASURED
    return _changed(comparison, comparison.delta, unit) + _change_unit(comparison, unit)


def interval_text(comparison: Comparison, unit: str) -> str:
    """The 90 % interval of the change; a dash where there is none (the comparison's note says why)."""
    if comparison.interval is None:
        return NOT_MEASURED
    low, high = (_changed(comparison, end, unit) for end in comparison.interval)
    return f"{low} to {high}"


def limit_text(comparison: Comparison, unit: str, *, higher_is_better: bool) -> str:
    """What the change may be at most, and its bound where that may be more; empty where nothing is asked."""
    if comparison.limit is None:
        return ""
    if comparison.limit == 0 and comparison.bound_limit is None:
        return "none lost"
    if comparison.scale == "ratio":
        return f"≤\u00a0×{comparison.limit:g}"
    word = "drop ≤\u00a0" if higher_is_better else "≤\u00a0"
    limit = f"{word}{_limit(comparison.limit, unit)}"
    if comparison.bound_limit is None or comparison.bound_limit == comparison.limit:
        return limit + _change_unit(comparison, unit)
    return f"{limit}, bound ≤\u00a0{_limit(comparison.bound_limit, unit)}{_change_unit(comparison, unit)}"


def _limit(value: float, unit: str) -> str:
    return f"{round(value * unit_of(unit).factor, 6):g}"


def _change_unit(comparison: Comparison, unit: str) -> str:
    shown = "points" if unit == "share" else unit_of(unit).shown
    return f"\u00a0{shown}" if shown and comparison.scale == "difference" else ""


def _changed(comparison: Comparison, value: float, unit: str) -> str:
    """A change, or an end of its interval: all three with the same number of decimals."""
    if not math.isfinite(value):
        return "−∞" if value < 0 else "∞"
    is_ratio, factor = comparison.scale == "ratio", 1.0 if comparison.scale == "ratio" else unit_of(unit).factor
    values = [abs(v) * factor for v in (comparison.delta, *(comparison.interval or ())) if math.isfinite(v)]
    if max(values) < _SMALLEST_PLAIN and unit != "share":
        text = plain(value * factor, 3)
    else:
        low, high = comparison.interval or (0.0, 0.0)
        width = (high - low) * factor if math.isfinite(high - low) else 0.0
        text = _fixed(value * factor, min(max(2 if unit == "share" else 3, _digits_for(width, 3)), 8))
    return f"×{text}" if is_ratio else f"+{text}" if value > 0 else text


def _digits_for(error: float, otherwise: int | None) -> int:
    """Decimals that show two digits of an error; those of the unit where the error is nothing."""
    return (4 if otherwise is None else otherwise) if error == 0 else max(0, 1 - math.floor(math.log10(error)))


def _power(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _fixed(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def _times_ten_to(power: int) -> str:
    return f"×10{str(power).translate(_SUPERSCRIPTS)}"
