"""Which numbers go into which chart, and the words below it."""

import math
from itertools import chain
from typing import NamedTuple

from export import sampling
from export.checks import Measurement
from export.compare import Comparison
from export.drawing.svg import Marker
from export.page._charts import (
    Point,
    Spread,
    bin_shares,
    decades_of,
    divergence_against_size,
    divergence_histogram,
    loss_curve,
    scores_against_size,
)
from export.page.details import Details
from export.report import Report, SubjectRecord, files_of, measured_of, reference_of
from export.wording.values import check_name, counted, main_score, plain, unit_of, with_error

_LONGEST_LABEL = 26
_MEANS = ("span_f1", "rouge_l")  # task scores that are between 0 and 1 on a row, and not one of the two
_DIVERGENCE = "kl_mean"


class Figure(NamedTuple):
    """A chart as SVG, its heading and the words below it."""

    svg: str
    caption: str
    name: str = ""


class LossRow(NamedTuple):
    """A validation loss, and the training loss nearest to it."""

    step: str
    loss: str
    valid_loss: str


def quality_against_size(report: Report) -> tuple[Figure, ...]:
    """A chart of the task score and one of the divergence, where they were measured for more than one subject."""
    return tuple(figure for figure in (_scores(report), _divergences(report)) if figure is not None)


def _scores(report: Report) -> Figure | None:
    measured = measured_of(report)
    check = main_score({name for (_, name), found in measured.items() if found.n})
    if check is None:
        return None
    points, rows = [], 0
    for subject in _drawn(report):
        found = measured.get((subject.name, check))
        if found is not None and found.n and math.isfinite(found.value):
            points.append(_point(subject, report, found, _interval_of_score(found)))
            rows = max(rows, found.n)
    if len(points) < 2:
        return None
    kind = "" if check in _MEANS else "Wilson "
    caption = (
        f"{_sentence_case(check_name(check))} with its 90 % {kind}interval; {counted(check, rows)}. The y axis begins "
        f"where the intervals do.{_left_out(report, check)}"
    )
    return Figure(str(scores_against_size("scores", points, check_name(check))), caption)


def _interval_of_score(found: Measurement) -> tuple[float, float]:
    """Wilson's interval of a share of right answers; of a mean, as far as its standard error reaches."""
    if found.check not in _MEANS:
        return sampling.wilson_interval(found.value, found.n)
    reach = sampling.BOUND_Z * (found.stderr or 0.0)
    return max(0.0, found.value - reach), min(1.0, found.value + reach)


def _sentence_case(name: str) -> str:
    return name[:1].upper() + name[1:]


def _divergences(report: Report) -> Figure | None:
    reference = reference_of(report)
    compared = {c.after: c for c in report.comparisons if c.check == _DIVERGENCE and c.before == reference}
    measured = measured_of(report)
    points, tokens = [], 0
    for subject in _drawn(report):
        found, comparison = measured.get((subject.name, _DIVERGENCE)), compared.get(subject.name)
        # nothing that is not positive has a place on a logarithmic scale
        if found is not None and math.isfinite(found.value) and found.value > 0:
            points.append(_point(subject, report, found, _interval(found, comparison), comparison))
            tokens = max(tokens, found.n)
    if len(points) < 2:
        return None
    caption = (
        f"Mean KL divergence from {reference} with its 90 % interval; {counted(_DIVERGENCE, tokens)}. Dashes: the "
        "limit each file is held to. The y axis is logarithmic."
    )
    return Figure(str(divergence_against_size("divergence", points, check_name(_DIVERGENCE))), caption)


def _interval(found: Measurement, comparison: Comparison | None) -> tuple[float, float]:
    """The divergence's interval, its lower end above 0; its own value where there is none."""
    interval = comparison.interval if comparison is not None else None
    low, high = interval if interval is not None else (found.value, found.value)
    return (low if low > 0 else found.value), (high if math.isfinite(high) else found.value)


def _drawn(report: Report) -> list[SubjectRecord]:
    """The reference and the files that ship; base and model as trained would only stretch the axes."""
    names = (reference_of(report), *files_of(report))
    return [subject for subject in report.subjects if subject.name in names]


def _point(
    subject: SubjectRecord,
    report: Report,
    measured: Measurement,
    interval: tuple[float, float],
    comparison: Comparison | None = None,
) -> Point:
    is_reference = subject.name == reference_of(report)
    marker: Marker = "diamond" if is_reference else "circle" if subject.engine == "llama_cpp" else "square"
    return Point(
        name=_label(subject.name),
        marker=marker,
        is_reference=is_reference,
        size_megabytes=subject.size_bytes / 1e6,
        value=measured.value,
        low=interval[0],
        high=interval[1],
        limit=None if comparison is None else comparison.limit,
    )


def _label(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 9]}…{name[-8:]}"


def _left_out(report: Report, check: str) -> str:
    """The values of subjects that are not drawn."""
    drawn = {subject.name for subject in _drawn(report)}
    others = [m for m in report.measurements if m.check == check and m.subject not in drawn and m.n]
    values = [f"{m.subject} {with_error(m.value, m.stderr, unit_of(m.unit))} %" for m in others]
    return f" Not drawn: {', '.join(values)}." if values else ""


def histograms(report: Report, details: Details) -> tuple[Figure, ...]:
    """One histogram of divergences per file, all on the same axes."""
    measured, reference = measured_of(report), reference_of(report)
    limits = {(c.after, c.check): c.limit for c in report.comparisons if c.before == reference}
    spreads = []
    for name in files_of(report):
        values = list(chain.from_iterable(details.divergences.get(name, ())))
        found = [measured.get((name, check)) for check in (_DIVERGENCE, "kl_percentile_99")]
        if any(map(math.isfinite, values)):
            mean, high = (math.nan if m is None else m.value for m in found)
            limit_mean, limit_99 = (limits.get((name, check)) for check in (_DIVERGENCE, "kl_percentile_99"))
            spreads.append(Spread(name, values, mean, high, limit_mean, limit_99))
    decades = decades_of([v for s in spreads for v in (*s.values, s.limit_mean or 0.0, s.limit_99 or 0.0)])
    finite = {s.name: [value for value in s.values if math.isfinite(value)] for s in spreads}
    highest = max((max(bin_shares(finite[s.name], decades)) for s in spreads), default=0.0)
    return tuple(
        Figure(
            svg=str(divergence_histogram(f"histogram-{index}", s, decades, highest)),
            caption=_spread_caption(s, finite[s.name]),
            name=s.name,
        )
        for index, s in enumerate(spreads)
    )


def _spread_caption(spread: Spread, finite: list[float]) -> str:
    nothing = sum(value <= 0 for value in finite)
    parts = [f"n = {len(spread.values):,} tokens"]
    if nothing:
        parts.append(f"{nothing:,} of them without any divergence, counted on the left")
    if len(finite) < len(spread.values):
        parts.append(f"{len(spread.values) - len(finite):,} of them not finite, and not drawn")
    return "; ".join(parts)


def losses(details: Details) -> tuple[Figure, tuple[LossRow, ...]] | None:
    """The loss curve and a table of its validation losses; None without any loss."""
    known = [p for p in details.losses if any(v is not None and math.isfinite(v) for v in (p.loss, p.valid_loss))]
    if not known:
        return None
    train = {p.step: p.loss for p in details.losses if p.loss is not None}
    rows = []
    for point in details.losses:
        if point.valid_loss is not None:
            nearest = train.get(min(train, key=lambda step: abs(step - point.step))) if train else None
            rows.append(_loss_row(point.step, nearest, point.valid_loss))
    if not rows:
        ends = dict.fromkeys((known[0].step, known[-1].step))
        rows = [_loss_row(step, train.get(step), None) for step in ends]
    caption = f"Loss at {len(train):,} training steps (solid) and {len(rows):,} validations (dashed, diamonds)."
    return Figure(str(loss_curve("loss", known)), caption), tuple(rows)


def _loss_row(step: int, loss: float | None, valid_loss: float | None) -> LossRow:
    shown = ["–" if value is None else plain(value) for value in (loss, valid_loss)]
    return LossRow(f"{step:,}", *shown)
