"""What fits, what binds, and what would do: a model of round numbers on a board of round numbers."""

import pytest

from export.device.budget import Limits, Model, contexts_to_try, fit
from export.device.cache import CacheShape
from export.device.memory import ContextNeeds
from export.device.profile import CACHE_TYPES, Figure
from export.device.sizes import PlannedFile, PlannedTensor
from export.device.speed import ModelShape
from tests.export.test_device_memory import device

MB = 1_000_000
SIZES = {"large": 400 * MB, "middle": 200 * MB, "small": 100 * MB}
CONTEXTS = contexts_to_try(4096)
# 100 kB of cache a token in f16, 10 MB of vocabulary, 20 MB to compute in, 70 MB of program
SHAPE = ModelShape(layers=1, query_values=1, cache=CacheShape(layers=1, values_per_token=50_000))


def planned(file_type):
    tensor = PlannedTensor(
        name="token_embd.weight", stored_as="q8_0", weights=1000, row=10, size_bytes=SIZES[file_type]
    )
    return PlannedFile(file_type=file_type, size_bytes=SIZES[file_type], header_bytes=0, tensors=(tensor,))


def board(usable, rate=1e9):
    return device(
        memory_bytes=Figure(value=1e12, source="a test"),
        usable_memory_bytes=Figure(value=usable, source="a test"),
        decode_bytes_per_second=Figure(value=rate, source="a test"),
        runtime_bytes=Figure(value=70 * MB, source="a test"),
        decode_error_share=0.2,
    )


def found(usable, *, context=4096, least=None, types=("large", "middle"), caches=("f16",), others=SIZES):
    needs = {
        tokens: ContextNeeds(
            context_tokens=tokens,
            vocabulary_bytes=10 * MB,
            reserved_bytes=dict.fromkeys(CACHE_TYPES, 20 * MB),
        )
        for tokens in CONTEXTS
    }
    limits = Limits(context_tokens=context, min_tokens_per_second=least)
    model = Model(SHAPE, planned, needs)
    return fit(model, board(usable), limits, types=types, caches=caches, other_types=others)


def test_a_file_fits_may_fit_or_does_not_by_the_error_of_the_prediction():
    # large: 400 + 100 + 409.6 MB of cache
    assert found(1_001 * MB).candidates[0].memory_verdict == "fits"
    assert found(1_000 * MB).candidates[0].memory_verdict == "may"
    assert found(819 * MB).candidates[0].memory_verdict == "may"
    assert found(818 * MB).candidates[0].memory_verdict == "does not"
    assert found(818 * MB).verdict == "fits", "the middle file does"
    assert found(1_000 * MB).ways == found(1_000 * MB).binding == ()


def test_a_smaller_cache_can_make_a_file_fit():
    result = found(1_000 * MB, types=("large",), caches=CACHE_TYPES)
    assert [candidate.verdict for candidate in result.candidates] == ["may", "fits", "fits"]


def test_memory_binds_and_what_would_do_is_named():
    result = found(500 * MB)
    assert (result.verdict, result.binding) == ("does not", ("memory",))
    ways = {way.change: way for way in result.ways}
    # the middle file takes 300 MB and its cache: 102.4 MB of 1,024 tokens, and a tenth for the error
    assert (ways["context"].value, ways["context"].file_type) == (1024, "middle")
    assert ways["memory"].value == pytest.approx((200 + 100 + 409.6) * MB * 1.1)
    assert "tokens per second" not in ways
    assert "file type" not in ways, "the small file with 4,096 tokens takes 609.6 MB"


def test_another_file_type_that_would_fit_is_named():
    result = found(680 * MB, types=("large",), others=SIZES)
    assert [(way.change, way.file_type) for way in result.ways if way.change == "file type"] == [("file type", "small")]


def test_speed_binds_and_the_speed_that_can_be_had_is_named():
    result = found(2_000 * MB, least=10, context=1024)
    # middle: 200 MB and 102.4 MB of cache at 1e9 bytes a second: 3.3 tokens, a fifth less for certain
    assert (result.verdict, result.binding) == ("does not", ("tokens per second",))
    ways = {way.change: way for way in result.ways}
    assert ways["tokens per second"].value == pytest.approx(1e3 / 302.4 * 0.8, rel=1e-4)
    assert ways["tokens per second"].file_type == "middle"
    assert "memory" not in ways


def test_both_bind_where_what_fits_is_too_slow_and_what_is_fast_does_not_fit():
    result = found(500 * MB, least=10)
    assert result.binding == ("memory", "tokens per second")
    assert "memory" not in {way.change for way in result.ways}, "more memory alone would not do"


def test_speed_within_its_error_is_left_open():
    # large with 1,024 tokens: 502.4 MB, 1.99 tokens a second within a fifth
    result = found(2_000 * MB, least=2.2, context=1024, types=("large",))
    assert (result.candidates[0].speed_verdict, result.verdict) == ("may", "may")


def test_contexts_are_halved_in_steps_of_the_cache():
    assert contexts_to_try(4096) == [4096, 2048, 1024, 512, 256]
    assert contexts_to_try(1000) == [1000, 256]
    assert contexts_to_try(100) == [100]
