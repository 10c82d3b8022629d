"""report.json and report.html of the rows, and the same in a dozen lines for a terminal. Nothing is counted here.

The page is in the house style of the gate's page (`export.drawing`): no network, no script, no colour needed. What it
shows of rows is text of strangers: it is escaped, cut, and cannot command a terminal (`finetune.data.shown`).
"""

import json
from pathlib import Path

from export import drawing
from export.artifacts import write_atomically
from finetune.data.account import DataReport
from finetune.data.report import _charts, _tables
from finetune.data.report._terminal import lines
from finetune.data.report._words import looked_at, verdict
from finetune.data.shown import in_one_line

__all__ = ["lines", "render", "write_report"]


def write_report(report: DataReport, folder: Path) -> None:
    """Writes report.json, which reads back as the same report, and report.html; each replaced in a single step."""
    text = json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "report.json", text + "\n")
    write_atomically(folder / "report.html", render(report))


def render(report: DataReport) -> str:
    """The page as HTML. What was not counted is said to be missing."""
    tokens, turns = _charts.bins(report.tokens), _charts.bins(report.turns)
    histograms = [
        (
            _charts.histogram_chart(f"chart-{what}", shown, title=f"Rows by their {what}", axis=axis),
            _tables.bin_table(shown, what),
        )
        for what, axis, shown in (("tokens", "tokens per row", tokens), ("turns", "turns per row", turns))
        if shown
    ]
    return drawing.template(Path(__file__).parent / "page.html.jinja").render(
        title=in_one_line(report.name, 120) or "rows",
        style=drawing.style(),
        report=report,
        verdict_of_all=verdict(report),
        looked_at=looked_at(report),
        clauses=_tables.clause_rows(report),
        flow=_charts.flow("flow", _tables.parts(report), report.read),
        account=_tables.account_table(report),
        splits=_tables.split_table(report),
        histograms=histograms,
        lengths=_tables.length_table(report),
        scripts=_tables.script_table(report),
        overlaps=_tables.overlap_table(report),
        pairs=_tables.pairs(report),
        personal=_tables.personal_table(report),
        facts=(_tables.source_facts(report), _tables.licence_facts(report)),
    )
