"""The knapsack against trying everything."""

import random
from itertools import product

import pytest

from export.errors import ExportError
from export.search import knapsack
from export.search.knapsack import Option, choose


def by_trying_all(items, budget):
    fitting = [c for c in product(*items) if sum(option.size_bytes for option in c) <= budget]
    return min(sum(option.loss for option in c) for c in fitting) if fitting else None


def drawn(seed, unit, largest=12):
    draw = random.Random(seed)
    items = [
        [Option(draw.randint(1, largest) * unit, draw.random() ** 3) for _ in range(draw.randint(1, 4))]
        for _ in range(draw.randint(1, 6))
    ]
    least = sum(min(option.size_bytes for option in options) for options in items)
    most = sum(max(option.size_bytes for option in options) for options in items)
    return items, draw.randint(least, most + unit)


@pytest.mark.parametrize("unit", [1, 32, 7168])
@pytest.mark.parametrize("seed", range(40))
def test_nothing_better_is_found_by_trying_everything(seed, unit):
    items, budget = drawn(seed, unit)
    chosen = [options[number] for options, number in zip(items, choose(items, budget), strict=True)]
    assert sum(option.size_bytes for option in chosen) <= budget
    assert sum(option.loss for option in chosen) == pytest.approx(by_trying_all(items, budget))


@pytest.mark.parametrize("seed", range(20))
def test_a_coarser_unit_keeps_the_budget_and_loses_little(seed, monkeypatch):
    items, budget = drawn(seed, 1, largest=12_000)  # sizes that share no factor
    monkeypatch.setattr(knapsack, "MOST_UNITS", 25)
    chosen = [options[number] for options, number in zip(items, choose(items, budget), strict=True)]
    assert sum(option.size_bytes for option in chosen) <= budget
    room = budget - sum(min(option.size_bytes for option in options) for options in items)
    coarse = -(-room // 25) * len(items)  # what rounding up can waste
    least = sum(min(option.size_bytes for option in options) for options in items)
    within = by_trying_all(items, max(least, budget - coarse))
    assert sum(option.loss for option in chosen) <= within + 1e-12


def test_the_smallest_do_not_fit():
    with pytest.raises(ExportError, match=r"take 30 bytes; 29 are left"):
        choose([[Option(10, 1.0)], [Option(20, 1.0), Option(25, 0.0)]], 29)


def test_exactly_the_smallest_fit():
    assert choose([[Option(10, 1.0)], [Option(25, 0.0), Option(20, 1.0)]], 30) == (0, 1)
