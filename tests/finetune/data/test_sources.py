"""Every kind of file gives the same rows, and a broken one says where it is broken."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.errors import DataError
from finetune.data import encodings, sources
from finetune.data.sources import encoding_of, files_of, read_rows, read_snapshot

ROWS = [
    {"question": 'say "hi", please', "answer": "hi,\nthere"},
    {"question": "你好\u2028吗", "answer": "好 🙂"},
    {"question": "", "answer": "  spaces  "},
]
SHARED_ROBOT_DATA = Path(__file__).parents[4] / "shared" / "data" / "robot"


def write(path: Path, rows: list[dict[str, Any]], *, encoding: str = "utf-8") -> Path:
    """The rows in the form that the path's ending names, written by libraries and not by us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding=encoding)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    return [row.fields for row in read_rows(path)]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "JSONL"])
def test_all_kinds_give_the_same_rows(tmp_path: Path, ending: str) -> None:
    assert fields(write(tmp_path / f"rows.{ending}", ROWS)) == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path, ending: str) -> None:
    assert fields(write(tmp_path / f"rows.{ending}", ROWS, encoding="utf-8-sig")) == ROWS


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"a": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))}),
        min_size=1,
    )
)
def test_any_text_survives_jsonl_and_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("any")
    assert fields(write(folder / "rows.jsonl", rows)) == rows
    assert fields(write(folder / "rows.csv", rows)) == rows


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"n": 2}])
    write(tmp_path / "a" / "z.json", [{"n": 1}])
    write(tmp_path / "c.parquet", [{"n": 3}])
    (tmp_path / "README.md").write_text("about")
    write(tmp_path / ".cache" / "x.jsonl", [{"n": 9}])
    assert fields(tmp_path) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert [row.origin for row in read_rows(tmp_path)][1] == f"{tmp_path / 'b.jsonl'}, line 1"


def test_json_may_keep_its_rows_under_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    assert fields(path) == ROWS


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"x\ny",1\n\nz,2\n')
    assert [row.origin.rpartition(", ")[2] for row in read_rows(path)] == ["line 2", "line 5"]
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text('{"a": 1}\r\n\r\n{"a": 2}')
    assert [row.origin.rpartition(", ")[2] for row in read_rows(jsonl)] == ["line 1", "line 3"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 2,}\n', r"a\.jsonl, line 2, column 9: this is not JSON"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', r"line 2: found a list; expected an object with named fields"),
        ("a.jsonl", '{"a": 1}\n"x"\n', r"line 2: found a text; expected an object"),
        ("a.jsonl", '{"a": 1, "b": 2, "a": 3}\n', r"line 1: the field 'a' stands twice"),
        ("a.jsonl", "", r"a\.jsonl holds no rows"),
        ("a.jsonl", "\n\n", r"a\.jsonl holds no rows"),
        ("a.json", "[]", r"a\.json holds no rows"),
        ("a.json", '[\n{"a": 1},\n{"a": }\n]', r"a\.json, line 3, column 7: this is not JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', r"a\.json, line 2, column 1: this is not JSON: extra data"),
        ("a.json", '{"a": 1}', r"holds an object; expected a list of objects"),
        ("a.json", "[1]", r"a\.json, row 1: found a number"),
        ("a.csv", "", r"a\.csv holds no rows"),
        ("a.csv", "a,b\n", r"a\.csv holds no rows"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", r"line 3: found 3 fields; the header has 2 \(a, b\)"),
        ("a.csv", "a,b\n1\n", r"line 2: found 1 fields"),
        ("a.csv", "a,a\n1,2\n", r"line 1: every column needs a name of its own"),
        ("a.csv", "a;b\n1;2\n", r"found one column named 'a;b'\. Columns must be separated by commas"),
        ("a.csv", 'a,b\n"x"y,2\n', r"line 2: this is not CSV"),
        ("a.csv", 'a,b\nx,"2\n', r"line 2: this is not CSV"),
        ("a.parquet", "a,b\n1,2\n", r"a\.parquet cannot be read as Parquet"),
        ("a.txt", "hello", r"of a kind that cannot be read \(\.txt\)\. Known: \.jsonl, \.json, \.csv, \.parquet"),
        ("a.jsonl.gz", "hello", r"\(\.gz\)"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(content, newline="")
    with pytest.raises(DataError, match=expected):
        fields(path)


def test_rows_before_a_broken_line_are_not_all_there_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnot json\n')
    reader = read_rows(path)
    assert next(reader).fields == {"a": 1}
    with pytest.raises(DataError, match="line 2"):
        next(reader)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_another_encoding_is_named_with_its_byte_and_a_way_out(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"rows.{ending}", [{"a": "你好"}], encoding="gb18030")
    with pytest.raises(DataError, match=r"byte 0xc4 is not UTF-8\. Save the file as UTF-8.*iconv -f GB18030"):
        list(read_rows(path, encoding="utf-8"))


@pytest.mark.parametrize("line", [1, 2, 700])
def test_a_byte_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path, line: int) -> None:
    path = tmp_path / "rows.csv"
    # lines of all three ends, and more of them than are decoded at once
    lines = [f"tea {number},b" + ("\n", "\r", "\r\n")[number % 3] for number in range(1, 2001)]
    lines[line - 1] = "café" + lines[line - 1]
    path.write_bytes("".join(lines).encode("latin-1"))
    with pytest.raises(
        DataError, match=rf"rows\.csv, line {line}: byte 0xe9 is not UTF-8.*'CSV UTF-8'.*iconv -f LATIN1"
    ):
        list(read_rows(path))


def test_a_missing_file_shows_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "robots.jsonl", ROWS)
    with pytest.raises(DataError, match=rf"there is no file or folder .*robot\.jsonl\. In {tmp_path}: robots\.jsonl"):
        files_of(tmp_path / "robot.jsonl")
    with pytest.raises(DataError, match="does not exist either"):
        files_of(tmp_path / "no" / "robot.jsonl")


def test_what_lies_beside_a_missing_file_is_files_first_and_then_folders_of_rows(tmp_path: Path) -> None:
    write(tmp_path / "zebras.jsonl", ROWS)
    write(tmp_path / "more" / "rows.csv", ROWS)
    write(tmp_path / "runs" / "robot" / "data" / "train.jsonl", ROWS)
    write(tmp_path / ".cache" / "rows.jsonl", ROWS)
    write(tmp_path / "model" / "config.json", ROWS)
    write(tmp_path / "run" / "report.json", ROWS).with_name("recipe.yaml").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"In {tmp_path}: zebras\.jsonl, more/\.$"):
        files_of(tmp_path / "robot.jsonl")


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(DataError, match="holds no file of a kind that can be read"):
        files_of(tmp_path)


def test_a_snapshots_readme_decides_its_splits(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", [{"a": "1"}])
    write(tmp_path / "two.jsonl", [{"a": "2"}])
    readme = """---
configs:
- config_name: first
  data_files: [{split: train, path: one.jsonl}]
- config_name: second
  data_files: [{split: train, path: two.jsonl}]
---
"""
    (tmp_path / "README.md").write_text(readme)
    rows = read_snapshot(tmp_path, "hf:acme/talk", split="train", subset="second")
    assert [row.fields for row in rows] == [{"a": "2"}]
    with pytest.raises(DataError, match=r"cannot be read.*first.*data\.subset"):
        list(read_snapshot(tmp_path, "hf:acme/talk", split="train", subset=None))


CHINESE = [{"question": f"第{n}个房间扫完了吗?", "answer": "扫完了，请检查。It is done."} for n in range(2000)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_the_encoding_is_found_and_said(tmp_path: Path, ending: str, encoding: str) -> None:
    path = write(tmp_path / f"rows.{ending}", CHINESE, encoding=encoding)
    assert encoding_of(path) == encoding.removesuffix("-sig")
    assert fields(path) == CHINESE


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 4096])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_character_across_two_blocks_does_not_mislead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block_bytes: int
) -> None:
    monkeypatch.setattr(encodings, "_BLOCK_BYTES", block_bytes)
    if encoding == "utf-8":  # else a file that is not seen to be UTF-8 would be taken for it in the end
        monkeypatch.setattr(encodings, "_is_chinese_gb18030", lambda path: True)
    assert encoding_of(write(tmp_path / "rows.jsonl", CHINESE[:20], encoding=encoding)) == encoding


@pytest.mark.parametrize("text", ["café, naïve, déjà vu", "Ägyptens Gärten über Öl", "niño y señor: ¿qué?"])
def test_western_european_text_is_not_taken_for_chinese(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(f"a\n{text.replace(',', '')}\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"rows\.csv, line 2: byte 0x.. is not UTF-8.*iconv -f LATIN1"):
        list(read_rows(path))


def test_an_encoding_that_is_given_is_used_and_its_errors_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", CHINESE, encoding="gb18030")
    assert [row.fields for row in read_rows(path, encoding="gb18030")] == CHINESE
    half = tmp_path / "half.jsonl"
    half.write_bytes(path.read_bytes() + b"\xc4")
    with pytest.raises(DataError, match=r"half\.jsonl, line 2001: byte 0xc4 is not GB18030.*data\.encoding"):
        list(read_rows(half, encoding="gb18030"))
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes("\ufeff".encode("utf-16-le") + '{"a": 1}\n'.encode("utf-16-le") + b"x")
    with pytest.raises(DataError, match=r"odd\.jsonl, line 2: byte 0x78 is not UTF-16"):
        list(read_rows(odd))


def test_a_file_that_has_changed_is_looked_at_again(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", CHINESE, encoding="gb18030")
    assert encoding_of(path) == "gb18030"
    assert encoding_of(write(path, CHINESE, encoding="utf-8")) == "utf-8"


def test_a_line_cut_in_half_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "answ\n{"question": "c", "answer": "d"}\n')
    with pytest.raises(
        DataError, match=r"line 2, column 24: this is not JSON: .*It ends before the value does: is it cut"
    ):
        fields(path)


def test_a_stray_quote_is_told_with_the_line_that_it_stands_in(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"word {number},meaning {number}" for number in range(1, 500)]
    lines[99] = 'word 100,"meaning 100'
    path.write_text("question,answer\n" + "\n".join(lines) + "\n")
    with pytest.raises(
        DataError, match=r"line 101: this is not CSV.*begins in line 101 and goes on to line 500: its quote is probably"
    ):
        fields(path)
    lines[299] = 'word 300,"meaning, 300"'
    path.write_text("question,answer\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"line 101: .*begins in line 101 and goes on to line 301: its quote is prob"):
        fields(path)


def test_the_quoted_field_is_the_last_one_of_a_record_of_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"one ""line""\nand, more","two\n' + "three\n" * 50)
    with pytest.raises(DataError, match=r"line 2: this is not CSV.*begins in line 3 and goes on to line 53"):
        fields(path)


def test_a_record_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LINE_LIMIT", 2000)
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"2\n' + "x,y\n" * 5000)
    with pytest.raises(DataError, match=r"line 2: this is not CSV: found more than 2,000 characters in one record"):
        fields(path)


def test_a_field_longer_than_csvs_own_limit_is_read(tmp_path: Path) -> None:
    long = [{"a": "x" * 200_000, "b": "y"}]
    assert fields(write(tmp_path / "rows.csv", long)) == long


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_line_of_200_mib_is_refused_in_flat_memory(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    first = '{"a": "b"}\n' if ending == "jsonl" else "a\nb\n"
    with path.open("w") as file:
        file.write(first)
        file.truncate(200 * 2**20)  # zeros that take no room on disk
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"line \d: found more than 16,777,216 characters without a line break"):
            list(read_rows(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 60 * 2**20


def test_many_rows_are_read_in_flat_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", CHINESE * 20)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == len(CHINESE) * 20
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # a megabyte's block and its text are looked at; the rows are several times as much
    assert peak_bytes < 6 * 2**20 < path.stat().st_size * 2


def test_a_json_list_that_would_not_fit_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "JSON_LIMIT_BYTES", 2**20)
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "' + "x" * 2**20 + '"}]')
    with pytest.raises(DataError, match=r"rows\.json holds 1 MiB in one JSON value.*at most 1 MiB.*jq -c"):
        fields(path)


@pytest.mark.parametrize("name", ["nlu_home_commands.jsonl", "home_assistant_intents.jsonl"])
def test_real_rows_are_as_many_as_lines(name: str) -> None:
    path = SHARED_ROBOT_DATA / name
    if not path.is_file():
        pytest.skip("the real rows lie in ../shared, which this checkout does not have")
    assert len(fields(path)) == path.read_bytes().count(b"\n")
