"""The gate: what each file that ships is, what it does, and the verdict on both.

Identity comes before any number (`export.identity`): a file that reads other text than it was trained on, or cannot be
opened, fails whatever its scores. Then every subject is measured (`export.measure`) and compared (`export.compare`).
"""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

from export.checks import Check, Items, Measurement
from export.companions import CompanionSet, measure_companions
from export.compare import Comparison, Verdict, overall, worst_by_subject
from export.errors import ModelError
from export.frozen import Frozen
from export.identity import Finding, identify
from export.lost_safety import SafetyRecord, safety_record
from export.measure import Candidate, Measured, measure
from export.report import SubjectRecord
from export.subjects import Described

Compare = Callable[[Mapping[str, Sequence[Measurement]]], tuple[Comparison, ...]]


class Judged(Frozen):
    """The gate's findings, numbers and verdicts; `verdicts` has an entry for every subject that was judged.

    `beside` are the numbers of companion sets, whose comparisons stand among the others.
    """

    measured: Measured
    beside: tuple[Measurement, ...]
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]
    verdicts: dict[str, Verdict]

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return overall(tuple(self.verdicts.values()))

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Every number: of the held-out rows, then of the sets beside them."""
        return (*self.measured.all(), *self.beside)

    @property
    def safety(self) -> SafetyRecord | None:
        """The safety items, and those that a judged subject lost; None where they were not given or not measured."""
        if not any(m.check == "safety" for m in self.measured.all()):
            return None
        return safety_record(self.measured.items, self.measured.observations, self.comparisons)

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
    companions: Sequence[CompanionSet] = (),
) -> Judged:
    """Judges every subject that ships. The first subject is the reference, and `tokenizer` the folder it is read with.

    `companions` are measured besides, on what could be measured on `items`. `compare` turns the measurements into
    comparisons: which steps there are, and what each may cost, is the caller's.
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
    findings = [_told_if_unmeasured(finding) for finding in findings]
    unmeasured = {finding.subject for finding in findings if not finding.ok and finding.what in _NOT_MEASURED}
    _tell(findings, unmeasured, say)
    opened = [candidate for candidate in candidates if candidate.subject.name not in unmeasured]
    measured = measure(opened, items, checks, folder, tokenizer=tokenizer, threads=threads, say=say)
    ran = [candidate for candidate in opened if candidate.subject.name in measured.observations]
    beside = measure_companions(companions, ran, folder, tokenizer=tokenizer, threads=threads, say=say)
    broken = {**beside.broken, **measured.broken}
    findings = [f for f in findings if (f.what, f.subject) not in {("file", name) for name in broken}]
    findings += [_broken(name, reason) for name, reason in broken.items()]
    comparisons = (*compare(measured.measurements), *beside.comparisons)
    return Judged(
        measured=measured,
        beside=beside.measurements,
        findings=tuple(findings),
        comparisons=comparisons,
        verdicts=_verdicts(findings, comparisons, candidates),
    )


# A file that cannot be opened has no numbers. One whose ids stand for other tokens would be given the reference's ids,
# and every number would be of a text that nobody wrote.
_NOT_MEASURED: dict[str, str] = {
    "file": "",
    "vocabulary": "not measured: the rows' token ids would be other text to it",
}


def _told_if_unmeasured(finding: Finding) -> Finding:
    """A finding that keeps its file from being measured, with a note that says so."""
    why = "" if finding.ok else _NOT_MEASURED.get(finding.what, "")
    return finding.model_copy(update={"note": "; ".join(part for part in (finding.note, why) if part)})


def _tell(findings: Sequence[Finding], unmeasured: Set[str], say: Callable[[str], None]) -> None:
    """One line for each file that fails already: what is wrong, and whether it is measured. What was found comes last,
    with the table.
    """
    wrong: dict[str, list[str]] = {}
    for finding in findings:
        if not finding.ok:
            wrong.setdefault(finding.subject, []).append(finding.what)
    for subject, whats in wrong.items():
        goes_on = "not measured" if subject in unmeasured else "measured all the same, so that its numbers can be seen"
        say(f"{subject}: fails before any number, by its {', '.join(whats)} (see below the table); {goes_on}")


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
    """Raises ModelError when the reference cannot be read, or is not of the model whose folder `tokenizer` is.

    Every artifact would be blamed for it. The folder's tokenizer is what the file is held against here, and either may
    be the wrong one.
    """
    if reference.subject.engine != "llama_cpp":
        return  # a folder is read with its own tokenizer, or with one that was named for it
    found = _identity(reference, tokenizer, items, thinking, compare_weights=False)
    wrong = {finding.what: finding for finding in found if not finding.ok}
    if "file" in wrong:
        raise ModelError(f"the reference cannot be used: {wrong['file'].found}")
    first = next((wrong[what] for what in _OF_READING if what in wrong), None)
    if first is not None:
        raise ModelError(
            f"the reference {reference.subject.path} and the tokenizer of {tokenizer} are not of one model: "
            f"{first.what}: the file has {first.found}; the tokenizer has {first.expected}. Name the folder that the "
            "file was made from with --tokenizer, or another reference."
        )


# From what says most: of another vocabulary nothing else is worth telling.
_OF_READING = ("vocabulary", "token ids", "added tokens")


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
