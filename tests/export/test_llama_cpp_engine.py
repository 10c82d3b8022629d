"""The llama.cpp engine against transformers, and against itself run afresh."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.artifacts import ModelFolder
from export.engines.llama_cpp import BATCH_LOGITS, BATCH_TOKENS, LlamaCppEngine, _log_softmax, load
from export.engines.llama_library import model_parameters, open_vocabulary
from export.errors import EngineError
from export.formats import ExportRows
from export.formats.gguf import Gguf
from export.likelihood import option_log_probs
from tests.export.tiny_models import ARCHITECTURES, build

# Two implementations may pick different tokens where the best two logits are closer than their rounding.
CLEAR_GAP = 0.1


class Case(NamedTuple):
    model: ModelFolder
    path: Path
    vocabulary_size: int

    def load(self) -> LlamaCppEngine:
        return load(self.path, vocabulary_size=self.vocabulary_size, context_tokens=512, threads=1)


def make(root: Path, model: ModelFolder) -> Case:
    root.mkdir(exist_ok=True)
    result = Gguf().quantize("gguf-f16", model, ExportRows(), root, {}.__getitem__)
    return Case(model, result.path, len(AutoTokenizer.from_pretrained(model.folder)))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    return make(root, build(root / "model", request.param, tied=False, hidden_size=256))


@pytest.fixture
def engine(case: Case) -> Iterator[LlamaCppEngine]:
    engine = case.load()
    yield engine
    engine.close()


def random_ids(case: Case, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, case.vocabulary_size, count).tolist()


# --- log_probs


def test_options_are_as_likely_as_their_tokens_one_by_one(engine: LlamaCppEngine, case: Case) -> None:
    prompt, (one, two, three, end) = random_ids(case, BATCH_TOKENS + 3), random_ids(case, 4, seed=1)
    options = [(one, end), (one, two, end), (three, end), (one, two, three, end)]
    expected = []
    for option in options:
        ids = [*prompt, *option]
        rows = [engine.log_probs(ids, [place])[0] for place in range(len(prompt), len(ids))]
        expected.append(sum(float(row[token]) for row, token in zip(rows, option, strict=True)))
    assert option_log_probs(engine, tuple(prompt), options) == pytest.approx(expected, abs=2e-2)


def test_what_stands_behind_a_prompt_is_as_likely_as_in_one_sequence(engine: LlamaCppEngine, case: Case) -> None:
    continuations = [[5], [5, 9, 12], [6, 9], [5, 9, 12, 3, 3], [5]]
    for prompt in (random_ids(case, 1), random_ids(case, BATCH_TOKENS + 3)):
        found = list(engine.log_probs_behind(prompt, continuations))
        for rows, continuation in zip(found, continuations, strict=True):
            ids = [*prompt, *continuation]
            whole = np.concatenate([engine.log_probs(ids, [place]) for place in range(len(prompt), len(ids))])
            assert rows.shape == whole.shape
            np.testing.assert_allclose(rows, whole, atol=2e-2)


def test_a_prompt_is_run_once_where_its_cache_can_be_cut_back(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt, run = case.load(), random_ids(case, 40), []
    plain = engine._decode

    def counted(ids: Sequence[int], *rest: Any) -> Iterator[NDArray[np.float32]]:
        run.append(len(ids))
        return plain(ids, *rest)

    monkeypatch.setattr(engine, "_decode", counted)
    list(engine.log_probs_behind(prompt, [[5, 9, 12], [6, 9]]))
    engine.close()
    assert run == ([40, 2, 40, 1] if "qwen3_5" in case.model.base else [40, 2, 1])


@pytest.mark.parametrize(
    ("said", "used"), [(b"CPU : AVX512 = 1 | AMX_INT8 = 1 | ", False), (b"CPU : NEON = 1 | ", True)]
)
def test_a_build_for_amx_does_without_it(said: bytes, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: said)
    assert model_parameters().use_extra_bufts is used


def test_a_prompt_of_no_tokens_is_refused(engine: LlamaCppEngine) -> None:
    with pytest.raises(EngineError, match="nothing predicts the first token"):
        list(engine.log_probs_behind([], [[5]]))


def test_rows_are_the_positions_asked_for_across_batches(engine: LlamaCppEngine, case: Case) -> None:
    ids = random_ids(case, 2 * BATCH_TOKENS + 30)
    positions = [1, 5, BATCH_TOKENS, BATCH_TOKENS + 1, len(ids) - 1]
    network = AutoModelForCausalLM.from_pretrained(case.model.folder, dtype=torch.float32)
    with torch.no_grad():
        logits = network(torch.tensor([ids])).logits[0, :, : case.vocabulary_size]
    expected = logits.log_softmax(-1).numpy()[[position - 1 for position in positions]]
    found = engine.log_probs(ids, positions)
    assert found.shape == (len(positions), case.vocabulary_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.1)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, atol=1e-5)


def test_log_probs_do_not_depend_on_what_ran_before(engine: LlamaCppEngine, case: Case) -> None:
    ids = random_ids(case, 150)
    first = engine.log_probs(ids, range(1, 150))
    engine.generate([ids[:40]], 5)
    engine.log_probs(random_ids(case, 60, seed=1), [3])
    np.testing.assert_array_equal(engine.log_probs(ids, range(1, 150)), first)


def shared_log_probs(engine: LlamaCppEngine, ids: list[int], shared_tokens: int) -> NDArray[np.float32]:
    blocks = engine.log_prob_blocks(ids, [70, 75, 79], shared_tokens)
    return np.concatenate([block.copy() for block in blocks])


def test_rows_that_begin_alike_are_as_likely_as_each_by_itself(engine: LlamaCppEngine, case: Case) -> None:
    beginning = random_ids(case, 60)
    rows = [beginning + random_ids(case, 20, seed) for seed in (1, 2, 3)]
    alone = [engine.log_probs(row, [70, 75, 79]) for row in rows]
    together = [shared_log_probs(engine, row, 60) for row in rows]
    np.testing.assert_allclose(together, alone, atol=0.02)
    for disturb in (
        lambda: engine.generate([beginning[:30]], 5),
        lambda: engine.generate([rows[2]], 5),
        lambda: engine.log_probs(rows[0], [3]),
        lambda: shared_log_probs(engine, rows[1], 50),
    ):
        disturb()
        np.testing.assert_array_equal(shared_log_probs(engine, rows[0], 60), together[0])
    # a beginning that reaches beyond the first position is cut back to it
    np.testing.assert_array_equal(shared_log_probs(engine, rows[0], 80), shared_log_probs(engine, rows[0], 69))


def test_a_shared_beginning_is_run_once(engine: LlamaCppEngine, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    plain = engine._fill_batch

    def counting(chunk: Sequence[int], start: int, wanted: frozenset[int]) -> int:
        ran.append(len(chunk))
        return plain(chunk, start, wanted)

    monkeypatch.setattr(engine, "_fill_batch", counting)
    beginning = random_ids(case, 60)
    for seed in (1, 2, 3):
        shared_log_probs(engine, beginning + random_ids(case, 20, seed), 60)
    assert ran == ([60, 19] * 3 if "qwen3_5" in case.model.base else [60, 19, 19, 19])


def test_a_long_row_comes_in_blocks_that_are_the_whole(engine: LlamaCppEngine, case: Case) -> None:
    ids = random_ids(case, 2 * BATCH_LOGITS + 30)
    blocks = [block.copy() for block in engine.log_prob_blocks(ids, range(20, len(ids)))]
    assert [len(block) for block in blocks] == [BATCH_LOGITS, BATCH_LOGITS, 10]
    np.testing.assert_array_equal(np.concatenate(blocks), engine.log_probs(ids, range(20, len(ids))))


def test_no_positions_give_no_rows(engine: LlamaCppEngine, case: Case) -> None:
    assert engine.log_probs([1, 2, 3], []).shape == (0, case.vocabulary_size)


def test_values_that_are_not_finite_pass_through_in_silence() -> None:
    assert np.isnan(_log_softmax(np.array([1.0, np.nan], dtype=np.float32))).all()
    assert np.isnan(_log_softmax(np.array([1.0, np.inf], dtype=np.float32))).any()
    np.testing.assert_allclose(_log_softmax(np.array([1e4, 1e4], dtype=np.float32)), np.log(0.5), rtol=1e-6)


# --- generate


def test_greedy_answers_are_transformers(engine: LlamaCppEngine, case: Case) -> None:
    """Every id with a clear lead over the second is transformers' choice too, given the same ids before it."""
    network = AutoModelForCausalLM.from_pretrained(case.model.folder, dtype=torch.float32)
    prompts = [random_ids(case, 10 + seed, seed) for seed in range(6)]
    clear = 0
    for prompt, answer in zip(prompts, engine.generate(prompts, 12), strict=True):
        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *answer.ids]])).logits[0, len(prompt) - 1 : -1]
        best = logits[:, : case.vocabulary_size].topk(2)
        for chosen, ids, values in zip(answer.ids, best.indices, best.values, strict=True):
            if values[0] - values[1] > CLEAR_GAP:
                clear += 1
                assert chosen == ids[0]
        assert answer.stopped == (len(answer.ids) < 12)
        assert answer.seconds > 0
    assert clear > 30


def test_sharing_a_prompts_beginning_changes_no_answer(engine: LlamaCppEngine, case: Case) -> None:
    shared = random_ids(case, 60)
    prompts = [shared + random_ids(case, 8, 1), shared + random_ids(case, 3, 2), shared[:20], shared[:20], shared]
    together = engine.generate(prompts, 10)
    for prompt, answer in zip(prompts, together, strict=True):
        fresh = case.load()
        (alone,) = fresh.generate([prompt], 10)
        fresh.close()
        assert (answer.ids, answer.stopped) == (alone.ids, alone.stopped)


def test_only_what_differs_is_run_again(engine: LlamaCppEngine, case: Case) -> None:
    """The cache is kept where layers allow; a recurrent state cannot be wound back, so there it starts anew."""
    first, second = random_ids(case, 60), [*random_ids(case, 50), 1, 2, 3]
    engine.generate([first], 4)
    engine._forget(keep=50)
    kept = len(engine._in_cache)
    assert kept == (0 if "qwen3_5" in case.model.base else 50)
    assert engine.generate([second], 4)[0].ids


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(tmp_path: Path) -> None:
    """Two rows of the head are exchanged, so that the third id of an answer becomes the turn-end token."""
    model = build(tmp_path / "model", "qwen2", tied=False, hidden_size=256)
    before = make(tmp_path / "before", model)
    prompt = random_ids(before, 12)
    engine = before.load()
    (answer,) = engine.generate([prompt], 6)
    engine.close()
    stop = AutoTokenizer.from_pretrained(model.folder).eos_token_id
    third = answer.ids[2]
    assert third not in answer.ids[:2] and stop not in answer.ids and not answer.stopped

    weights = load_file(model.folder / "model.safetensors")
    weights["lm_head.weight"][[third, stop]] = weights["lm_head.weight"][[stop, third]]
    save_file(weights, model.folder / "model.safetensors", metadata={"format": "pt"})
    engine = make(tmp_path / "after", model).load()
    (ended,) = engine.generate([prompt], 6)
    engine.close()
    assert ended.stopped
    assert ended.ids == answer.ids[:2]


# --- the file's own tokenizer


def test_engine_tokenizes_as_the_folder_does(engine: LlamaCppEngine, case: Case) -> None:
    text = "<|im_start|>user\n打开灯 please, 12345!<|im_end|>\n"
    tokenizer = AutoTokenizer.from_pretrained(case.model.folder)
    assert engine.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert engine.vocabulary.chat_template() == tokenizer.chat_template


def test_specials_can_be_read_as_plain_text(case: Case) -> None:
    with open_vocabulary(case.path) as vocabulary:
        assert len(vocabulary.tokenize("<|im_end|>")) == 1
        assert len(vocabulary.tokenize("<|im_end|>", parse_special=False)) > 1
        assert vocabulary.tokenize("") == []


def test_llama_cpp_does_not_compose_accents(case: Case) -> None:
    """A known difference: Qwen's tokenizers apply NFC first, llama.cpp does not. This test ends when it learns to."""
    tokenizer = AutoTokenizer.from_pretrained(case.model.folder)
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    with open_vocabulary(case.path) as vocabulary:
        assert vocabulary.tokenize(composed) == tokenizer(composed)["input_ids"] == tokenizer(decomposed)["input_ids"]
        assert vocabulary.tokenize(decomposed) != tokenizer(decomposed)["input_ids"]


# --- what goes wrong


def test_a_file_cut_short_is_refused_with_the_reason(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(case.path.read_bytes()[: case.path.stat().st_size // 2])
    with pytest.raises(EngineError, match="not within the file bounds"):
        load(path, vocabulary_size=None, context_tokens=64, threads=1)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not a file"):
        load(tmp_path / "missing.gguf", vocabulary_size=None, context_tokens=64, threads=1)
    (tmp_path / "text.gguf").write_text("no model at all", encoding="utf-8")
    with pytest.raises(EngineError, match="magic"):
        load(tmp_path / "text.gguf", vocabulary_size=None, context_tokens=64, threads=1)


def test_impossible_requests_are_refused(engine: LlamaCppEngine, case: Case) -> None:
    with pytest.raises(EngineError, match="do not fit the context of 512"):
        engine.log_probs([1] * 600, [599])
    with pytest.raises(EngineError, match="do not fit the context"):
        engine.generate([[1] * 510], 20)
    with pytest.raises(EngineError, match="nothing predicts the first token"):
        engine.log_probs([1, 2, 3], [0])
    with pytest.raises(EngineError, match="outside the file's vocabulary"):
        engine.log_probs([1, 5000, 3], [2])
    with pytest.raises(EngineError, match="no tokens"):
        engine.generate([[]], 3)
    with pytest.raises(EngineError, match="fewer than the tokenizer's"):
        load(case.path, vocabulary_size=100_000, context_tokens=64, threads=1)
    assert engine.generate([[1, 2, 3]], 3)[0].ids, "an error leaves the engine usable"


def test_nothing_is_printed(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    engine = case.load()
    engine.generate([[1, 2, 3]], 2)
    engine.close()
    engine.close()
    assert capfd.readouterr() == ("", "")
