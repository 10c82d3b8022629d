"""What an adapter is merged onto: what the recipe says or, for a QLoRA adapter, what was measured to be nearer.

A QLoRA adapter was trained beside NF4 weights and has learned to make up for their rounding. People disagree on whether
its update belongs on those weights, de-quantized (peft issue 2105), or on the base's own (unsloth-zoo pull request 810
names a model where that fails). So both merges are made, and compared with the adapter as it was trained: what is kept
is the one that behaves as training left it, which does not say that it answers better. How a merge is made is in
`finetune.merge`; how predictions are stored and compared, in `export.reference`.
"""

import gc
import math
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from export import sampling
from export.artifacts import MergeBase, MergeCandidate, ModelFolder
from export.chat import Encoded, encode
from export.chat_tokenizer import load_tokenizer
from export.engines import Engine, Subject
from finetune.base_model import BaseModelSource
from finetune.data import Splits
from finetune.merge import convert, merge
from finetune.methods import Adapter, FullModel, TrainingResult
from finetune.recipe import MergeSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from export.reference import Reference

# The two merges are compared row by row, so that few rows tell them apart; more would cost a large model minutes.
MEASURED_ROWS = 64


def is_measured(trained: TrainingResult, settings: MergeSettings) -> bool:
    """Whether there is a choice to make: the recipe leaves it open, and an adapter was trained beside NF4 weights."""
    return settings.onto == "auto" and isinstance(trained, Adapter) and trained.four_bit_base


def merge_as_asked(
    trained: TrainingResult,
    base: BaseModelSource,
    settings: MergeSettings,
    splits: Splits,
    out: Path,
    *,
    seed: int,
    say: Callable[[str], None],
) -> ModelFolder:
    """Writes the merged model into `out`, onto what the settings name or, where they leave it open, onto the nearer.

    A model that was trained whole has nothing to be merged, and is written in 16 bits. Measuring reads validation rows
    alone, at most `MEASURED_ROWS` of them drawn with `seed`: the held-out rows must not decide anything that is judged
    by them. Raises what `finetune.merge.merge` and the hf engine raise.
    """
    if isinstance(trained, FullModel):
        return convert(trained, base, out, dtype=settings.dtype)
    assert isinstance(trained, Adapter)
    if is_measured(trained, settings):
        return _merge_onto_the_nearer(trained, base, settings.dtype, splits, out, seed, say)
    onto: MergeBase = "16bit" if settings.onto == "auto" else settings.onto
    return merge(trained, base, out, onto=onto, dtype=settings.dtype)


def choose(onto_16bit: sampling.Sample, onto_nf4: sampling.Sample, *, seed: int) -> tuple[MergeCandidate, ...]:
    """Both merges as they are recorded, from the divergences of each in nats: per row, per assistant token.

    The nearer is kept. Where the 90 % interval of their paired difference contains 0 the two cannot be told apart,
    and the merge onto the base's own weights is kept: nothing was rounded on the way to it.
    """
    kept, note = _decision(onto_16bit, onto_nf4, seed)
    divergences: dict[MergeBase, sampling.Sample] = {"16bit": onto_16bit, "nf4": onto_nf4}
    return tuple(
        MergeCandidate(
            onto=onto,
            kl_mean=sampling.estimate(sample, "mean"),
            stderr=sampling.standard_error(sample, "mean"),
            n_rows=len(sample),
            n_tokens=sum(len(row) for row in sample),
            kept=onto == kept,
            note=note if onto == kept else "",
        )
        for onto, sample in divergences.items()
    )


def _decision(onto_16bit: sampling.Sample, onto_nf4: sampling.Sample, seed: int) -> tuple[MergeBase, str]:
    """Which of the two is kept, and why."""
    dense, four_bit = (sampling.estimate(sample, "mean") for sample in (onto_16bit, onto_nf4))
    if not (math.isfinite(dense) and math.isfinite(four_bit)):
        kept: MergeBase = "nf4" if math.isfinite(four_bit) else "16bit"
        broken = [name for name, value in (("16bit", dense), ("nf4", four_bit)) if not math.isfinite(value)]
        return kept, f"the divergence of {' and of '.join(broken)} is not finite"
    low, high = sampling.paired_interval(onto_16bit, onto_nf4, "mean", ratio=False, seed=seed)
    change = (
        f"nf4 minus 16bit {four_bit - dense:+.2g} nats per token, "
        f"{100 * sampling.CONFIDENCE:.0f} % interval {low:+.2g} to {high:+.2g}"
    )
    if low <= 0 <= high:
        return "16bit", f"{change}: within noise, so the base's own weights are kept"
    return ("nf4" if high < 0 else "16bit"), f"{change}: the nearer is kept"


def _merge_onto_the_nearer(
    adapter: Adapter,
    base: BaseModelSource,
    dtype: str,
    splits: Splits,
    out: Path,
    seed: int,
    say: Callable[[str], None],
) -> ModelFolder:
    """Makes and measures both merges, one model in memory at a time, and leaves the one that is kept in `out`.

    While it works, both lie on the disk.
    """
    from export.reference import Reference

    tokenizer = load_tokenizer(base.path)
    rows = _valid_rows(splits, tokenizer, seed, thinking=base.thinking)
    say(f"merge: the adapter as trained and two merges, onto 16bit and nf4, are compared on {len(rows)} valid rows")
    candidates = out / "candidates"
    candidates.mkdir()
    _store_reference(adapter, base, rows, len(tokenizer), candidates / "reference.npy")
    reference = Reference(candidates / "reference.npy")
    made: dict[MergeBase, ModelFolder] = {}
    divergences: dict[MergeBase, sampling.Sample] = {}
    for onto in get_args(MergeBase):
        (candidates / onto).mkdir()
        made[onto] = merge(adapter, base, candidates / onto, onto=onto, dtype=dtype)
        divergences[onto] = _divergences(made[onto], rows, len(tokenizer), reference)
    chosen = choose(divergences["16bit"], divergences["nf4"], seed=seed)
    kept = next(candidate for candidate in chosen if candidate.kept)
    say(f"merge: {outcome(chosen)}")
    for file in made[kept.onto].folder.iterdir():
        file.rename(out / file.name)
    shutil.rmtree(candidates)
    return made[kept.onto].model_copy(update={"folder": out, "merge_candidates": chosen})


def outcome(candidates: Sequence[MergeCandidate]) -> str:
    """What was measured and kept, in a line."""
    measured = ", ".join(f"onto {c.onto} {_with_error(c)}" for c in candidates)
    kept = next(candidate for candidate in candidates if candidate.kept)
    return (
        f"mean KL from the adapter as trained {measured} nats per token ({kept.n_rows:,} valid rows, "
        f"{kept.n_tokens:,} assistant tokens; ± standard error); kept: {kept.onto} ({kept.note})"
    )


def _with_error(candidate: MergeCandidate) -> str:
    error = f"±{candidate.stderr:.2g}" if candidate.stderr is not None else " (no standard error)"
    return f"{candidate.kl_mean:.3g}{error}"


def _valid_rows(splits: Splits, tokenizer: "PreTrainedTokenizerBase", seed: int, *, thinking: bool) -> list[Encoded]:
    """At most `MEASURED_ROWS` validation rows as token ids."""
    conversations = splits.conversations("valid")
    chosen = random.Random(seed).sample(conversations, min(MEASURED_ROWS, len(conversations)))
    return [encode(tokenizer, conversation, thinking=thinking) for conversation in chosen]


def _store_reference(
    adapter: Adapter, base: BaseModelSource, rows: Sequence[Encoded], vocabulary_size: int, path: Path
) -> None:
    """Stores what the adapter predicts beside its NF4 base, computing in the type it was trained in."""
    from export.reference import writing_reference

    subject = adapter.subject(base.path, adapter.name)
    tokens = sum(len(row.scored_positions) for row in rows)
    with (
        _running(subject, vocabulary_size) as engine,
        writing_reference(path, tokens=tokens, vocabulary_size=vocabulary_size) as writer,
    ):
        for row in rows:
            for block in engine.log_prob_blocks(row.ids, row.scored_positions):
                writer.add(block)


def _divergences(
    merged: ModelFolder, rows: Sequence[Encoded], vocabulary_size: int, reference: "Reference"
) -> list[list[float]]:
    """Per row, the divergence of a merged folder from the reference on each assistant token, in nats."""
    subject = Subject(name="merged", engine="hf", path=merged.folder)
    divergences: list[list[float]] = []
    seen = 0
    with _running(subject, vocabulary_size) as engine:
        for row in rows:
            divergences.append([])
            for block in engine.log_prob_blocks(row.ids, row.scored_positions):
                divergences[-1] += reference.compare(seen, block).kl.tolist()
                seen += len(block)
    return divergences


@contextmanager
def _running(subject: Subject, vocabulary_size: int) -> Iterator[Engine]:
    """The subject, loaded when no model that came before it is in memory any more."""
    import torch

    from export.engines import hf

    gc.collect()  # the model that was trained here lies in cycles, and would stay
    engine = hf.load(subject, vocabulary_size=vocabulary_size, threads=torch.get_num_threads())
    try:
        yield engine
    finally:
        engine.close()
