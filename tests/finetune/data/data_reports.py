"""Reports of rows written by hand for tests of how they are shown. No rows are read."""

from finetune.data.account import (
    Clause,
    DataReport,
    Histogram,
    LengthLimit,
    Overlap,
    PersonalCount,
    ScriptCount,
    SplitCounts,
)

EDGES = (0, 16, 32, 64, 128, 256, 512, 1024, 2048)


def clauses() -> tuple[Clause, ...]:
    """Kept ones, one of them a least share, and one without a limit."""
    return (
        Clause(name="broken_share", what="rows that do not fit the template", count=0, n=1220, limit=0.0, ok=True),
        Clause(
            name="empty_share",
            what="rows without a prompt or an answer",
            count=12,
            n=1220,
            limit=0.05,
            ok=True,
            examples=("commands.jsonl, line 3: the answer is empty", "commands.jsonl, line 19: the prompt is empty"),
            remedy="Remove these rows.",
        ),
        Clause(
            name="trained_token_share",
            what="tokens that carry loss",
            count=17_700,
            n=54_280,
            limit=0.01,
            at_least=True,
            ok=True,
        ),
        Clause(
            name="turn_end_share",
            what="assistant's turns that end in a scored turn-end token",
            count=1180,
            n=1180,
            limit=1.0,
            at_least=True,
            ok=True,
        ),
        Clause(name="personal_share", what="rows with personal data", count=7, n=1180, limit=None, ok=None),
    )


def broken_clauses() -> tuple[Clause, ...]:
    """Two that are broken."""
    return (
        Clause(
            name="overlap_near_share",
            what="held-out rows that are near copies of a training row",
            count=19,
            n=236,
            limit=0.02,
            ok=False,
            examples=tuple(f"commands.jsonl, line {n}: 打开厨房的灯 {n}" for n in range(40, 49)),
            remedy="Set data.group_by to a field that near copies share, so that they stand in one split.",
        ),
        Clause(
            name="outside_labels_share",
            what="answers that are none of the template's labels",
            count=1,
            n=1180,
            limit=0.0,
            ok=False,
            examples=("commands.jsonl, line 77: 'lights_onn'",),
            remedy="Correct the answer, or add the label to the template.",
        ),
    )


def filled(**changes: object) -> DataReport:
    """A report with something in every part, the contract kept; `changes` replace fields."""
    report = DataReport(
        name="home commands",
        path="commands/",
        template="nlu_home_commands",
        template_chosen_by="the form of the first 200 rows",
        encodings=("utf-8", "gb18030"),
        licences=(("commands.jsonl", "CC-BY-4.0"), ("more.jsonl", "not stated")),
        tokenizer="Qwen/Qwen2.5-0.5B-Instruct",
        read=1500,
        sampled_out=280,
        kept=1180,
        dropped={"empty_answer": 12, "duplicate": 23, "too_long": 5},
        splits={
            "train": SplitCounts(rows=785, groups=400, tokens=36_110, scored_tokens=11_775),
            "valid": SplitCounts(rows=59, groups=30, tokens=2_714, scored_tokens=885),
            "held_out": SplitCounts(rows=236, groups=120, tokens=10_856, scored_tokens=3_540),
        },
        not_drawn=100,
        clauses=clauses(),
        tokens=Histogram(edges=EDGES, counts=(0, 90, 700, 300, 80, 9, 4, 1, 1)),
        turns=Histogram(edges=(1, 2, 3, 4, 5, 6, 7, 8), counts=(0, 900, 40, 200, 0, 30, 0, 15)),
        lengths=(
            LengthLimit(max_tokens=512, rows=6, n=1185),
            LengthLimit(max_tokens=1024, rows=2, n=1185),
            LengthLimit(max_tokens=2048, rows=1, n=1185),
        ),
        scripts=(
            ScriptCount(script="Chinese", rows=700, bytes=90_000, tokens=28_000),
            ScriptCount(script="Latin", rows=460, bytes=70_000, tokens=17_000),
            ScriptCount(script="mixed", rows=20, bytes=2_000, tokens=700),
            ScriptCount(script="other", rows=0, bytes=0, tokens=0),
        ),
        personal=(
            PersonalCount(kind="email", rows=3, findings=4, examples=("an***@***.org", "b***@***.com")),
            PersonalCount(kind="phone", rows=4, findings=4, examples=("138****1234",)),
            PersonalCount(kind="id_number", rows=0, findings=0),
        ),
        masked=False,
        overlaps=(
            Overlap(
                kind="near",
                of="kept rows",
                among="kept rows",
                rows=31,
                n=1180,
                examples=(("turn on the kitchen light, please", "turn on the kitchen lights now, please"),),
            ),
            Overlap(
                kind="ngram",
                of="held-out rows",
                among="training rows",
                rows=2,
                n=236,
                examples=(("请把客厅的窗帘拉上然后把空调调到二十六度\n好的", "好的,把客厅的窗帘拉上"),),
            ),
            Overlap(kind="exact", of="held-out rows", among="training rows", rows=0, n=236),
        ),
    )
    return report.model_copy(update=changes)


def broken(**changes: object) -> DataReport:
    """The same with two clauses broken."""
    return filled(clauses=(*clauses(), *broken_clauses()), **changes)


def empty() -> DataReport:
    """A report in which nothing could be counted: every row was broken."""
    return DataReport(
        name="",
        path="rows.jsonl",
        template="prompt_answer",
        template_chosen_by="",
        encodings=(),
        licences=(),
        tokenizer="",
        read=0,
        sampled_out=0,
        kept=0,
        dropped={},
        splits={},
        clauses=(),
        tokens=Histogram(edges=(), counts=()),
        turns=Histogram(edges=(1, 2), counts=(0, 0)),
        lengths=(),
        scripts=(),
        personal=(),
        masked=False,
        overlaps=(),
    )
