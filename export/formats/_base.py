"""What an export format is: settings in, one or more checked files out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from export.artifacts import ModelFolder, QuantizedModel
from export.chat import Encoded
from export.plugins import Step


class RowsWanted(NamedTuple):
    """How many rows a variant is made with, 0 for none: what it is calibrated on, and what it is chosen by.

    `general_share` is the share of the calibration rows that are general ones, where the recipe has such rows.
    """

    calibration: int = 0
    general_share: float = 0.0
    search: int = 0


class ExportRows(NamedTuple):
    """Rows that a variant is made with; no held-out row is among them.

    `calibration` holds token ids of chat-formatted training rows, `general` the same of the general rows beside them.
    `search` has rows to measure on while settings are searched for: none of those that it is calibrated on. They are
    validation rows, and where these are too few the last `search_from_training` of them training rows.
    """

    calibration: Sequence[Sequence[int]] = ()
    general: Sequence[Sequence[int]] = ()
    search: Sequence[Encoded] = ()
    search_from_training: int = 0


class Format(Step):
    """An export format. Subclasses are frozen settings; `variants` says what is made, `quantize` makes one of it."""

    def rows_wanted(self, variant: str) -> RowsWanted:
        """The rows that a variant is made with; by default, none."""
        return RowsWanted()

    def variants(self) -> tuple[str, ...]:
        """The artifacts these settings ask for, as folder names below `export/`, in the order they are made."""
        raise NotImplementedError

    def further(self) -> tuple[str, ...]:
        """Variants to make besides, one at a time and in this order, while every file of the format fails the gate."""
        return ()

    def ingredients(self) -> tuple[str, ...]:
        """What is made on the way besides, and does not ship by itself: names that `made` is asked for."""
        return ()

    def settings_for(self, variant: str) -> dict[str, object]:
        """The settings that one variant depends on: asking for another variant must not make this one again."""
        raise NotImplementedError

    def check_installed(self) -> None:
        """Raises MissingDependencyError when an optional package is missing; imports none. By default, none is."""

    def check_model(self, config: dict[str, object]) -> None:
        """Raises ExportError or ModelError, before training, when this format cannot carry a model of `config`.

        `config` is the content of the base model's config.json.
        """
        raise NotImplementedError

    def quantize(
        self,
        variant: str,
        model: ModelFolder,
        rows: ExportRows,
        out: Path,
        made: Callable[[str], QuantizedModel],
        say: Callable[[str], None] = print,
    ) -> QuantizedModel:
        """Makes one variant in `out`, with as many of the `rows_wanted` as there are.

        `made(variant)` is a variant of the same format that was made earlier (a 16-bit GGUF to quantize from); `say`
        hears how far a long search is.
        """
        raise NotImplementedError

    def tool_versions(self) -> dict[str, str]:
        """Versions of the packages that write this format: part of the stage's key and of the artifact's record."""
        raise NotImplementedError
