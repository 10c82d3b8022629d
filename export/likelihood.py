"""How probable a model finds each of a few given answers: what multiple choice by likelihood is decided by."""

from collections.abc import Sequence

from export.engines import Engine

Ids = tuple[int, ...]


def option_log_probs(engine: Engine, prompt: Ids, options: Sequence[Ids]) -> tuple[float, ...]:
    """The log-probability of each option behind the prompt: the sum over its tokens, natural log, in order.

    What an option's token is predicted from is the prompt and the option's tokens before it, so that options which
    begin alike share predictions; a sequence is run only where another does not already hold all it would tell.
    """
    found: dict[Ids, float] = {}
    runs = _to_run(options)
    for option, predictions in zip(runs, engine.log_probs_behind(prompt, runs), strict=True):
        beginnings = [option[:length] for length in range(len(option))]
        wanted = [{o[: len(b) + 1] for o in options if len(o) > len(b) and o[: len(b)] == b} for b in beginnings]
        for row, spelled in zip(predictions, wanted, strict=True):
            found.update({part: float(row[part[-1]]) for part in spelled})
    return tuple(sum(found[option[: n + 1]] for n in range(len(option))) for option in options)


def _to_run(options: Sequence[Ids]) -> list[Ids]:
    """The fewest options whose runs show every prediction that any of them needs, the longest first."""
    covered: set[Ids] = set()
    kept = []
    for option in sorted(set(options), key=len, reverse=True):
        beginning = option[:-1]  # the last token is predicted and needs not be read
        if beginning not in covered:
            kept.append(option)
            covered |= {beginning[:length] for length in range(len(option))}
    return kept
