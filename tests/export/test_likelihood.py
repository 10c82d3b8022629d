"""Log-probabilities of options, against a model whose every prediction is known."""

import math

import numpy as np
import pytest

from export.engines import Engine
from export.likelihood import option_log_probs

VOCABULARY = 12


class _Engine(Engine):
    """Predicts by the ids before: a seeded distribution for each sequence. Counts its runs."""

    def __init__(self):
        self.runs = []

    def log_prob_blocks(self, ids, positions):
        self.runs.append(tuple(ids))
        for position in positions:  # blocks of one, in one buffer that is overwritten, as llama.cpp's is
            self._buffer = getattr(self, "_buffer", np.empty((1, VOCABULARY)))
            self._buffer[:] = self.predicted(ids[:position])
            yield self._buffer

    @staticmethod
    def predicted(before):
        logits = np.random.default_rng(before).normal(size=VOCABULARY)
        return logits - np.log(np.exp(logits).sum())


def _by_hand(prompt, option):
    return sum(_Engine.predicted((*prompt, *option[:n]))[token] for n, token in enumerate(option))


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        (((5, 9),), 1),
        (((5, 9), (6, 9)), 2),
        (((5, 9), (5, 6, 9), (5, 6, 7, 9)), 1),  # one run shows what the shorter ones need
        (((5, 6, 9), (5, 7, 9), (8, 9)), 3),
        (((5,), (6,), (7,)), 1),  # all are read off one prediction
        (((5, 9), (5, 9)), 1),
        ((), 0),
    ],
)
def test_an_options_log_probability_is_the_sum_over_its_tokens(options, runs):
    engine, prompt = _Engine(), (1, 2, 3)
    found = option_log_probs(engine, prompt, options)
    assert found == pytest.approx([_by_hand(prompt, option) for option in options])
    assert len(engine.runs) == runs


def test_a_broken_prediction_is_no_number_and_no_crash():
    class _Broken(_Engine):
        @staticmethod
        def predicted(before):
            return np.full(VOCABULARY, np.nan)

    (found,) = option_log_probs(_Broken(), (1,), ((5, 9),))
    assert math.isnan(found)
