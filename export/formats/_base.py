"""What an export format is: settings in, one or more checked files out."""

from collections.abc import Callable, Sequence
from pathlib import Path

from export.artifacts import ModelFolder, QuantizedModel
from export.plugins import Step


class Format(Step):
    """An export format. Subclasses are frozen settings; `variants` says what is made, `quantize` makes one of it."""

    def calibration_rows_wanted(self) -> int:
        """How many training rows the format wants to be calibrated on; 0 when it is not calibrated."""
        return 0

    def variants(self) -> tuple[str, ...]:
        """The artifacts these settings ask for, as folder names below `export/`, in the order they are made."""
        raise NotImplementedError

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
        calibration: Sequence[Sequence[int]],
        out: Path,
        made: Callable[[str], QuantizedModel],
    ) -> QuantizedModel:
        """Makes one variant in `out`. `calibration` holds token ids of chat-formatted training rows.

        `made(variant)` is a variant of the same format that was made earlier (a 16-bit GGUF to quantize from).
        """
        raise NotImplementedError

    def tool_versions(self) -> dict[str, str]:
        """Versions of the packages that write this format: part of the stage's key and of the artifact's record."""
        raise NotImplementedError
