"""Observations of answers, written by hand."""

from export.checks import Item, ItemObservation, Items, Observation


def work(references, *, contexts=None, option_ids=(), labels=(), options=(), thinking_budget=None):
    """Held-out rows whose references these are."""
    items = tuple(
        Item(ids=(1, 2), scored=(1,), prompt=(1,), answer=reference, context=context, options=option_ids)
        for reference, context in zip(references, contexts or [""] * len(references), strict=True)
    )
    return Items(
        items=items,
        vocabulary_size=300,
        max_new_tokens=8,
        thinking_budget=thinking_budget,
        labels=labels,
        options=options,
    )


def seen(answers, *, log_probs=None, thoughts=None):
    """What a subject answered to them."""
    items = tuple(
        ItemObservation(
            log_probs=(-0.1,),
            generated=answer,
            stopped=True,
            generated_tokens=1,
            finite=True,
            option_log_probs=of_options,
            thought=thought,
        )
        for answer, of_options, thought in zip(
            answers, log_probs or [()] * len(answers), thoughts or [None] * len(answers), strict=True
        )
    )
    return Observation(
        subject="x",
        engine="hf",
        items=items,
        peak_memory_bytes=1,
        size_bytes=1,
        tokens_per_second=(),
        has_reference=False,
    )


def numbers(check, references, answers, *, log_probs=None, thoughts=None, **of_work):
    """The check's measurements by name."""
    observed = seen(answers, log_probs=log_probs, thoughts=thoughts)
    return {m.check: m for m in check.measure(work(references, **of_work), observed)}


def scores(measured):
    """The one score of each row."""
    return [score for (score,) in measured.sample]
