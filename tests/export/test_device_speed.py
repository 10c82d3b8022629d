"""Speed as it is told, worked by hand."""

import pytest

from export.device.cache import CacheShape
from export.device.profile import CacheRate, Figure, TypeRate
from export.device.sizes import PlannedTensor
from export.device.speed import ModelShape, multiplied, predicted_speed, prompt_seconds, token_seconds
from tests.export.test_device_memory import device


def tensor(name, stored_as, rows, row, size_bytes):
    return PlannedTensor(name=name, stored_as=stored_as, weights=rows * row, row=row, size_bytes=size_bytes)


EMBEDDING = tensor("token_embd.weight", "q8_0", 1000, 64, 4_000_000)
OUTPUT = tensor("output.weight", "q8_0", 1000, 64, 2_000_000)
BLOCK = tensor("blk.0.ffn_up.weight", "q4_0", 1000, 64, 8_000_000)
# 2 layers of 64 keys and 64 values: 512 bytes of a token in f16
SHAPE = ModelShape(layers=2, query_values=256, cache=CacheShape(layers=2, values_per_token=256))
# 1e9 bytes a second, 1e9 operations a second
BOARD = device(token_seconds=Figure(value=1e-4, source="a test"))


def test_a_token_reads_every_weight_and_the_whole_cache_once():
    untied = token_seconds([EMBEDDING, OUTPUT, BLOCK], SHAPE, BOARD, cache_type="f16", cached_tokens=1000)
    # 10 MB of weights without the embedding, 512 kB of cache, 2 layers
    assert untied == pytest.approx(0.010 + 0.000512 + 0.0002)
    tied = token_seconds([EMBEDDING, BLOCK], SHAPE, BOARD, cache_type="q8_0", cached_tokens=1000)
    assert tied == pytest.approx(0.012 + 0.000512 * 34 / 64 + 0.0002)


def test_types_that_were_measured_have_their_own_rates():
    rates = {"q4_0": TypeRate(decode_bytes_per_second=2e9, prefill_flops_per_second=4e9)}
    board = device(rates=rates, token_seconds=Figure(value=1e-9, source="a test"))
    seconds = token_seconds([EMBEDDING, BLOCK], SHAPE, board, cache_type="f16", cached_tokens=0)
    assert seconds == pytest.approx(0.004 + 0.004, rel=1e-5)
    # 2 x 64,000 weights x 100 tokens at 4e9, the output matrix for one token at 1e9, attention at 1e9
    attention = 2 * 2 * 2 * 256 * 100 * 50 / 1e9
    told = prompt_seconds([EMBEDDING, BLOCK], SHAPE, board, cache_type="f16", prompt_tokens=100)
    assert told == pytest.approx(2 * 64_000 * 100 / 4e9 + 2 * 64_000 / 1e9 + attention, rel=1e-4)


def test_attention_that_was_measured_is_counted_by_heads_and_not_by_bytes():
    rates = {"q8_0": CacheRate(token_values_per_second=1e8, prompt_values_per_second=1e9)}
    board = device(cache_rates=rates, token_seconds=Figure(value=1e-9, source="a test"))
    seconds = token_seconds([EMBEDDING, BLOCK], SHAPE, board, cache_type="q8_0", cached_tokens=1000)
    # keys and values of 2 layers, 256 for each, of 1,000 tokens
    assert seconds == pytest.approx(0.012 + 2 * 2 * 256 * 1000 / 1e8, rel=1e-5)


def test_an_untied_embedding_is_looked_up_and_not_multiplied():
    assert multiplied([EMBEDDING, OUTPUT, BLOCK]) == (OUTPUT, BLOCK)
    assert multiplied([EMBEDDING, BLOCK]) == (EMBEDDING, BLOCK)


def test_a_speed_carries_the_devices_errors():
    told = predicted_speed([EMBEDDING, BLOCK], SHAPE, BOARD, cache_type="f16", cached_tokens=1000, prompt_tokens=100)
    assert told.tokens_per_second == pytest.approx(1 / (0.012 + 0.000512 + 0.0002))
    assert (told.tokens_error_share, told.first_token_error_share) == (0.25, 0.5)


def test_of_experts_only_those_are_read_that_a_token_is_sent_to():
    """By hand: a quarter of the experts' bytes and operations, as a dense layer of a quarter of the rows has."""
    experts = tensor("blk.0.ffn_up_exps.weight", "q4_0", 4000, 64, 32_000_000)
    sparse = SHAPE.model_copy(update={"expert_share": 0.25})

    def told(weights, shape):
        token = token_seconds([EMBEDDING, weights], shape, BOARD, cache_type="f16", cached_tokens=1000)
        return token, prompt_seconds([EMBEDDING, weights], shape, BOARD, cache_type="f16", prompt_tokens=100)

    assert told(experts, sparse) == pytest.approx(told(BLOCK, SHAPE))
    assert told(experts, SHAPE)[0] > 2 * told(BLOCK, SHAPE)[0]
