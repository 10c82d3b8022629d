"""The gate: what each file that ships is, what it does, and the verdict on both.

Identity comes before any number (`export.identity`): a file that reads other text than it was trained on, or cannot be
opened, fails whatever its scores. Then every subject is measured (`export.measure`) and compared (`export.compare`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export.checks import Check, Items, Measurement
from export.compare import Comparison, Verdict, overall, worst_by_subject
from export.errors import ModelError
from export.frozen import Frozen
from export.identity import Finding, identify
from export.measure import Candidate, Measured, measure
from export.report import SubjectRecord
from export.subjects import Described

Compare = Callable[[Mapping[str, Sequence[Measurement]]], tuple[Comparison, ...]]


class Judged(Frozen):
    """The gate's findings, numbers and verdicts; `verdicts` has an entry for every subject that was judged."""

    measured: Measured
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]
    verdicts: dict[str, Verdict]

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return overall(tuple(self.verdicts.values()))

    def records(self, subjects: Sequence[Described]) -> tuple[SubjectRecord, ...]:
        """The subjects' entries in the report, each with its verdict."""
        return tuple(
            subject.record.model_copy(update={"verdict": self.verdicts.get(subject.record.name)})
            for subject in subjects
        )


def judge(
    subjects: Sequence[Described],
    items: Items,
    checks: Sequence[Check],
    folder: Path,
    *,
    tokenizer: Path,
    compare: Compare,
    thinking: bool,
    threads: int,
    say: Callable[[str], None],
) -> Judged:
    """Judges every subject that ships. The first subject is the reference, and `tokenizer` the folder it is read with.

    `compare` turns the measurements into comparisons: which steps there are, and what each may cost, is the caller's.
    `thinking` says whether the items were rendered in the chat template's thinking mode.
    """
    candidates = [subject.candidate for subject in subjects]
    _check_reference(candidates[0], tokenizer, items, thinking)
    reference = candidates[0].subject
    is_the_model = reference.path == tokenizer and reference.adapter is None
    findings = [
        finding
        for candidate in candidates
        if candidate.ships
        for finding in _identity(candidate, tokenizer, items, thinking, compare_weights=is_the_model)
    ]
    for finding in findings:
        if not finding.ok:
            say(f"{finding.subject}: {finding.what}: found {finding.found}; expected {finding.expected}")
    closed = {finding.subject for finding in findings if finding.what == "file" and not finding.ok}
    opened = [candidate for candidate in candidates if candidate.subject.name not in closed]
    measured = measure(opened, items, checks, folder, tokenizer=tokenizer, threads=threads, say=say)
    findings = [f for f in findings if (f.what, f.subject) not in {("file", name) for name in measured.broken}]
    findings += [_broken(name, reason) for name, reason in measured.broken.items()]
    comparisons = compare(measured.measurements)
    return Judged(
        measured=measured,
        findings=tuple(findings),
        comparisons=comparisons,
        verdicts=_verdicts(findings, comparisons, candidates),
    )


def _identity(
    candidate: Candidate, tokenizer: Path, items: Items, thinking: bool, *, compare_weights: bool
) -> tuple[Finding, ...]:
    subject = candidate.subject
    return identify(
        subject.name,
        subject.path,
        subject.engine,
        tokenizer,
        items,
        thinking=thinking,
        compare_weights=compare_weights,
    )


def _check_reference(reference: Candidate, tokenizer: Path, items: Items, thinking: bool) -> None:
    """Raises ModelError when the reference does not read what `tokenizer` writes: every artifact would be blamed."""
    if reference.subject.engine != "llama_cpp":
        return  # a folder is read with its own tokenizer, or with one that was named for it
    wrong = [
        f
        for f in _identity(reference, tokenizer, items, thinking, compare_weights=False)
        if not f.ok and f.what in _OF_READING
    ]
    if wrong:
        first = wrong[0]
        raise ModelError(
            f"the reference {reference.subject.path} is not read as {tokenizer} writes: {first.what}: found "
            f"{first.found}; expected {first.expected}. Name the folder it was made from with --tokenizer."
        )


_OF_READING = ("file", "token ids", "vocabulary", "added tokens")


def _broken(name: str, reason: str) -> Finding:
    return Finding(what="file", subject=name, ok=False, found=reason, expected="a file that its engine can run")


def _verdicts(
    findings: Sequence[Finding], comparisons: Sequence[Comparison], candidates: Sequence[Candidate]
) -> dict[str, Verdict]:
    """Each judged subject's verdict, in the subjects' order: one finding that is not as it should be fails it."""
    verdicts = dict(worst_by_subject(comparisons))
    for finding in findings:
        if not finding.ok:
            verdicts[finding.subject] = "fail"
    names = [candidate.subject.name for candidate in candidates]
    for candidate in candidates:
        if candidate.ships:
            # measured but compared in nothing: no check that could decide was asked for
            verdicts.setdefault(candidate.subject.name, "cannot tell")
    return {name: verdicts[name] for name in names if name in verdicts}
