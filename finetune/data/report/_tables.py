"""The report's tables and facts, as rows of text; what of the rows' own text is shown, and how much of it."""

from collections.abc import Sequence
from typing import NamedTuple

from export.drawing.side_by_side import Passage, Text, side_by_side
from export.wording.values import plain
from finetune.data.account import DataReport, Overlap
from finetune.data.report._charts import Bin, Part, range_text
from finetune.data.report._words import (
    DROPS,
    LONGEST_NAME,
    NOTHING,
    OVERLAPS,
    PERSONAL,
    SPLITS,
    Verdict,
    clause_verdict,
    limit_text,
    looked_at,
    overlap_words,
    share,
)
from finetune.data.shown import in_one_line, visible

_MOST_EXAMPLES = 5
_EXAMPLE_CHARACTERS = 240
# All pairs of the page together, and any text of one.
_PAIR_CHARACTERS, _LONGEST, _SHORTEST = 80_000, 700, 120
_MOST_FACTS = 40
_FACT_CHARACTERS = 300


class Column(NamedTuple):
    """A heading, and whether numbers stand below it."""

    name: str
    is_number: bool = True


class Table(NamedTuple):
    """Rows of text; the first cell of each names it. The caption says what was counted."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


class ClauseRow(NamedTuple):
    """A clause of the contract. `remedy` is empty where it is kept."""

    what: str
    name: str
    verdict: Verdict
    share: str
    counted: str
    limit: str
    examples: tuple[str, ...]
    more: int
    remedy: str


class Pairs(NamedTuple):
    """Examples of one kind of overlap: each row beside what it repeats."""

    heading: str
    of: str
    among: str
    rows: tuple[tuple[Text, Text], ...]
    more: int


class Facts(NamedTuple):
    """Names and values below a heading, and how many were left out."""

    heading: str
    rows: tuple[tuple[str, str], ...]
    more: int = 0


def clause_rows(report: DataReport) -> tuple[ClauseRow, ...]:
    """The contract, what is broken first, what has no limit last."""
    order = {False: 0, True: 1, None: 2}
    return tuple(
        ClauseRow(
            what=_line(clause.what, LONGEST_NAME),
            name=_line(clause.name, LONGEST_NAME),
            verdict=clause_verdict(clause),
            share=share(clause.count, clause.n),
            counted=f"{clause.count:,} of {clause.n:,}" if clause.n else "n = 0: nothing to count",
            limit=limit_text(clause),
            examples=tuple(map(_line, clause.examples[:_MOST_EXAMPLES])),
            more=max(0, len(clause.examples) - _MOST_EXAMPLES),
            remedy=_line(clause.remedy, 600) if clause.ok is False else "",
        )
        for clause in sorted(report.clauses, key=lambda clause: order[clause.ok])
    )


def parts(report: DataReport) -> tuple[Part, ...]:
    """Read, left out, dropped by reason, kept, and where those went; what is nothing is left out, but for splits."""
    found = [Part("read", 0, report.read, is_kept=True)]
    end = report.read
    lost = [("left out by data.rows", report.sampled_out)]
    lost += [(DROPS[reason].short, count) for reason, count in report.dropped.items()]
    for name, count in lost:
        if count:
            end -= count
            found.append(Part(name, max(0, end), count, is_kept=False))
    found.append(Part("kept", 0, report.kept, is_kept=True))
    begin = 0
    for split, counts in report.splits.items():
        found.append(Part(SPLITS[split], begin, counts.rows, is_kept=True))
        begin += counts.rows
    if report.not_drawn:
        found.append(Part("not drawn", begin, report.not_drawn, is_kept=False))
    return tuple(found)


def account_table(report: DataReport) -> Table:
    """Every row that was read, and what became of it: the lines add up."""
    n = looked_at(report)
    rows = [("rows read", f"{report.read:,}", NOTHING)]
    if report.sampled_out:
        rows += [("left out by data.rows, not looked at", f"{report.sampled_out:,}", NOTHING)]
    rows += [
        (f"dropped: {words.full}", f"{report.dropped.get(reason, 0):,}", share(report.dropped.get(reason, 0), n))
        for reason, words in DROPS.items()
    ]
    rows += [("kept", f"{report.kept:,}", share(report.kept, n))]
    if report.not_drawn:
        drawn = "of these not drawn: data.max_train_tokens was reached"
        rows += [(drawn, f"{report.not_drawn:,}", share(report.not_drawn, n))]
    caption = f"Every row that was read. Shares are of the n = {n:,} rows that were looked at"
    return Table(caption, (Column("rows", False), Column("count"), Column("share")), tuple(rows))


def split_table(report: DataReport) -> Table:
    """The three splits: rows, groups, tokens."""
    columns = ("rows", "share of kept", "groups", "tokens", "tokens that carry loss", "share of tokens")
    rows = tuple(
        (
            SPLITS[split],
            f"{counts.rows:,}",
            share(counts.rows, report.kept),
            f"{counts.groups:,}",
            f"{counts.tokens:,}",
            f"{counts.scored_tokens:,}",
            share(counts.scored_tokens, counts.tokens),
        )
        for split, counts in report.splits.items()
    )
    caption = f"Where the n = {report.kept:,} kept rows went; no group stands in two splits"
    return Table(caption, (Column("split", False), *map(Column, columns)), rows)


def bin_table(shown: Sequence[Bin], what: str) -> Table:
    """A histogram's numbers."""
    n = sum(each.rows for each in shown)
    rows = tuple((range_text(each), f"{each.rows:,}", share(each.rows, n)) for each in shown)
    return Table(f"Rows by their {what}; n = {n:,} rows", (Column(what, False), Column("rows"), Column("share")), rows)


def length_table(report: DataReport) -> Table:
    """What would be cut at which length."""
    columns = (Column("at", False), Column("rows that are longer"), Column("n"), Column("share"))
    rows = tuple(
        (f"{each.max_tokens:,} tokens", f"{each.rows:,}", f"{each.n:,}", share(each.rows, each.n))
        for each in report.lengths
    )
    return Table("Rows that would be cut, of all that were encoded, dropped ones too", columns, rows)


def script_table(report: DataReport) -> Table:
    """Which scripts the rows are written in, and how densely the tokenizer packs each."""
    columns = ("rows", "share of kept", "bytes", "tokens", "bytes per token")
    rows = tuple(
        (
            _line(each.script, LONGEST_NAME),
            f"{each.rows:,}",
            share(each.rows, report.kept),
            f"{each.bytes:,}",
            f"{each.tokens:,}",
            NOTHING if each.bytes_per_token is None else plain(each.bytes_per_token, 2),
        )
        for each in report.scripts
    )
    caption = f"The n = {report.kept:,} kept rows by the script that most of their words are in"
    return Table(caption, (Column("script", False), *map(Column, columns)), rows)


def overlap_table(report: DataReport) -> Table:
    """What is found again where."""
    columns = (Column("rows", False), Column("what", False), Column("count"), Column("n"), Column("share"))
    rows = tuple(
        (overlap_words(each), OVERLAPS[each.kind], f"{each.rows:,}", f"{each.n:,}", share(each.rows, each.n))
        for each in report.overlaps
    )
    return Table("Rows of one set that are found again in another; n is the rows of the first", columns, rows)


def pairs(report: DataReport) -> tuple[Pairs, ...]:
    """Example pairs side by side, of each overlap that has some; the more there are, the shorter each is shown."""
    with_examples = [each for each in report.overlaps if each.examples]
    count = sum(min(_MOST_EXAMPLES, len(each.examples)) for each in with_examples)
    characters = max(_SHORTEST, min(_LONGEST, _PAIR_CHARACTERS // max(1, 2 * count)))
    return tuple(
        Pairs(
            heading=f"{overlap_words(each)}: {OVERLAPS[each.kind]}",
            of=_line(each.of, LONGEST_NAME),
            among=_line(each.among, LONGEST_NAME),
            rows=tuple(_pair(each, *pair, characters) for pair in each.examples[:_MOST_EXAMPLES]),
            more=max(0, each.rows - min(_MOST_EXAMPLES, len(each.examples))),
        )
        for each in with_examples
    )


def _pair(overlap: Overlap, row: str, repeated: str, characters: int) -> tuple[Text, Text]:
    """The row and what it repeats; of near copies the differences are marked."""
    first, second = visible(row), visible(repeated)
    if overlap.kind == "near":
        return side_by_side(first, second, characters)
    return _cut(first, characters), _cut(second, characters)


def _cut(text: str, characters: int) -> Text:
    return Text((Passage("same", text[:characters]),) if text else (), 0, max(0, len(text) - characters))


def personal_table(report: DataReport) -> Table:
    """What may name a person, by kind."""
    columns = (Column("kind", False), Column("rows"), Column("findings"), Column("partly hidden examples", False))
    rows = tuple(
        (PERSONAL[each.kind], f"{each.rows:,}", f"{each.findings:,}", ", ".join(map(_hidden, each.examples[:3])))
        for each in report.personal
    )
    state = "replaced by their kind in what is trained on" if report.masked else "left in the rows as they are"
    return Table(f"Counted over all n = {report.kept:,} kept rows; {state}", columns, rows)


def _hidden(example: str) -> str:
    return in_one_line(example, 60)


def source_facts(report: DataReport) -> Facts:
    """Where the rows come from and how they were read."""
    rows = [
        ("rows", _line(report.path, _FACT_CHARACTERS)),
        ("template", _line(report.template, _FACT_CHARACTERS)),
        ("chosen by", _line(report.template_chosen_by, _FACT_CHARACTERS)),
        ("encoding", _line(", ".join(report.encodings[:_MOST_FACTS]), _FACT_CHARACTERS) or "no text files"),
        ("tokenizer", _line(report.tokenizer, _FACT_CHARACTERS)),
    ]
    return Facts("Source and reading", tuple(rows))


def licence_facts(report: DataReport) -> Facts:
    """What is stated of the rows' licences."""
    rows = [(_line(of, 120), _line(licence, _FACT_CHARACTERS)) for of, licence in report.licences[:_MOST_FACTS]]
    return Facts("Licences", tuple(rows), max(0, len(report.licences) - _MOST_FACTS))


def _line(text: str, characters: int = _EXAMPLE_CHARACTERS) -> str:
    return in_one_line(text, characters)
