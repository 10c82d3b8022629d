"""Which rows an export is calibrated on, and which its settings are chosen by: never held-out ones.

A file that is calibrated on the rows of a domain alone keeps the domain and may lose what the model can do besides, so
that a format can ask for general rows among them (`export.formats.RowsWanted`).
"""

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from export.chat import Conversation, Encoded, encode
from export.chat_tokenizer import load_tokenizer
from export.formats import ExportRows, RowsWanted
from export.stage import Inputs
from finetune.data import Splits
from finetune.data.mixing import drawn, rows_for, unlike_measured

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowsToDraw:
    """The rows of a run: `training` as they were trained on, the domain's own, and general ones where there are any.

    `tokenizer` is the folder that holds it.
    """

    def __init__(
        self,
        training: Splits,
        domain: Splits,
        general: Splits | None,
        tokenizer: Path,
        *,
        seed: int,
        thinking: bool,
    ) -> None:
        self._training, self._domain, self._general = training, domain, general
        self._tokenizer_folder, self._seed, self._thinking = tokenizer, seed, thinking

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self._tokenizer_folder)

    def inputs(self, wanted: RowsWanted) -> Inputs:
        """What the rows that are drawn depend on."""
        if not any(wanted):
            return {"calibration": None, "general": None, "seed": None, "thinking": None}
        general = self._general if wanted.general_share else None
        return {
            "calibration": self._training.fingerprint,
            "general": None if general is None else general.fingerprint,
            "seed": self._seed,
            "thinking": self._thinking,
        }

    def draw(self, wanted: RowsWanted) -> ExportRows:
        """As many rows as are wanted, drawn with the seed, or all that there are.

        Of fewer domain rows fewer general ones are drawn, so that the share is kept.
        """
        if self._general is None or not wanted.general_share:
            calibration = self._sample(list(self._training.conversations("train")), wanted.calibration)
            general: list[Conversation] = []
        else:
            own = round(wanted.calibration * (1 - wanted.general_share))
            calibration = self._sample(list(self._domain.conversations("train")), own)
            general = self._general_rows(rows_for(wanted.general_share, len(calibration)))
        ids = [row.ids for row in map(self._encoded, calibration)]
        search, trained_on = self._search_rows(wanted.search, ids)
        return ExportRows(ids, [row.ids for row in map(self._encoded, general)], search, trained_on)

    def _sample(self, rows: list[Conversation], wanted: int) -> list[Conversation]:
        return random.Random(self._seed).sample(rows, min(wanted, len(rows)))

    def _general_rows(self, wanted: int) -> list[Conversation]:
        """General training rows that resemble none on which the domain is measured."""
        assert self._general is not None
        rows = list(self._general.conversations("train"))
        return [rows[place] for place in drawn(unlike_measured(self._domain, rows), wanted, self._seed)]

    def _search_rows(self, wanted: int, calibration: Sequence[tuple[int, ...]]) -> tuple[tuple[Encoded, ...], int]:
        """Rows to choose an export's settings by: of validation, then of training where nothing was calibrated on them;
        and how many are of training. Never held-out ones: what is judged by them must not have been chosen by them.
        """
        order = random.Random(self._seed)
        validation, others = (list(self._domain.conversations(split)) for split in ("valid", "train"))
        order.shuffle(validation)
        order.shuffle(others)
        used, chosen = set(calibration), list[Encoded]()
        trained_on = 0
        for conversation, is_training in (*((c, False) for c in validation), *((c, True) for c in others)):
            if len(chosen) == wanted:
                break
            encoded = self._encoded(conversation)
            if encoded.ids not in used and encoded.scored_positions:
                chosen.append(encoded)
                trained_on += is_training
        return tuple(chosen), trained_on

    def _encoded(self, conversation: Conversation) -> Encoded:
        return encode(self._tokenizer, conversation, thinking=self._thinking)
