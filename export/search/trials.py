"""What a mix of types costs: KL divergence from the 16-bit file on assistant tokens, measured by running it.

The measure is the gate's own (`export.reference`), through llama.cpp, on rows that judge nothing later. Each mix is
measured once: its divergences are kept on disk under the hash of everything they depend on, and a search that was
interrupted goes on where it was.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export import sampling
from export.artifacts import sha256_of_json, write_atomically
from export.chat import Encoded
from export.frozen import Frozen
from export.hardware import available_cores
from export.reference import Reference, writing_reference
from export.search.type_files import TypeFiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Divergence(Frozen):
    """Mean KL divergence in nats per assistant token, and its standard error over rows (none where there is one)."""

    kl_mean: float
    stderr: float | None


class Trial(Divergence):
    """A mix that was measured; `predicted` is what the sensitivities had foretold, where they were known by then."""

    name: str
    size_bytes: int
    predicted: float | None = None


class Trials:
    """Measures mixes, one after another, in `folder`."""

    def __init__(
        self,
        files: TypeFiles,
        source: Path,
        rows: Sequence[Encoded],
        made_from: Mapping[str, str],
        folder: Path,
        vocabulary_size: int | None,
        say: Callable[[str], None],
    ) -> None:
        """`source` is the 16-bit file. `made_from` names, by hashes and versions, all that mixes depend on."""
        self._files, self._source, self._rows, self.folder = files, source, rows, folder
        self._vocabulary_size, self._say = vocabulary_size, say
        self.made_from = {**made_from, "rows": sha256_of_json([row.model_dump(mode="json") for row in rows])}
        self._shared_tokens = _shared_tokens([row.ids for row in rows])
        self._seconds: list[float] = []
        self.expected = 0

    def divergences(self, types: Mapping[str, str], name: str) -> tuple[tuple[float, ...], ...]:
        """Nats per assistant token, by rows, of the mix in which tensors have these types."""
        kept = self.folder / f"{sha256_of_json({**self.made_from, 'types': dict(types)})}.json"
        self.expected = max(0, self.expected - 1)
        if kept.is_file():
            return tuple(map(tuple, json.loads(kept.read_text(encoding="utf-8"))["kl"]))
        began = time.monotonic()
        mix = self.folder / "mix.gguf"
        self._files.assemble(types, mix)
        found = self._measured(mix)
        mix.unlink()
        write_atomically(kept, json.dumps({"name": name, "types": dict(types), "kl": found}))
        self._seconds.append(time.monotonic() - began)
        self._tell(name, found)
        return found

    def divergence(self, types: Mapping[str, str], name: str) -> Divergence:
        """Their mean, and its error."""
        found = self.divergences(types, name)
        return Divergence(kl_mean=sampling.estimate(found, "mean"), stderr=sampling.standard_error(found, "mean"))

    def trial(self, types: Mapping[str, str], name: str, predicted: float | None = None) -> Trial:
        """The mix, measured."""
        found = self.divergence(types, name)
        size_bytes = self._files.size_bytes(types)
        return Trial(**found.model_dump(), name=name, size_bytes=size_bytes, predicted=predicted)

    def _tell(self, name: str, found: Sequence[Sequence[float]]) -> None:
        left = self.expected * sum(self._seconds) / len(self._seconds)
        mean = sampling.estimate(found, "mean")
        self._say(f"search: {name}: mean KL {mean:.4f}; {self.expected} measurements left, about {left / 60:.0f} min")

    def _measured(self, path: Path) -> tuple[tuple[float, ...], ...]:
        reference = self._reference()
        found, seen = [], 0
        for row, blocks in self._run(path):
            kl: list[float] = []
            for block in blocks:
                kl += reference.compare(seen + len(kl), block).kl.tolist()
            found.append(tuple(kl))
            seen += len(row.scored_positions)
        return tuple(found)

    def _reference(self) -> Reference:
        """The 16-bit file's predictions, made when they are first needed."""
        path = self.folder / f"reference-{sha256_of_json(self.made_from)}.npy"
        if not path.is_file():
            partial = path.with_suffix(".partial")
            tokens = sum(len(row.scored_positions) for row in self._rows)
            with writing_reference(partial, tokens=tokens, vocabulary_size=self._vocabulary()) as writer:
                for _, blocks in self._run(self._source):
                    for block in blocks:
                        writer.add(block)
            partial.replace(path)
        return Reference(path)

    def _vocabulary(self) -> int:
        from export.engines.llama_library import open_vocabulary

        if self._vocabulary_size is not None:
            return self._vocabulary_size
        with open_vocabulary(self._source) as vocabulary:
            return len(vocabulary)

    def _run(self, path: Path) -> "Iterator[tuple[Encoded, Iterator[NDArray[np.float32]]]]":
        """Each row with its predictions, by the file at `path`."""
        from export.engines import llama_cpp

        engine = llama_cpp.load(
            path,
            vocabulary_size=self._vocabulary_size,
            context_tokens=max(len(row.ids) for row in self._rows),
            threads=available_cores(),
        )
        try:
            for row in self._rows:
                yield row, engine.log_prob_blocks(row.ids, row.scored_positions, shared_tokens=self._shared_tokens)
        finally:
            engine.close()


def _shared_tokens(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all rows begin with, as a template's and a system prompt's: they are run once for all rows."""
    first, last = min(rows), max(rows)  # all others lie between these, and so begin with what both do
    differing = (index for index, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(differing, min(len(first), len(last)))
