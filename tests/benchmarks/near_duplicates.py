"""How long near copies take among 200,000 texts: `python -m tests.benchmarks.near_duplicates [texts] [scenario ...]`.

Scenarios (all by default, each in a process of its own, so that the peaks of memory are their own):
  planted   texts of about 300 characters, a fifth of them Chinese; half of all are earlier ones with 1 to 6 small edits
  cluster   as many texts, a quarter of them near copies of one single text
  grammar   10,000 rows that differ in a few words: pairs are similar (0.4 to 0.8), most of them no near copies
  words     what planted copies share in 13 words in a row with the originals
"""

import random
import resource
import subprocess
import sys
import time

from finetune.data.duplicates import near_copies, near_copies_among, shared_ngrams

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _original(rng: random.Random, vocabulary: list[str]) -> str:
    """About 300 characters: words of a vocabulary with spaces, or Han characters."""
    if rng.random() < 0.2:
        return "".join(chr(rng.randrange(0x4E00, 0x5800)) for _ in range(300))
    return " ".join(rng.choices(vocabulary, k=46))


def _edited(rng: random.Random, text: str, edits: int) -> str:
    for _ in range(edits):
        at = rng.randrange(len(text))
        new = text[rng.randrange(len(text))]
        text = rng.choice((text[:at] + new + text[at + 1 :], text[:at] + text[at + 1 :], text[:at] + new + text[at:]))
    return text


def planted(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """`count` texts, and for each the index of the earlier one that it was made from, -1 for none."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(20_000)]
    texts: list[str] = []
    sources: list[int] = []
    originals: list[int] = []
    while len(texts) < count:
        if originals and rng.random() < 0.5:
            source = rng.choice(originals)
            texts.append(_edited(rng, texts[source], rng.randint(1, 6)))
            sources.append(source)
        else:
            originals.append(len(texts))
            texts.append(_original(rng, vocabulary))
            sources.append(-1)
    return texts, sources


def _similarity(one: str, other: str) -> float:
    """The definition, in sets: the texts here are normalised and longer than 5 characters already."""
    a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (one, other))
    return len(a & b) / len(a | b)


def _report(name: str, count: int, seconds: float, cpu_seconds: float, before_mb: float, more: str) -> None:
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}: {count:,} texts in {seconds:.1f} s ({cpu_seconds:.1f} s of CPU), {count / seconds:,.0f} texts/s; "
        f"peak memory {peak_mb:,.0f} MB, {before_mb:,.0f} MB of it before; {more}",
        flush=True,
    )


def _timed(function, *arguments):
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu_started = time.perf_counter(), time.process_time()
    result = function(*arguments)
    return result, time.perf_counter() - started, time.process_time() - cpu_started, before_mb


def _run_planted(count: int) -> None:
    texts, sources = planted(count)
    found, *figures = _timed(near_copies, texts)
    pairs = [(i, source) for i, source in enumerate(sources) if source >= 0]
    similar = [(i, source) for i, source in pairs if _similarity(texts[i], texts[source]) >= 0.8]
    hits = sum(found[i] == source for i, source in similar)
    more = f"{hits:,} of {len(similar):,} found, {hits / len(similar):.4%} ({len(pairs):,} planted)"
    _report("planted", count, *figures, more)
    # halves against each other: every copy in the second half whose source is in the first
    half = count // 2
    found, *figures = _timed(near_copies_among, texts[half:], texts[:half])
    across = [i for i, source in similar if i >= half > source]
    hits = sum(found[i - half] >= 0 for i in across)
    _report("planted, half among half", count, *figures, f"{hits:,} of {len(across):,} found")


def _run_cluster(count: int) -> None:
    texts, _ = planted(count)
    rng = random.Random(1)
    for i in range(0, count, 4):
        texts[i] = _edited(rng, texts[1], 3) if i else texts[1]
    found, *figures = _timed(near_copies, texts)
    _report("cluster", count, *figures, f"{(found[4::4] == 0).sum():,} of {count // 4 - 1:,} found")
    found, *figures = _timed(near_copies_among, texts[: count // 10], texts[count // 10 :])
    _report("cluster, a tenth among the rest", count, *figures, f"{(found[::4] >= 0).mean():.4%} found")


def _run_grammar(count: int) -> None:
    count = min(count, 10_000)
    rng = random.Random(2)
    slots = [["".join(rng.choices(LETTERS, k=rng.randint(4, 8))) for _ in range(30)] for _ in range(6)]
    frame = (
        "please {} the large room along the {} wall with {} and then go back to the {} before {} but not {} again, "
        "unless somebody is still sitting at the table by the window, in which case wait and ask them first"
    )
    texts = [frame.format(*(rng.choice(slot) for slot in slots)) for _ in range(count)]
    found, *figures = _timed(near_copies, texts)
    mean = sum(_similarity(*rng.sample(texts, 2)) for _ in range(1000)) / 1000
    _report("grammar", count, *figures, f"{(found >= 0).sum():,} near copies, mean similarity {mean:.2f}")


def _run_words(count: int) -> None:
    texts, sources = planted(count)
    originals = [text for text, source in zip(texts, sources, strict=True) if source < 0]
    copies = [text for text, source in zip(texts, sources, strict=True) if source >= 0]
    found, *figures = _timed(shared_ngrams, copies, originals)
    _report("words", count, *figures, f"{(found >= 0).sum():,} of {len(copies):,} copies share 13 words")


SCENARIOS = {"planted": _run_planted, "cluster": _run_cluster, "grammar": _run_grammar, "words": _run_words}


def main(arguments: list[str]) -> None:
    """Runs one scenario here, or several in processes of their own."""
    count = next((int(argument) for argument in arguments if argument.isdigit()), 200_000)
    names = [argument for argument in arguments if argument in SCENARIOS] or list(SCENARIOS)
    if len(names) == 1:
        SCENARIOS[names[0]](count)
        return
    for name in names:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.near_duplicates", str(count), name], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
