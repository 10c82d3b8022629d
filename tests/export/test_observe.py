"""Observing a subject: what its process says when it fails, and what it costs."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from export import observe as observe_module
from export.checks import Item, Items, SafetyItem
from export.engines import Engine, Generation, Subject
from export.errors import EngineError, MachineError
from export.observe import Observed, Request, main, observe
from export.stage import run_stage
from tests.export import tiny_models

ITEMS = Items(
    items=(
        Item(ids=(1, 2, 3, 4), scored=(2, 3), prompt=(1, 2), answer="a"),
        Item(ids=(5, 6, 7), scored=(2,), prompt=(5, 6), answer="b"),
    ),
    vocabulary_size=300,
    max_new_tokens=4,
)


def _request(tmp_path, *, engine, path, tokenizer=None):
    items = tmp_path / "items.json"
    items.write_text(ITEMS.model_dump_json(), encoding="utf-8")
    return Request(
        subject=Subject(name="the subject", engine=engine, path=path),
        items=items,
        tokenizer=tokenizer or tmp_path,
        reference=None,
        size_bytes=1,
        threads=1,
    )


def _fails(tmp_path, request, kind=EngineError):
    """The error of observing as a stage; whatever it was, nothing of the stage may be left."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EngineError) as failed:
        run_stage(tmp_path / "seen", "check", {}, lambda out: observe(request, out, print), Observed, lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert type(failed.value) is kind
    return str(failed.value)


def test_a_missing_file_is_named_in_the_last_words(tmp_path):
    said = _fails(tmp_path, _request(tmp_path, engine="llama_cpp", path=tmp_path / "missing.gguf"))
    assert said.startswith("the subject could not be measured. Its process ended with 3; it last said:")
    assert "missing.gguf" in said
    assert "Traceback" not in said


def test_a_bug_in_the_process_ends_in_its_own_message(tmp_path):
    request = _request(tmp_path, engine="llama_cpp", path=tmp_path / "x.gguf")
    request.items.write_text('{"items": 3}', encoding="utf-8")
    said = _fails(tmp_path, request, MachineError)
    assert "ended with 1" in said
    assert "Field required" in said


def test_a_process_that_is_killed_says_by_what(tmp_path, monkeypatch):
    interpreter = tmp_path / "interpreter"
    interpreter.write_text("#!/bin/sh\necho loading the weights\nkill -SEGV $$\n", encoding="utf-8")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    said = _fails(tmp_path, _request(tmp_path, engine="hf", path=tmp_path))
    assert f"was killed by signal {int(signal.SIGSEGV)}" in said
    assert "loading the weights" in said


def test_a_process_that_the_system_ends_for_its_memory_is_not_the_artifacts_fault(tmp_path, monkeypatch):
    interpreter = tmp_path / "interpreter"
    interpreter.write_text("#!/bin/sh\nkill -KILL $$\n", encoding="utf-8")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    assert "out of memory" in _fails(tmp_path, _request(tmp_path, engine="hf", path=tmp_path), MachineError)


def test_a_subject_is_observed_in_a_process_of_its_own_and_says_how_far_it_is(tmp_path, monkeypatch):
    folder = tiny_models.build(tmp_path / "model", "qwen2", tied=True, hidden_size=64).folder
    request = _request(tmp_path, engine="hf", path=folder, tokenizer=folder)
    monkeypatch.setattr(observe_module, "_SECONDS_BETWEEN_LINES", 0.0)
    said: list[str] = []
    observed = run_stage(
        tmp_path / "seen", "check", {}, lambda out: observe(request, out, said.append), Observed, print
    )
    seen = observed.read()
    assert said == [
        "  the subject: 1 of 2 rows scored",
        "  the subject: 2 of 2 rows scored",
        "  the subject: answering 2 prompts",
    ]
    assert (seen.subject, seen.engine, seen.has_reference) == ("the subject", "hf", False)
    assert [len(item.log_probs) for item in seen.items] == [2, 1]
    assert all(item.finite for item in seen.items)
    assert observed.reference.is_file()
    assert not (observed.folder / "request.json").exists()


@pytest.mark.parametrize(("safety_max_new_tokens", "most"), [(None, 4), (9, 9)])
def test_an_answer_to_a_safety_item_has_its_own_room(tmp_path, monkeypatch, safety_max_new_tokens, most):
    safety = (SafetyItem(prompt=(1, 2), text="?", safe=("x",)), SafetyItem(prompt=(1, 2, 3), text="?", safe=("x",)))
    work = ITEMS.model_copy(update={"safety": safety, "safety_max_new_tokens": safety_max_new_tokens})
    request = _request(tmp_path, engine="hf", path=tmp_path)
    request.items.write_text(work.model_dump_json(), encoding="utf-8")
    asked = []

    class Counting(_Engine):
        def generate(self, prompts, max_new_tokens):
            asked.append(([len(prompt) for prompt in prompts], max_new_tokens))
            return super().generate(prompts, max_new_tokens)

    monkeypatch.setattr(observe_module, "_load", lambda request, work: Counting())
    monkeypatch.setattr(observe_module, "_decode", lambda folder, answers: ["" for _ in answers])
    observe_module._observe_here(request, tmp_path, lambda line: None)
    assert asked[:2] == [([2, 2], 4), ([2, 3], most)]
    assert work.context_tokens == max(4, 2 + 4, 3 + most) + 1


class _Engine(Engine):
    """An engine that knows nothing: uniform predictions and one-token answers."""

    rounding = "computed in fewer bits"

    def log_prob_blocks(self, ids, positions):
        import numpy as np

        yield np.full((len(positions), 300), -np.log(300), dtype=np.float32)

    def generate(self, prompts, max_new_tokens):
        return [Generation(ids=(1,), stopped=True, seconds=0.5) for _ in prompts]

    def close(self):
        pass


def _unread_pipe():
    """The number of a descriptor that the observing process may write its progress into."""
    return str(os.open(os.devnull, os.O_WRONLY))


@pytest.mark.parametrize(("cuda", "on_device"), [(True, 7000), (False, 0), (None, 0)])
def test_peak_memory_adds_what_torch_held_on_a_device(tmp_path, monkeypatch, cuda, on_device):
    request = _request(tmp_path, engine="hf", path=tmp_path)
    (tmp_path / "request.json").write_text(request.model_dump_json(), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["observe", str(tmp_path / "request.json"), str(tmp_path), _unread_pipe()])
    monkeypatch.setattr(observe_module, "_load", lambda request, work: _Engine())
    monkeypatch.setattr(observe_module, "_decode", lambda folder, answers: ["" for _ in answers])
    monkeypatch.setattr("export.hardware.peak_memory_bytes", lambda: 100)
    device = SimpleNamespace(is_available=lambda: cuda, max_memory_allocated=lambda: 7000)
    if cuda is None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=device))
    assert main() == 0
    seen = Observed(folder=tmp_path, subject="the subject").read()
    assert seen.peak_memory_bytes == 100 + on_device
    assert seen.rounding == "computed in fewer bits"
    assert seen.tokens_per_second == (2.0, 2.0)
