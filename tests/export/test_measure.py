"""What one subject's observation tells of another: here with observations that are written by hand."""

from pathlib import Path

import pytest

from export import measure as measure_module
from export.checks.divergence import Divergence
from export.engines import Subject
from export.measure import Candidate, measure
from export.observe import Observed, Request
from tests.export import observing


def test_that_the_reference_was_rounded_is_told_with_every_divergence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def observe(request: Request, out: Path, say: object) -> Observed:
        name = request.subject.name
        seen = observing.seen(["a"]).model_copy(
            update={"subject": name, "rounding": "computed in bf16" if request.reference is None else ""}
        )
        if request.reference is not None:
            (item,) = seen.items
            item = item.model_copy(update={"kl": (0.1,), "same_top": (True,)})
            seen = seen.model_copy(update={"has_reference": True, "items": (item,)})
        (out / "observation.json").write_text(seen.model_dump_json(), encoding="utf-8")
        (out / "reference.npy").write_bytes(b"predictions")
        return Observed(folder=out, subject=name)

    monkeypatch.setattr(measure_module, "observe", observe)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    candidates = [
        Candidate(subject=Subject(name=name, engine="hf", path=tmp_path), sha256=name, size_bytes=1)
        for name in ("merged", "quantized")
    ]
    made = measure(
        candidates, observing.work(["a"]), [Divergence()], tmp_path / "seen", tokenizer=tmp_path, threads=1, say=print
    )
    assert made.measurements["merged"] == ()
    told = "the reference was computed in bf16; part of the divergence is that rounding"
    assert made.measurements["quantized"][0].note.startswith(told)
