"""Task scores by category on the page: a table for each score, a row for each category. Nothing is judged by them."""

from collections.abc import Sequence
from typing import NamedTuple

from export.categories import CategoryScore
from export.page._tables import from_base_to_files
from export.report import Report
from export.wording.values import NOT_MEASURED, check_name, interval_of_share, main_score, plain


class CategoryCell(NamedTuple):
    """A score as text, its interval, and exactly for a machine."""

    text: str
    interval: str
    exact: str


class CategoryRow(NamedTuple):
    """One category: its name, how many rows it has, and a cell for each subject."""

    name: str
    rows: int
    cells: tuple[CategoryCell, ...]


class CategoryTable(NamedTuple):
    """One score by category; `is_main` for the score that stands for all of them."""

    name: str
    is_main: bool
    subjects: tuple[str, ...]
    rows: tuple[CategoryRow, ...]


def category_tables(report: Report) -> tuple[CategoryTable, ...]:
    """A table for each score that was told by category, the main one first."""
    by_check: dict[str, list[CategoryScore]] = {}
    for score in report.by_category:
        by_check.setdefault(score.check, []).append(score)
    main = main_score(by_check)
    ordered = sorted(by_check, key=lambda check: check != main)
    subjects = tuple(subject.name for subject in from_base_to_files(report.subjects))
    return tuple(_table(check, by_check[check], subjects, is_main=check == main) for check in ordered)


def _table(check: str, scores: Sequence[CategoryScore], subjects: Sequence[str], *, is_main: bool) -> CategoryTable:
    found = {(score.category, score.subject): score for score in scores}
    measured = tuple(name for name in subjects if any(score.subject == name for score in scores))
    rows = {score.category: score.n for score in scores}
    return CategoryTable(
        name=check_name(check),
        is_main=is_main,
        subjects=measured,
        rows=tuple(
            CategoryRow(category or "(none)", n, tuple(_cell(found.get((category, name))) for name in measured))
            for category, n in rows.items()
        ),
    )


def _cell(score: CategoryScore | None) -> CategoryCell:
    if score is None:
        return CategoryCell(NOT_MEASURED, "", "")
    return CategoryCell(plain(score.value * 100, 1), interval_of_share(score.low, score.high), repr(score.value))
