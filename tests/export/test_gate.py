"""The gate: identity decides before numbers, a file that cannot be run fails, and nothing that ships goes unjudged."""

import pytest

from export import gate, measure
from export.checks import Item, ItemObservation, Items, Observation
from export.checks.exact_match import ExactMatch
from export.checks.stops import Stops
from export.compare import Gate, compare_against
from export.engines import Subject
from export.errors import EngineError, MachineError, ModelError
from export.gate import judge
from export.identity import Finding
from export.measure import Candidate
from export.report import SubjectRecord
from export.subjects import Described

ITEMS = Items(
    items=tuple(Item(ids=(1, 2, 3), scored=(2,), prompt=(1, 2), answer="yes") for _ in range(400)),
    vocabulary_size=10,
    max_new_tokens=4,
)


CHECKS = (ExactMatch(), Stops())


class _Recorded:
    """What `export.measure` keeps of an observed subject."""

    def __init__(self, observation, reference):
        self._observation = observation
        self.reference = reference

    def read(self):
        return self._observation


def _described(name, *, ships):
    subject = Subject(name=name, engine="hf", path="/nowhere")
    record = SubjectRecord(
        name=name, path="x", sha256="0", size_bytes=1, bits_per_weight=8.0, engine="hf", tensor_types={"bf16": 1}
    )
    return Described(Candidate(subject=subject, sha256="0", size_bytes=1, ships=ships), record)


def _observation(name, *, lost=0, stops=True):
    seen = [
        ItemObservation(log_probs=(-0.1,), generated="no" if row < lost else "yes", stopped=stops, generated_tokens=1,
                        finite=True)
        for row in range(len(ITEMS.items))
    ]  # fmt: skip
    return Observation(
        subject=name, engine="hf", items=tuple(seen), peak_memory_bytes=1, size_bytes=1, tokens_per_second=(),
        has_reference=False,
    )  # fmt: skip


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Judges two subjects against a reference, each of which does what it is told."""

    def run(observations, findings=(), checks=CHECKS, say=lambda line: None):
        predictions = tmp_path / "tokenizer.json"  # any file: what is compared is told, not worked out
        predictions.write_text("{}", encoding="utf-8")

        def observed(candidate, given, reference, place, say):
            found = observations[candidate.subject.name]
            if isinstance(found, Exception):
                raise found
            return _Recorded(found, predictions)

        monkeypatch.setattr(measure, "_observed", observed)
        monkeypatch.setattr(
            gate, "identify", lambda name, *rest, **how: tuple(f for f in findings if f.subject == name)
        )
        subjects = [_described(name, ships=name != "reference") for name in observations]
        return judge(
            subjects,
            ITEMS,
            checks,
            tmp_path / "check",
            tokenizer=tmp_path,
            compare=lambda measured: compare_against(measured, Gate(), "reference", {}, seed=0),
            thinking=False,
            threads=1,
            say=say,
        )

    return run


def test_what_changed_nothing_passes_and_what_lost_answers_fails(judged):
    seen = judged(
        {
            "reference": _observation("reference"),
            "q8_0": _observation("q8_0"),
            "q4_0": _observation("q4_0", lost=40),
        }
    )
    assert seen.verdicts == {"q8_0": "pass", "q4_0": "fail"}
    assert seen.verdict == "fail"


def test_a_finding_fails_a_file_whatever_its_scores(judged):
    bad = Finding(what="stop ids", subject="q8_0", ok=False, found="151643", expected="151645")
    good = Finding(what="stop ids", subject="f16", ok=True, found="151645", expected="151645")
    seen = judged(
        {"reference": _observation("reference"), "q8_0": _observation("q8_0"), "f16": _observation("f16")}, [bad, good]
    )
    assert seen.verdicts == {"q8_0": "fail", "f16": "pass"}


def test_a_file_that_cannot_be_opened_is_not_measured_and_fails(judged):
    closed = Finding(what="file", subject="q8_0", ok=False, found="cut short", expected="a whole file")
    seen = judged({"reference": _observation("reference"), "q8_0": RuntimeError("must not be run")}, [closed])
    assert seen.verdicts == {"q8_0": "fail"}
    assert "q8_0" not in seen.measured.measurements


def test_a_file_whose_ids_are_other_tokens_is_not_measured_and_says_so(judged):
    other = Finding(what="vocabulary", subject="q8_0", ok=False, found="2 ids with another text", expected="the tokens")
    said = []
    seen = judged(
        {"reference": _observation("reference"), "q8_0": RuntimeError("must not be run")}, [other], say=said.append
    )
    assert seen.verdicts == {"q8_0": "fail"}
    assert "q8_0" not in seen.measured.measurements
    (finding,) = seen.findings
    assert finding.note == "not measured: the rows' token ids would be other text to it"
    assert said == ["q8_0: fails before any number, by its vocabulary (see below the table); not measured"]


def test_a_file_that_fails_for_its_template_is_measured_all_the_same(judged):
    other = Finding(what="chat template", subject="q8_0", ok=False, found="x", expected="y")
    said = []
    seen = judged({"reference": _observation("reference"), "q8_0": _observation("q8_0")}, [other], say=said.append)
    assert seen.verdicts == {"q8_0": "fail"}
    assert seen.measured.measurements["q8_0"]
    assert "measured all the same" in said[0]


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        (
            [("token ids", "id 5"), ("vocabulary", "9 tokens")],
            ["m.gguf and the tokenizer of", "are not of one model: vocabulary: the file has 9 tokens", "--tokenizer"],
        ),
        ([("file", "m.gguf is cut short. Copy it again.")], ["the reference cannot be used: m.gguf is cut short."]),
    ],
)
def test_a_gguf_reference_and_a_tokenizer_of_another_model_blame_neither(monkeypatch, tmp_path, findings, said):
    found = tuple(
        Finding(what=what, subject="m", ok=False, found=words, expected="another") for what, words in findings
    )
    monkeypatch.setattr(gate, "identify", lambda *rest, **how: found)
    candidate = Candidate(subject=Subject(name="m", engine="llama_cpp", path="m.gguf"), sha256="0", size_bytes=1)
    with pytest.raises(ModelError) as caught:
        gate._check_reference(candidate, tmp_path, ITEMS, False)
    for words in said:
        assert words in str(caught.value)


def test_a_file_whose_engine_breaks_fails_with_the_engines_words(judged):
    seen = judged({"reference": _observation("reference"), "q8_0": EngineError("unknown architecture 'qwen9'")})
    assert seen.verdicts == {"q8_0": "fail"}
    (finding,) = seen.findings
    assert (finding.what, finding.ok, finding.found) == ("file", False, "unknown architecture 'qwen9'")


def test_a_machine_that_fails_does_not_fail_the_file(judged):
    with pytest.raises(MachineError, match="out of memory"):
        judged({"reference": _observation("reference"), "q8_0": MachineError("out of memory")})


def test_a_reference_of_no_numbers_is_refused(judged):
    broken = _observation("reference")
    first = broken.items[0].model_copy(update={"finite": False})
    with pytest.raises(EngineError, match="not finite on 1 of 400 rows"):
        judged({"reference": broken.model_copy(update={"items": (first, *broken.items[1:])})})


def test_names_that_become_one_without_slashes_keep_records_of_their_own(tmp_path):
    places = measure._places(["model", "b/model", "b-model"], tmp_path)
    assert len(set(places)) == 3


def test_a_reference_that_cannot_be_run_is_an_error(judged):
    with pytest.raises(EngineError, match="out of memory"):
        judged({"reference": EngineError("out of memory"), "q8_0": _observation("q8_0")})


def test_a_file_that_no_check_could_judge_is_not_passed(judged):
    seen = judged({"reference": _observation("reference"), "q8_0": _observation("q8_0")}, checks=())
    assert seen.verdicts == {"q8_0": "cannot tell"}


@pytest.mark.parametrize(("rows", "verdict"), [(1, "cannot tell"), (400, "fail")])
def test_answers_that_stop_no_more_never_pass_and_fail_where_it_is_no_chance(judged, rows, verdict):
    broken = _observation("q8_0")
    lost = [item.model_copy(update={"stopped": False}) for item in broken.items[:rows]]
    seen = judged(
        {
            "reference": _observation("reference"),
            "q8_0": broken.model_copy(update={"items": (*lost, *broken.items[rows:])}),
        }
    )
    assert seen.verdicts == {"q8_0": verdict}
