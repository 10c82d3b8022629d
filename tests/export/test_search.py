"""The search for types: bytes, what is measured, what is kept, and a whole search on a tiny model."""

import json
import math
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from transformers import AutoTokenizer

from export.artifacts import sha256_of_file
from export.chat import Encoded
from export.engines.llama_cpp import load
from export.errors import ExportError
from export.formats import ExportRows
from export.formats._gguf_quantize import quantize_file
from export.formats.gguf import Gguf
from export.importance import ChannelImportance, Importances, gather
from export.readers.gguf import read_header, read_tensors
from export.search import Search, search, searching, sensitivity, trials
from export.search.ladder import quantized_tensors
from export.search.sensitivity import cost_per_error, groups_of, kind_of, output_error
from export.search.trials import Trials
from export.search.type_files import TypeFiles, assemble
from tests.export.tiny_models import build

TYPES = ("q8_0", "q5_0", "q4_0", "iq4_nl", "q3_k")


class Made(NamedTuple):
    source: Path
    importances: Importances
    vocabulary_size: int


def rows(seed, count, vocabulary_size):
    draw = np.random.default_rng(seed)
    return [
        Encoded(ids=tuple(draw.integers(0, vocabulary_size, 40).tolist()), scored=(False,) * 20 + (True,) * 20)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model whose rows of 224 do not divide by 256, and those of 512 do."""
    root = tmp_path_factory.mktemp("made")
    model = build(root / "model", "qwen2", tied=True, hidden_size=224)
    (root / "out").mkdir()
    source = Gguf(types=()).quantize("gguf-f16", model, ExportRows(), root / "out", {}.__getitem__).path
    size = len(AutoTokenizer.from_pretrained(model.folder))
    return Made(source, gather(model.folder, [row.ids for row in rows(0, 4, size)]), size)


@pytest.fixture
def files(made, tmp_path):
    return TypeFiles(made.source, quantized_tensors(made.source), made.importances, quantize_file, tmp_path)


def drawn_mix(files, seed):
    draw = random.Random(seed)
    return {name: draw.choice([t for t in TYPES if files.fits(name, t)]) for name in files.names}


# --- bytes


@pytest.mark.parametrize("seed", range(3))
def test_what_is_put_together_is_what_the_quantizer_writes(made, files, tmp_path, seed):
    types = drawn_mix(files, seed)
    files.assemble(types, tmp_path / "mix.gguf")
    quantize_file(made.source, "q8_0", tmp_path / "whole.gguf", made.importances, types)
    assert (tmp_path / "mix.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert files.size_bytes(types) == (tmp_path / "mix.gguf").stat().st_size


def test_a_file_that_is_put_together_runs(made, files, tmp_path):
    files.assemble(drawn_mix(files, 1), tmp_path / "mix.gguf")
    engine = load(tmp_path / "mix.gguf", vocabulary_size=None, context_tokens=64, threads=1)
    assert np.isfinite(engine.log_probs([1, 2, 3], [1, 2])).all()
    engine.close()


def test_a_file_put_together_of_its_own_tensors_is_itself(made, tmp_path):
    own = {tensor.name: tensor for tensor in read_tensors(made.source)}
    assemble(made.source, own, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == made.source.read_bytes()


def test_the_header_ends_where_the_first_tensor_begins(made):
    header = read_header(made.source)
    tensors = read_tensors(made.source)
    assert len(header.content) == min(tensor.offset for tensor in tensors)
    assert list(header.types_at) == [tensor.name for tensor in tensors]


def test_a_type_is_quantized_once_and_a_file_that_is_half_written_is_not_taken(made, files, tmp_path):
    calls = []

    def counting(source, file_type, target, importances, types):
        calls.append(target.name)
        return quantize_file(source, file_type, target, importances, types)

    (tmp_path / "q4_0.partial").write_bytes(b"GGUF")
    for _ in range(2):
        again = TypeFiles(made.source, files.names, made.importances, counting, tmp_path)
        again.assemble(dict.fromkeys(files.names, "q4_0"), tmp_path / "mix.gguf")
    assert sorted(calls) == ["q4_0.partial", "q8_0.partial"]


# --- sensitivity


def test_groups_hold_every_tensor_once():
    names = [f"blk.{layer}.{kind}.weight" for layer in range(7) for kind in ("attn_q", "ffn_down")]
    groups = groups_of([*names, "token_embd.weight"], 3)
    assert sorted(name for members in groups.values() for name in members) == sorted([*names, "token_embd.weight"])
    assert groups["attn_q 1/3"] == tuple(f"blk.{layer}.attn_q.weight" for layer in (0, 1, 2))
    assert groups["attn_q 3/3"] == tuple(f"blk.{layer}.attn_q.weight" for layer in (5, 6))
    assert groups["token_embd"] == ("token_embd.weight",)
    assert kind_of("blk.12.ffn_down.weight") == "ffn_down"


def test_an_error_is_that_of_a_layers_outputs(made, files):
    """Against the layer run on inputs whose mean squares are the importance: independent, so that errors add up."""
    name = "blk.0.ffn_up.weight"
    plain, rounded = files.plain[name], files.tensor(name, "q4_0")
    from export.readers.gguf import rows_of

    difference = rows_of(plain, 0, plain.rows) - rows_of(rounded, 0, plain.rows)
    squares = np.random.default_rng(0).uniform(0.1, 2, plain.row).astype(np.float32)
    inputs = np.random.default_rng(1).normal(size=(20_000, plain.row)) * np.sqrt(squares)
    expected = ((inputs @ difference.T) ** 2).sum(1).mean()
    known = Importances({name: ChannelImportance(1, squares)}, ("x",))
    assert output_error(plain, rounded, known) == pytest.approx(expected, rel=0.03)


def test_an_error_told_from_some_rows_is_nearly_that_of_all(files, made, monkeypatch):
    name = "blk.0.ffn_up.weight"
    plain, rounded = files.plain[name], files.tensor(name, "q4_0")
    whole = output_error(plain, rounded, made.importances)
    monkeypatch.setattr(sensitivity, "_SPANS", 4)
    monkeypatch.setattr(sensitivity, "_ROWS_IN_A_SPAN", 16)
    assert plain.rows >= 4 * 4 * 16
    some = output_error(plain, rounded, made.importances)
    assert some != whole
    assert some == pytest.approx(whole, rel=0.15)


def test_a_group_costs_what_its_demotion_added_over_its_error():
    costs = cost_per_error({"a": 0.4, "b": 0.0, "c": -0.001}, {"a": 4.0, "b": 2.0, "c": 0.0})
    assert costs["a"] == pytest.approx(0.1)
    assert costs["b"] == pytest.approx(0.4e-3 / 2)  # not told from noise: a thousandth of the costliest
    assert costs["c"] == 0


# --- trials


def trials_in(folder, made, files, said, seed=1):
    return Trials(files, made.source, rows(seed, 3, made.vocabulary_size), {"of": "test"}, folder, None, said.append)


def beginning_alike(some, count):
    return [row.model_copy(update={"ids": some[0].ids[:count] + row.ids[count:]}) for row in some]


@pytest.mark.parametrize("alike", [0, 15, 30])
def test_divergences_are_the_engines_own(made, files, tmp_path, alike):
    """Computed here from both files' whole distributions: the vocabulary is smaller than what a reference keeps."""
    types = dict.fromkeys(files.names, "q4_0")
    judges = beginning_alike(rows(1, 3, made.vocabulary_size), alike)
    found = Trials(files, made.source, judges, {}, tmp_path, None, lambda line: None).divergences(types, "all")
    files.assemble(types, tmp_path / "mix.gguf")
    for row, kl in zip(judges, found, strict=True):
        logs = []
        for path in (made.source, tmp_path / "mix.gguf"):
            engine = load(path, vocabulary_size=None, context_tokens=64, threads=2)
            logs.append(engine.log_probs(row.ids, row.scored_positions).astype(np.float64))
            engine.close()
        expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(1)
        np.testing.assert_allclose(kl, expected, rtol=1e-3, atol=1e-6)


def test_what_all_rows_begin_with_is_told():
    assert trials._shared_tokens([(1, 2, 3), (1, 2, 4, 9), (1, 2)]) == 2
    assert trials._shared_tokens([(1, 2, 3), (1, 9, 3), (1, 2, 3, 4)]) == 1
    assert trials._shared_tokens([(1, 2), (3,)]) == 0
    assert trials._shared_tokens([(1, 2, 3)]) == 3


def test_a_mix_is_measured_once_for_its_rows(made, files, tmp_path, monkeypatch):
    types, said = dict.fromkeys(files.names, "q4_0"), []
    first = trials_in(tmp_path, made, files, said).divergences(types, "all")
    assert len(said) == 1
    assert trials_in(tmp_path, made, files, said).divergences(types, "all") == first
    assert len(said) == 1
    trials_in(tmp_path, made, files, said).divergences({**types, files.names[0]: "q8_0"}, "another")
    trials_in(tmp_path, made, files, said, seed=2).divergences(types, "other rows")
    assert len(said) == 3


# --- a whole search


def settings(**changed):
    return Search(types=TYPES, file_types=("q4_0", "iq4_nl", "q3_k_m"), bands=1, presets=2, moves=3).model_copy(
        update=changed
    )


def searched(made, folder, said, bits=5.0, quantize=quantize_file, made_from=None, **changed):
    folder.mkdir(exist_ok=True)
    return search(
        made.source,
        settings(**changed),
        rows(1, 6, made.vocabulary_size),
        made.importances,
        quantize,
        folder,
        budget=lambda files: files.header_bytes() + int(bits * files.weights / 8),
        made_from=made_from or {"source": sha256_of_file(made.source)},
        vocabulary_size=None,
        say=said.append,
    )


def test_a_mix_is_found_that_keeps_the_budget_and_beats_what_llama_cpp_has(made, tmp_path):
    record = searched(made, tmp_path / "kept", [], bits=5.6)
    best = min(record.trials, key=lambda trial: trial.kl_mean)
    assert record.chosen == best.name
    assert record.size_bytes <= record.budget_bytes
    assert record.size_bytes > 0.97 * record.budget_bytes
    presets = [trial for trial in record.trials if trial.name.startswith("preset")]
    assert presets
    assert best.kl_mean <= min(trial.kl_mean for trial in presets)
    assert all(trial.predicted is not None for trial in record.trials if trial not in presets)
    quantize_file(made.source, "q4_0", tmp_path / "mix.gguf", made.importances, record.types)
    assert (tmp_path / "mix.gguf").stat().st_size == record.size_bytes


def test_where_there_is_room_for_the_largest_types_nothing_is_searched_for(made, tmp_path):
    said = []
    record = searched(made, tmp_path / "kept", said, bits=16)
    assert [trial.name for trial in record.trials] == ["the largest types"]
    assert set(record.types.values()) == {"q8_0"}
    assert (record.demoted_kl, record.promoted_kl, record.type_kl) == ({}, {}, {})
    assert "nothing to search for" in said[0]


def test_of_types_as_large_as_the_largest_the_nearest_is_taken(made, tmp_path):
    equal = ("q4_0", "iq4_nl", "q2_0")
    record = searched(made, tmp_path / "kept", [], bits=16, types=equal)
    assert len(record.trials) == 2
    again = searched(made, tmp_path / "again", [], bits=16, types=equal[::-1])
    assert again.types == record.types
    assert min(trial.kl_mean for trial in record.trials) == record.undisturbed_kl.kl_mean


def test_each_measured_divergence_has_its_error(made, tmp_path):
    record = searched(made, tmp_path / "kept", [], presets=1, moves=1)
    told = [record.undisturbed_kl, *record.trials]
    for measured in (record.demoted_kl, record.promoted_kl, record.type_kl):
        assert measured
        told += measured.values()
    assert all(one.stderr is not None and 0 < one.stderr < one.kl_mean for one in told)
    assert (record.rows, record.tokens) == (6, 120)


def test_moves_go_on_from_the_best_mix_so_far(made, tmp_path, monkeypatch):
    """Planted: a mix with more for a kind of tensors is better than all before it, and one with less is worse."""
    plain, solved = Trials.divergences, searching._Searching._solved
    asked, better, names = [], [], []

    def planted(self, types, name):
        if name.startswith("more"):
            better.append(len(asked) - 1)
            names.append(name)
            return ((9.0 - len(better) / 100,),) * 6
        return ((10.0,),) * 6 if name.startswith(("knapsack", "less")) else plain(self, types, name)

    def watched(self, factors):
        asked.append(dict(factors))
        return solved(self, factors)

    monkeypatch.setattr(Trials, "divergences", planted)
    monkeypatch.setattr(searching._Searching, "_solved", watched)
    record = searched(made, tmp_path / "kept", [], bits=5.7, presets=0, moves=40)
    assert len(better) > 1 and record.chosen == names[-1]
    best = asked[0]
    for number, factors in enumerate(asked[1:], start=1):
        assert sum(factors[kind] != best[kind] for kind in best) == 1, "a move is one change of the best so far"
        if number in better:
            best = factors


def test_a_mix_whose_divergence_is_no_number_is_never_chosen(made, tmp_path, monkeypatch):
    plain = Trials.divergences

    def planted(self, types, name):
        found = plain(self, types, name)
        return ((math.nan,),) * len(found) if name.startswith(spoiled) else found

    monkeypatch.setattr(Trials, "divergences", planted)
    spoiled = "preset"  # what is tried first, and would win a comparison with anything
    assert not searched(made, tmp_path / "kept", [], moves=0).chosen.startswith("preset")
    spoiled = ("preset", "knapsack")
    with pytest.raises(ExportError, match="no mix has a divergence that is a number"):
        searched(made, tmp_path / "kept", [], moves=0)


def test_more_bytes_are_worth_less_divergence(made, tmp_path):
    small, large = (searched(made, tmp_path / "kept", [], bits=bits, presets=0) for bits in (4.6, 6.5))
    assert large.size_bytes > small.size_bytes
    knapsack = {r.budget_bytes: next(t for t in r.trials if t.name == "knapsack").kl_mean for r in (small, large)}
    assert knapsack[large.budget_bytes] < knapsack[small.budget_bytes]


def test_an_interrupted_search_goes_on_where_it_was_and_finds_the_same(made, tmp_path):
    undisturbed = searched(made, tmp_path / "whole", [])
    said = []

    class Stopping(list):
        def append(self, line):
            super().append(line)
            if len(self) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(made, tmp_path / "cut", Stopping())
    again = searched(made, tmp_path / "cut", said)
    assert again == undisturbed
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "cut").glob("*/*.json")]
    assert len([entry for entry in kept if "kl" in entry]) == len(said) + 5
    said.clear()
    assert searched(made, tmp_path / "cut", said) == undisturbed
    assert said == []


def test_what_was_made_of_another_model_is_not_taken_for_this_ones(made, tmp_path):
    """A search that was cut short leaves files of each type, and the model is trained anew before the next."""
    seen = []

    def counting(source, file_type, target, importances, types):
        seen.append(target)
        return quantize_file(source, file_type, target, importances, types)

    def made_of(source):
        return searched(
            made, tmp_path / "kept", [], presets=0, moves=0, quantize=counting, made_from={"source": source}
        )

    record = made_of("one")
    first = len(seen)
    assert made_of("one") == record
    assert len(seen) == first > 0
    assert made_of("another") == record
    assert len(seen) == 2 * first


def test_a_target_that_cannot_be_met_names_the_least_that_can(made, tmp_path):
    with pytest.raises(ExportError, match=r"cannot be met: .* the file has [\d,]+\. Allow that many"):
        searched(made, tmp_path / "kept", [], bits=2.0)


def test_types_that_divide_no_row_are_refused(made, tmp_path):
    with pytest.raises(ExportError, match="no candidate type divides the rows of"):
        searched(made, tmp_path / "kept", [], types=("q3_k",))


def test_a_type_whose_errors_cost_more_than_they_look_is_seen_through(made, tmp_path, monkeypatch):
    """As on a base that was quantized before: the type it had then looks nearly exact, and undoes the fine-tuning."""
    honest = searched(made, tmp_path / "honest", [], bits=5.6, presets=0, moves=0)
    plain = searching.output_error

    def flattered(tensor, rounded, importances):
        return plain(tensor, rounded, importances) * (1e-3 if rounded.stored_as == "iq4_nl" else 1.0)

    monkeypatch.setattr(searching, "output_error", flattered)
    found = searched(made, tmp_path / "flattered", [], bits=5.6, presets=0, moves=0)
    assert found.types == honest.types
    assert set(found.type_kl) == set(TYPES) - {"q8_0"}


def test_a_type_that_another_beats_in_no_more_bytes_is_left_out(made, tmp_path, monkeypatch):
    """A planted one: q5_0 as a base that had it would make it, further from the model than types of fewer bits."""
    plain = Trials._measured

    def planted(self, path):
        spoiled = sum(tensor.stored_as == "q5_0" for tensor in read_tensors(path))
        return tuple(tuple(kl + 0.5 * spoiled for kl in row) for row in plain(self, path))

    monkeypatch.setattr(Trials, "_measured", planted)
    record = searched(made, tmp_path / "kept", [], bits=5.6, presets=0, moves=0)
    assert "q5_0" in record.type_kl
    assert "q5_0" not in record.types.values()
