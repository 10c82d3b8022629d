"""The search: presets, sensitivities, the knapsack, and a few moves, each measured; and the record of all of it.

Prior art: measured sensitivities and a budget (mlx-lm's dynamic_quant, exllamav3's optimizer), search by KL divergence
(EvoPress, arXiv 2410.14649). Where the search rows come from is the caller's: none may be one that judges the file.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from export.artifacts import sha256_of_json, write_atomically
from export.chat import Encoded
from export.errors import ExportError
from export.frozen import Frozen
from export.importance import Importances
from export.quantization_record import row_sha256
from export.readers.gguf import bits_per_weight
from export.search.knapsack import Option, choose
from export.search.ladder import ladder, quantized_tensors
from export.search.sensitivity import LEAST_SHARE, cost_per_error, groups_of, kind_of, output_error
from export.search.trials import Divergence, Trial, Trials
from export.search.type_files import Quantize, TypeFiles

RECORD = "search.json"


class Search(Frozen):
    """What to search among, and how long.

    `types` are the candidates; a tensor has those whose blocks divide its rows. `bands` cuts the depth into parts that
    are measured each; `presets` of `file_types` and `moves` are measured at most.
    """

    types: tuple[str, ...]
    file_types: tuple[str, ...]
    bands: int
    presets: int
    moves: int


class SearchRecord(Frozen):
    """The content of search.json: what was tried on which rows, what was foretold and measured, and what was chosen.

    `undisturbed_kl`, `demoted_kl`, `promoted_kl` and `type_kl` are what sensitivities were told from; the last three
    are empty where the target had room for the largest types.
    """

    budget_bytes: int
    size_bytes: int
    rows: int
    tokens: int
    rows_sha256: tuple[str, ...]
    undisturbed_kl: Divergence
    demoted_kl: dict[str, Divergence]
    promoted_kl: dict[str, Divergence]
    type_kl: dict[str, Divergence]
    trials: tuple[Trial, ...]
    chosen: str
    types: dict[str, str]


def search(
    source: Path,
    settings: Search,
    rows: Sequence[Encoded],
    importances: Importances | None,
    quantize: Quantize,
    folder: Path,
    *,
    budget: Callable[[TypeFiles], int],
    made_from: Mapping[str, str],
    vocabulary_size: int | None,
    say: Callable[[str], None],
) -> SearchRecord:
    """The types by which a file made of the 16-bit file `source` loses least within a size.

    `budget` says how many bytes the whole file may have, once it is known what there is to store. `made_from` names
    by hashes and versions what the files depend on. `folder` keeps what was made and measured, so that the same search
    goes on where it was interrupted. Raises ExportError where no mix fits, and for a search without rows.
    """
    if not rows:
        raise ExportError("a search needs rows with answers to measure on, and was given none. Raise data.valid_share.")
    names = quantized_tensors(source)
    # what was made of another model, or rounded by other importance data, is not to be taken for this one's
    folder = folder / sha256_of_json(dict(made_from))[:16]
    folder.mkdir(parents=True, exist_ok=True)
    files = TypeFiles(source, names, importances, quantize, folder)
    trials = Trials(files, source, rows, made_from, folder, vocabulary_size, say)
    searching = _Searching(files, settings, importances, trials, budget(files), source)
    return searching.run(rows, say)


class _Searching:
    """One search, its steps in order."""

    def __init__(
        self,
        files: TypeFiles,
        settings: Search,
        importances: Importances | None,
        trials: Trials,
        budget_bytes: int,
        source: Path,
    ) -> None:
        self._files, self._settings, self._importances = files, settings, importances
        self._trials, self._budget, self._source = trials, budget_bytes, source
        self._groups = groups_of(files.names, settings.bands)
        self._errors = _Errors(files, importances, trials.folder, trials.made_from)
        self._types = settings.types
        self._costs: dict[str, float] = {}
        self._type_factors: dict[str, float] = {}
        self._tried: list[tuple[Trial, dict[str, str]]] = []

    def run(self, rows: Sequence[Encoded], say: Callable[[str], None]) -> SearchRecord:
        self._require_room()
        largest = self._largest()
        if self._files.size_bytes(largest[0]) <= self._budget:
            say("the target has room for every tensor in its largest type: there is nothing to search for")
            self._trials.expected = len(largest)
            for number, types in enumerate(largest, start=1):
                self._try(types, "the largest types" + (f", {number} of {len(largest)}" if len(largest) > 1 else ""))
            found, _ = self._best()
            return self._record(rows, Divergence(kl_mean=found.kl_mean, stderr=found.stderr), {}, {}, {})
        rungs = ladder(self._source, self._files, self._settings.file_types, self._budget, self._settings.presets)
        self._trials.expected = (
            len(rungs) + len(self._settings.types) + 1 + 2 * len(self._groups) + 1 + self._settings.moves
        )
        for rung in rungs:
            self._try(rung.types, f"preset {rung.file_type}")
        undisturbed, by_type = self._measure_types()
        demoted, promoted = self._measure_groups(undisturbed)
        self._weigh_types(undisturbed, by_type)
        factors = dict.fromkeys(map(kind_of, self._files.names), 1.0)
        self._try(self._solved(factors), "knapsack")
        self._move(factors)
        return self._record(rows, undisturbed, demoted, promoted, by_type)

    def _record(
        self,
        rows: Sequence[Encoded],
        undisturbed: Divergence,
        demoted: dict[str, Divergence],
        promoted: dict[str, Divergence],
        by_type: dict[str, Divergence],
    ) -> SearchRecord:
        best, types = self._best()
        return SearchRecord(
            budget_bytes=self._budget,
            size_bytes=best.size_bytes,
            rows=len(rows),
            tokens=sum(len(row.scored_positions) for row in rows),
            rows_sha256=tuple(row_sha256(row.ids) for row in rows),
            undisturbed_kl=undisturbed,
            demoted_kl=demoted,
            promoted_kl=promoted,
            type_kl=by_type,
            trials=tuple(trial for trial, _ in self._tried),
            chosen=best.name,
            types=types,
        )

    def _best(self) -> tuple[Trial, dict[str, str]]:
        """The mix that loses least. Raises ExportError where none has a divergence that is a number."""
        measured = [tried for tried in self._tried if math.isfinite(tried[0].kl_mean)]
        if not measured:
            raise ExportError(
                "no mix has a divergence that is a number: the 16-bit model's own predictions are not finite on the "
                "search's rows. Check the merged model before quantizing it."
            )
        return min(measured, key=lambda tried: tried[0].kl_mean)

    def _candidates(self, name: str) -> tuple[str, ...]:
        """The types that the tensor can have, the smallest first. Raises ExportError where there is none."""
        found = [stored_as for stored_as in self._types if self._files.fits(name, stored_as)]
        if not found:
            raise ExportError(f"no candidate type divides the rows of {name}. Add q8_0, or another with blocks of 32.")
        return tuple(sorted(found, key=lambda stored_as: self._files.tensor_bytes(name, stored_as)))

    def _largest(self) -> list[dict[str, str]]:
        """Every tensor in its largest type; several mixes where several types are as large, each preferred in one."""
        mixes = []
        for preferred in self._settings.types:
            mix = {}
            for name in self._files.names:
                *_, last = self._candidates(name)
                as_large = self._files.fits(name, preferred) and (
                    self._files.tensor_bytes(name, preferred) == self._files.tensor_bytes(name, last)
                )
                mix[name] = preferred if as_large else last
            if mix not in mixes:
                mixes.append(mix)
        return mixes

    def _require_room(self) -> None:
        smallest = {name: self._candidates(name)[0] for name in self._files.names}
        if (least := self._files.size_bytes(smallest)) > self._budget:
            raise ExportError(
                f"the target of {self._budget:,} bytes cannot be met: with every tensor in its smallest candidate type "
                f"the file has {least:,}. Allow that many, or add smaller types."
            )

    def _measure_types(self) -> tuple[Divergence, dict[str, Divergence]]:
        """What the largest types cost, and each type where every tensor that can has it. Dominated ones are left out.

        Errors of one size are not worth the same in every type: on a base that was quantized before, the type it had
        then takes back just what fine-tuning changed, by a small error that undoes it.
        """
        largest = {name: self._candidates(name)[-1] for name in self._files.names}
        undisturbed = self._trials.divergence(largest, "the largest types")
        measured = {}
        for stored_as in self._settings.types:
            types = {n: stored_as if self._files.fits(n, stored_as) else largest[n] for n in self._files.names}
            if types != largest:
                measured[stored_as] = self._trials.divergence(types, f"all {stored_as}")
        fitting = {t: frozenset(n for n in self._files.names if self._files.fits(n, t)) for t in measured}
        dominated = {
            one
            for one in measured
            for other in measured
            if one != other
            and fitting[one] <= fitting[other]
            and (bits_per_weight(other), measured[other].kl_mean) <= (bits_per_weight(one), measured[one].kl_mean)
            and measured[other].kl_mean <= measured[one].kl_mean
        }
        self._types = tuple(stored_as for stored_as in self._settings.types if stored_as not in dominated)
        return undisturbed, measured

    def _measure_groups(self, undisturbed: Divergence) -> tuple[dict[str, Divergence], dict[str, Divergence]]:
        """What demoting each group alone adds, and what promoting it alone takes away; from both, the cost of an error.

        Errors of several groups add up to more than each does alone, or to less. A group's worth lies between what it
        is where all others are exact and where none is: half of both.
        """
        largest = {name: self._candidates(name)[-1] for name in self._files.names}
        low = {name: self._demoted(name) for name in self._files.names}
        lowest, measured = self._trials.divergence(low, "all demoted"), self._trials.divergence
        demoted, promoted, worth, errors = {}, {}, {}, {}
        for group, members in self._groups.items():
            demoted[group] = measured({**largest, **{name: low[name] for name in members}}, f"{group} demoted")
            promoted[group] = measured({**low, **{name: largest[name] for name in members}}, f"{group} promoted")
            added = demoted[group].kl_mean - undisturbed.kl_mean
            worth[group] = (added + lowest.kl_mean - promoted[group].kl_mean) / 2
            errors[group] = sum(self._errors.of(n, low[n]) - self._errors.of(n, largest[n]) for n in members)
        self._errors.keep()
        per_error = cost_per_error(worth, errors)
        self._costs = {name: per_error[group] for group, members in self._groups.items() for name in members}
        return demoted, promoted

    def _weigh_types(self, undisturbed: Divergence, measured: Mapping[str, Divergence]) -> None:
        """How much more, or less, an error in each type costs than the groups' costs tell."""
        for stored_as in self._types:
            told = sum(self._loss(name, stored_as) for name in self._files.names if self._files.fits(name, stored_as))
            if stored_as in measured and told > 0:
                added = measured[stored_as].kl_mean - undisturbed.kl_mean
                self._type_factors[stored_as] = max(added, LEAST_SHARE * told) / told
        self._errors.keep()

    def _demoted(self, name: str) -> str:
        """The type to measure a demotion in: the largest that spends no more than the target does on average."""
        share = self._budget / sum(tensor.size_bytes for tensor in self._files.plain.values())
        candidates = self._candidates(name)
        affordable = self._files.plain[name].size_bytes * share
        within = [c for c in candidates if self._files.tensor_bytes(name, c) <= affordable]
        return (within or candidates[:1])[-1]

    def _loss(self, name: str, stored_as: str) -> float:
        return self._costs[name] * self._errors.of(name, stored_as) * self._type_factors.get(stored_as, 1.0)

    def _solved(self, factors: Mapping[str, float]) -> dict[str, str]:
        """The best mix where each kind's losses count by its factor."""
        items = [
            [
                Option(self._files.padded_bytes(name, c), factors[kind_of(name)] * self._loss(name, c))
                for c in self._candidates(name)
            ]
            for name in self._files.names
        ]
        self._errors.keep()
        chosen = choose(items, self._budget - self._files.rest_bytes())
        return {name: self._candidates(name)[number] for name, number in zip(self._files.names, chosen, strict=True)}

    def _try(self, types: dict[str, str], name: str) -> Trial:
        predicted = sum(self._loss(tensor, kind) for tensor, kind in types.items()) if self._costs else None
        trial = self._trials.trial(types, name, predicted)
        self._tried.append((trial, types))
        return trial

    def _move(self, factors: dict[str, float]) -> None:
        """Shifts bytes to or from the kinds that cost most, and keeps what is measured to be better.

        The errors of one kind may cost more, or less, together than each does alone: its losses are doubled or halved,
        and the knapsack is solved again, so that every move fills the budget.
        """
        best, mix = self._tried[-1]
        seen = [types for _, types in self._tried]
        by_kind: dict[str, float] = defaultdict(float)
        for name, stored_as in mix.items():
            by_kind[kind_of(name)] += self._loss(name, stored_as)
        moves = [(kind, factor) for kind in sorted(by_kind, key=lambda k: -by_kind[k]) for factor in (2.0, 0.5)]
        left = self._settings.moves
        for kind, factor in moves:
            changed = {**factors, kind: factors[kind] * factor}
            if left == 0:
                break
            types = self._solved(changed)
            if types in seen:
                continue
            left -= 1
            seen.append(types)
            trial = self._try(types, f"{'more' if factor > 1 else 'less'} for {kind}")
            if trial.kl_mean < best.kl_mean:
                best, factors = trial, changed
        self._trials.expected = 0


class _Errors:
    """Output errors by tensor and type, each estimated once and kept on disk."""

    def __init__(
        self, files: TypeFiles, importances: Importances | None, folder: Path, made_from: Mapping[str, str]
    ) -> None:
        self._files, self._importances = files, importances
        self._path = folder / f"errors-{sha256_of_json(dict(made_from))}.json"
        self._known: dict[str, float] = _read_json(self._path)

    def of(self, name: str, stored_as: str) -> float:
        """The error of one tensor in one type; those of all its kind and type are kept together."""
        key = f"{name} {stored_as}"
        if key not in self._known:
            plain = self._files.plain[name]
            self._known[key] = output_error(plain, self._files.tensor(name, stored_as), self._importances)
        return self._known[key]

    def keep(self) -> None:
        """Writes what is known."""
        write_atomically(self._path, json.dumps(self._known))


def _read_json(path: Path) -> dict[str, float]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
