"""report.html: everything a report says, on one page that needs no network, no script and no colour to be read.

`render` is pure: a report and its details in, the page out. What is on it is decided by the modules of this package,
how it looks by its template and by `export.drawing`. Nothing is measured or judged here.
"""

from pathlib import Path

from export import drawing
from export.artifacts import write_atomically
from export.measure import Measured
from export.page import _figures, _made
from export.page._answers import worst_rows
from export.page._categories import category_tables
from export.page._decision import decide
from export.page._safety import safety_section
from export.page._tables import behaviour_table, divergence_table, steps, subject_table
from export.page.details import Details, gather
from export.report import Report, files_of, reference_of

__all__ = ["Details", "gather", "render", "write", "write_page"]

PAGE = "report.html"


def render(report: Report, details: Details) -> str:
    """The page as HTML. Parts that were not measured are said to be missing, or left out."""
    first_fallbacks, more_fallbacks = _made.fallback_rows(report)
    return drawing.template(Path(__file__).parent / "page.html.jinja").render(
        report=report,
        title=str(report.recipe.get("name") or "comparison"),
        style=drawing.style(),
        decision=decide(report),
        reference=reference_of(report),
        files=files_of(report),
        subjects=subject_table(report),
        behaviour=behaviour_table(report),
        categories=category_tables(report),
        broken=[finding for finding in report.findings if not finding.ok],
        steps=steps(report),
        sizes=_figures.quality_against_size(report),
        divergences=divergence_table(report),
        histograms=_figures.histograms(report, details),
        losses=_figures.losses(details),
        safety=safety_section(report),
        worst=worst_rows(report, details),
        made=_made.made_rows(report),
        first_fallbacks=first_fallbacks,
        more_fallbacks=more_fallbacks,
        retained=_made.retained_rows(report),
        merges=_made.merge_rows(report),
        layers=_made.layers(details),
        provenance=_made.provenance(report, details),
        stages=_made.stage_rows(report),
        settings=_made.settings_text(report),
    )


def write(report: Report, details: Details, folder: Path) -> Path:
    """Writes report.html, replacing an earlier one in a single step."""
    path = folder / PAGE
    write_atomically(path, render(report, details))
    return path


def write_page(report: Report, measured: Measured, *, tokenizer: Path, folder: Path) -> Path:
    """`write`, with the details of what was just measured; see `gather` for `tokenizer` and `folder`."""
    return write(
        report, gather(report, measured.items, measured.observations, tokenizer=tokenizer, folder=folder), folder
    )
