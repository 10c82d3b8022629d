"""Searched mixes beside llama.cpp's own file types: `python -m tests.benchmarks.search RUN --out DIR --sizes 430,388`.

RUN is a finished run with a 16-bit GGUF file. For each size (MB) a mix is searched on the run's validation rows, with
importance data of its training rows; then it and every stock type, without importance data, are measured on all the
held-out rows, which took no part in it: mean KL divergence from the 16-bit file on assistant tokens, and exact match of
greedy answers. Printed are the ratio of a mix's KL to that of the best stock type of its size (at most 1 % larger), and
how much smaller it is than the smallest stock type that is no further from the 16-bit file, with intervals over rows.
With --weighted the named stock types are measured with the mixes' importance data as well: what the search itself adds.
DIR keeps what was made and measured: the same command goes on where it was.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export import sampling
from export.artifacts import sha256_of_file
from export.chat import Conversation, encode, encode_prompt
from export.chat_tokenizer import load_tokenizer
from export.checks import read_json, same_json
from export.engines import llama_cpp
from export.formats._gguf_quantize import quantize_file
from export.formats.target import Target
from export.hardware import available_cores
from export.importance import IMPORTANCE_FILE, Importances, gather, read_importances, write_importances
from export.sampling import paired_proportion_interval, paired_table
from export.search import Search, search
from export.search.ladder import ladder, quantized_tensors
from export.search.trials import Trials
from export.search.type_files import TypeFiles

CALIBRATION_ROWS, MOST_NEW_TOKENS, RESAMPLES = 256, 64, 4000
SAME_SIZE = 1.01
STOCK = "q5_0,q4_k_m,q4_k_s,q4_1,q4_0,iq4_nl,iq4_xs,q3_k_l,q3_k_m,q3_k_s,iq3_m,iq3_s,q2_k"


class Measured(NamedTuple):
    """A file on the held-out rows: nats by row and token."""

    name: str
    size_bytes: int
    types: dict[str, str]
    kl: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> float:
        """Nats per assistant token."""
        return sampling.estimate(self.kl, "mean")


class Judge:
    """Measures files on rows that took no part in a search, with or without importance data."""

    def __init__(self, run: Path, out: Path, importances: Importances | None) -> None:
        self.source = run / "export" / "gguf-f16" / "model-f16.gguf"
        self.rows = _conversations(run, "held_out")
        self._tokenizer = load_tokenizer(run / "merged")
        out.mkdir(parents=True, exist_ok=True)
        names = quantized_tensors(self.source)
        self.files = TypeFiles(self.source, names, importances, quantize_file, out)
        made_from = {"source": sha256_of_file(self.source), "importance": str(importances is not None)}
        encoded = [encode(self._tokenizer, row) for row in self.rows]
        vocabulary = len(self._tokenizer)
        self._trials = Trials(self.files, self.source, encoded, made_from, out, vocabulary, print)
        self._folder = out

    def measured(self, name: str, types: dict[str, str]) -> Measured:
        return Measured(name, self.files.size_bytes(types), types, self._trials.divergences(types, name))

    def stock(self, names: Sequence[str]) -> list[Measured]:
        """llama.cpp's own types of these names."""
        rungs = ladder(self.source, self.files, names, 10**12, len(names))
        return [self.measured(rung.file_type, rung.types) for rung in rungs]

    def right(self, types: dict[str, str], name: str, count: int) -> list[float]:
        """1 for each of the first `count` rows that is answered as it should be, as JSON."""
        kept = self._folder / f"right-{name}-{count}.json"
        if not kept.is_file():
            path = self._folder / "asked.gguf"
            self.files.assemble(types, path)
            kept.write_text(json.dumps(self._asked(path, count)))
        return [float(flag) for flag in json.loads(kept.read_text())]

    def _asked(self, path: Path, count: int) -> list[bool]:
        rows = self.rows[:count]
        prompts = [encode_prompt(self._tokenizer, row.prompt) for row in rows]
        longest = max(map(len, prompts)) + MOST_NEW_TOKENS
        vocabulary, threads = len(self._tokenizer), available_cores()
        engine = llama_cpp.load(path, vocabulary_size=vocabulary, context_tokens=longest, threads=threads)
        answers = engine.generate(prompts, MOST_NEW_TOKENS)
        engine.close()
        texts = [self._tokenizer.decode(answer.ids, skip_special_tokens=False) for answer in answers]
        return [_same(text, row.answer) for text, row in zip(texts, rows, strict=True)]


def main() -> None:
    """One line for each file, and for each mix what it is beside the best stock type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", required=True, help="MB, with commas; 4.3b is bits per weight")
    parser.add_argument("--types", default=",".join(Target.model_fields["types"].default))
    parser.add_argument("--stock", default=STOCK, help="stock types to compare with")
    parser.add_argument("--weighted", default="", help="stock types to compare with importance data as well")
    parser.add_argument("--answers", type=int, default=10**6, help="held-out rows to answer, at most")
    parser.add_argument("--search-rows", type=int, default=99)
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--moves", type=int, default=6)
    parsed = parser.parse_args()
    parsed.out.mkdir(parents=True, exist_ok=True)
    importances = _importances(parsed.run, parsed.out)
    mixes = Judge(parsed.run, parsed.out / "mixes", importances)
    plain = Judge(parsed.run, parsed.out / "stock", None)
    stock = plain.stock(parsed.stock.split(","))
    tokens = sum(map(len, stock[0].kl))
    print(f"{len(mixes.rows)} held-out rows, {tokens} assistant tokens")
    for file in stock:
        _print(file)
    weighted = mixes.stock([name for name in parsed.weighted.split(",") if name])
    for file in weighted:
        _print(file._replace(name=f"{file.name}, weighted"))
    for size in parsed.sizes.split(","):
        settings = Search(
            types=tuple(parsed.types.split(",")), file_types=(), bands=parsed.bands, presets=0, moves=parsed.moves
        )
        mix = _searched(parsed, settings, size, importances, mixes)
        _against(mix, stock, mixes, plain, parsed.answers)
        _beside_weighted(mix, weighted)


def _importances(run: Path, out: Path) -> Importances:
    path = out / IMPORTANCE_FILE
    if not path.is_file():
        rows = _conversations(run, "train")
        tokenizer = load_tokenizer(run / "merged")
        drawn = random.Random(0).sample(rows, min(CALIBRATION_ROWS, len(rows)))
        write_importances(gather(run / "merged", [encode(tokenizer, row).ids for row in drawn]), path)
    return read_importances(path)


def _searched(
    parsed: argparse.Namespace, settings: Search, size: str, importances: Importances, judge: Judge
) -> Measured:
    folder = parsed.out / "mixes"  # where the tensors of each type lie already
    tokenizer = load_tokenizer(parsed.run / "merged")
    rows = _conversations(parsed.run, "valid")[: parsed.search_rows]
    began = time.monotonic()
    found = search(
        judge.source,
        settings,
        [encode(tokenizer, row) for row in rows],
        importances,
        quantize_file,
        folder,
        budget=lambda files: _budget(size, files),
        made_from={"source": sha256_of_file(judge.source), "importance": sha256_of_file(parsed.out / IMPORTANCE_FILE)},
        vocabulary_size=len(tokenizer),
        say=print,
    )
    print(f"{size}: {found.chosen} of {len(found.trials)} mixes, searched on {found.rows} rows, {found.tokens} tokens")
    for trial in found.trials:
        print(
            f"    {trial.name:24} {trial.size_bytes / 1e6:7.1f} MB, KL {trial.kl_mean:.5f}, foretold {trial.predicted}"
        )
    print(f"    {time.monotonic() - began:.0f} s")
    return judge.measured(f"mix of {size}", found.types)


def _budget(size: str, files: TypeFiles) -> int:
    if size.endswith("b"):
        return files.header_bytes() + int(float(size[:-1]) * files.weights / 8)
    return int(float(size) * 1e6)


def _against(mix: Measured, stock: Sequence[Measured], judge: Judge, plain: Judge, answers: int) -> None:
    _print(mix)
    for kind in sorted(set(mix.types.values())):
        print(f"    {kind}: {sum(stored_as == kind for stored_as in mix.types.values())} tensors")
    best = _best_of_its_size(mix, stock)
    if best is not None:
        ratios = _ratio(best.kl, mix.kl)
        print(
            f"  {mix.mean / best.mean:.3f} times the KL of {best.name} "
            f"(90 % interval {ratios[0]:.3f} to {ratios[1]:.3f}), the best stock type of its size"
        )
        before = plain.right(best.types, best.name, answers)
        after = judge.right(mix.types, mix.name.replace(" ", "-"), answers)
        low, high = paired_proportion_interval(paired_table(before, after))
        change = float(np.mean(after) - np.mean(before))
        print(
            f"  exact match {np.mean(after):.1%}, {best.name} {np.mean(before):.1%}: {change:+.1%} "
            f"({low:+.1%} to {high:+.1%}; {len(after)} rows)"
        )
    as_near = [file for file in stock if file.mean <= mix.mean]
    smallest = min(as_near, key=lambda file: file.size_bytes) if as_near else None
    larger = [file for file in stock if file.mean >= mix.mean and file.size_bytes > mix.size_bytes]
    beaten = min(larger, key=lambda file: file.mean) if larger else None
    if beaten is not None:
        ratios = _ratio(beaten.kl, mix.kl)
        print(
            f"  {1 - mix.size_bytes / beaten.size_bytes:.1%} smaller than {beaten.name}, "
            f"at {mix.mean / beaten.mean:.3f} times its KL ({ratios[0]:.3f} to {ratios[1]:.3f})"
        )
    if smallest is not None:
        share = mix.size_bytes / smallest.size_bytes
        print(
            f"  {share:.1%} of the size of {smallest.name}, the smallest stock type that is as near to the 16-bit file"
        )


def _beside_weighted(mix: Measured, weighted: Sequence[Measured]) -> None:
    best = _best_of_its_size(mix, weighted)
    if best is not None:
        low, high = _ratio(best.kl, mix.kl)
        print(
            f"  {mix.mean / best.mean:.3f} times the KL of {best.name} with importance data ({low:.3f} to {high:.3f})"
        )


def _best_of_its_size(mix: Measured, stock: Sequence[Measured]) -> Measured | None:
    same = [file for file in stock if file.size_bytes <= mix.size_bytes * SAME_SIZE]
    return min(same, key=lambda file: file.mean) if same else None


def _ratio(before: tuple[tuple[float, ...], ...], after: tuple[tuple[float, ...], ...]) -> tuple[float, float]:
    """The 90 % percentile interval of the ratio of two means, rows paired."""
    first, second = sampling.bootstrap([before, after], "mean", seed=0, resamples=RESAMPLES)
    low, high = np.quantile(second / first, [0.05, 0.95])
    return float(low), float(high)


def _print(file: Measured) -> None:
    error = sampling.standard_error(file.kl, "mean")
    print(f"{file.name:14} {file.size_bytes / 1e6:7.1f} MB  mean KL {file.mean:.5f} ± {error:.5f}")


def _same(text: str, expected: str) -> bool:
    gold, answer = read_json(expected), read_json(text)
    return gold.has_value and answer.has_value and same_json(gold.value, answer.value, "ordered")


def _conversations(run: Path, split: str) -> list[Conversation]:
    lines = (run / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Conversation.model_validate_json(line) for line in lines]


if __name__ == "__main__":
    main()
