"""Stored predictions give the divergence that torch computes on the full distributions."""

import numpy as np
import pytest
import torch

from export import reference as reference_module
from export.reference import Reference, writing_reference


def _log_probs(seed, tokens, vocabulary, spread=3.0):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(scale=spread, size=(tokens, vocabulary)))
    return torch.log_softmax(logits, dim=-1)


def _stored(path, *blocks):
    tokens = sum(len(block) for block in blocks)
    with writing_reference(path, tokens=tokens, vocabulary_size=blocks[0].shape[1]) as writer:
        for block in blocks:
            writer.add(block.numpy().astype(np.float32))
    return Reference(path)


def test_with_the_whole_vocabulary_stored_kl_is_torchs(tmp_path):
    p, q = _log_probs(1, 7, 300), _log_probs(2, 7, 300)
    stored = _stored(tmp_path / "reference.npy", _log_probs(3, 2, 300), p)
    kl, same = stored.compare(2, q.numpy().astype(np.float32))
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
    assert kl == pytest.approx(expected.numpy(), rel=1e-4)
    assert same.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


def test_with_a_tail_kl_is_a_close_lower_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_module, "TOP_K", 512)
    p = _log_probs(1, 9, 5000, spread=4.0)
    q = torch.log_softmax(p + 0.3 * _log_probs(2, 9, 5000, spread=1.0), dim=-1)
    stored = _stored(tmp_path / "reference.npy", p)
    kl, _ = stored.compare(0, q.numpy().astype(np.float32))
    full = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1).numpy()
    assert stored.top_k == 512
    assert 0 < stored.tail_mass() < 0.2
    assert (kl <= full * (1 + 1e-3)).all()
    assert kl.mean() > 0.85 * full.mean()


def test_the_same_model_diverges_by_nothing(tmp_path):
    p = _log_probs(1, 5, 4000)
    kl, same = _stored(tmp_path / "reference.npy", p).compare(0, p.numpy().astype(np.float32))
    assert kl.max() < 1e-6
    assert same.all()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_broken_models_divergence_is_not_finite(tmp_path, bad):
    p = _log_probs(1, 3, 50)
    broken = p.numpy().astype(np.float32)
    broken[1] = bad
    kl, _ = _stored(tmp_path / "reference.npy", p).compare(0, broken)
    assert np.isfinite(kl).tolist() == [True, False, True]


def test_tokens_that_the_reference_rules_out_add_nothing(tmp_path):
    p = torch.log_softmax(torch.tensor([[1.0, 2.0, -torch.inf]]), dim=-1)
    kl, _ = _stored(tmp_path / "reference.npy", p).compare(0, p.numpy().astype(np.float32))
    assert kl.tolist() == [0.0]


def test_blocks_are_compared_where_they_lie(tmp_path):
    p, q = _log_probs(1, 11, 300), _log_probs(2, 11, 300).numpy().astype(np.float32)
    stored = _stored(tmp_path / "reference.npy", p[:4], p[4:])
    whole = stored.compare(0, q)
    parts = [stored.compare(start, q[start : start + 3]) for start in range(0, 11, 3)]
    assert np.concatenate([part.kl for part in parts]).tolist() == whole.kl.tolist()
    assert np.concatenate([part.same_top for part in parts]).tolist() == whole.same_top.tolist()


def test_a_reference_with_too_few_tokens_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="2 scored tokens were given for a reference of 3"),
        writing_reference(tmp_path / "reference.npy", tokens=3, vocabulary_size=50) as writer,
    ):
        writer.add(_log_probs(1, 2, 50).numpy().astype(np.float32))


def test_of_equally_likely_tokens_the_first_is_the_top_one_as_for_every_engine(tmp_path):
    p = torch.log_softmax(torch.tensor([[0.0, 3.0, 1.0, 3.0, 3.0] + [0.0] * 400]), dim=-1)
    _, same = _stored(tmp_path / "reference.npy", p).compare(0, p.numpy().astype(np.float32))
    assert same.tolist() == [True]
