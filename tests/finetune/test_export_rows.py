"""Rows that exports are calibrated on and chosen by: mixed as asked, the same every time, and none that judges."""

import pytest

from export.chat import encode
from export.formats import RowsWanted
from finetune.data.splits import fingerprint, write_conversations
from finetune.export_rows import RowsToDraw
from tests.export.chat_tokenizers import build_tokenizer
from tests.finetune.data.small_splits import conversation, small_splits


@pytest.fixture
def splits(tmp_path):
    return small_splits(tmp_path / "domain", "mop", 60), small_splits(tmp_path / "general", "sky", 90)


def _rows(splits, wanted, seed=0, *, general=True):
    domain, other = splits
    tokenizer = domain.folder.parent / "tokenizer"
    build_tokenizer("plain").save_pretrained(tokenizer)
    drawing = RowsToDraw(domain, domain, other if general else None, tokenizer, seed=seed, thinking=False)
    return drawing.draw(wanted)


def _ids(splits, name):
    return {encode(build_tokenizer("plain"), row).ids for row in splits.conversations(name)}


def test_the_share_is_of_all_calibration_rows(splits):
    domain, general = splits
    found = _rows(splits, RowsWanted(40, 0.25))
    assert (len(found.calibration), len(found.general)) == (30, 10)
    assert set(found.calibration) <= _ids(domain, "train")
    assert set(found.general) <= _ids(general, "train")
    assert found == _rows(splits, RowsWanted(40, 0.25))
    assert found != _rows(splits, RowsWanted(40, 0.25), seed=1)


def test_few_rows_of_the_domain_keep_the_share(splits):
    found = _rows(splits, RowsWanted(400, 0.5))
    assert (len(found.calibration), len(found.general)) == (60, 60)
    found = _rows(splits, RowsWanted(400, 0.75))
    assert (len(found.calibration), len(found.general)) == (60, 90)  # of 180, all that there are


@pytest.mark.parametrize(("share", "general"), [(0.0, True), (0.5, False)])
def test_without_general_rows_all_are_of_training(splits, share, general):
    found = _rows(splits, RowsWanted(40, share), general=general)
    assert (len(found.calibration), len(found.general)) == (40, 0)
    assert set(found.calibration) <= _ids(splits[0], "train")


def test_a_general_row_that_resembles_what_judges_calibrates_nothing(splits):
    domain, general = splits
    planted = conversation("mop held_out", 3)
    write_conversations(general.folder / "train.jsonl", [planted, *general.conversations("train")])
    changed = general.model_copy(update={"fingerprint": fingerprint(general.folder)})
    found = _rows((domain, changed), RowsWanted(120, 0.75))
    assert len(found.general) == 90
    assert encode(build_tokenizer("plain"), planted).ids not in found.general


def test_rows_to_search_by_are_of_validation_first_and_calibrate_nothing(splits):
    domain, _ = splits
    found = _rows(splits, RowsWanted(20, search=50))
    assert {row.ids for row in found.search} < _ids(domain, "valid")
    assert found.search_from_training == 0
    found = _rows(splits, RowsWanted(20, search=90))
    ids = {row.ids for row in found.search}
    assert len(ids) == 90
    assert found.search_from_training == len(ids - _ids(domain, "valid"))
    assert _ids(domain, "valid") < ids
    assert not ids & (set(found.calibration) | _ids(domain, "held_out"))
    assert _rows(splits, RowsWanted(20)).search == ()
