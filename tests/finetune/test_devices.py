"""Device profiles that ship and one's own, the probe, and `fieldtune fit` on a tiny model."""

import json
import os
from pathlib import Path

import pytest
import yaml

from export.device import probing
from export.device.probing import probe
from export.errors import RecipeError
from export.formats import ExportRows
from export.formats._gguf_quantize import quantize_file
from export.formats.gguf import Gguf
from export.readers.gguf import read_gguf
from finetune import cli, shipped
from finetune.devices import device_text, find_device, load_device, shipped_devices, write_device
from finetune.fitting import Limits, fit_model
from tests.html_reading import parsed

PI = shipped.folder("devices") / "raspberry_pi_5_8gb.yaml"
REAL_QWEN = Path(os.environ.get("FIELDTUNE_REAL_QWEN", "~/.cache/real-qwen/Qwen2.5-Coder-0.5B-Instruct")).expanduser()


def silent(_line):
    pass


@pytest.fixture
def small_board(tmp_path):
    """Writes a profile with so many megabytes of usable memory, and gives its path."""

    def write(megabytes, rate=1e9):
        figure = {"value": 1e12, "source": "a test"}
        content = {
            "title": "a small board",
            "processor": "one core",
            "formats": ["gguf"],
            "memory_bytes": figure,
            "usable_memory_bytes": {"value": megabytes * 1e6, "source": "a test"},
            "bandwidth_bytes_per_second": figure,
            "decode_bytes_per_second": {"value": rate, "source": "a test"},
            "prefill_flops_per_second": figure,
        }
        path = tmp_path / "board.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("name", shipped_devices())
def test_every_shipped_profile_is_sound_and_says_where_each_figure_is_from(name):
    device = find_device(name, silent)
    assert "gguf" in device.formats
    figures = [getattr(device, key) for key in type(device).model_fields if hasattr(getattr(device, key), "source")]
    assert len(figures) >= 7
    assert all(len(figure.source) > 10 for figure in figures)


def test_the_profile_of_the_raspberry_pi_gives_the_published_speeds():
    # tokens/s that were published of Q4_K_M files with short contexts: 28.1, 10.0 to 12.2, 5.2
    for name, published in (("Qwen2.5-0.5B", 28.1), ("Qwen2.5-1.5B", 11.1), ("Qwen2.5-3B", 5.2)):
        found = fit_model(
            f"Qwen/{name}", load_device(PI), Limits(context_tokens=256), types=("q4_k_m",), caches=("f16",), say=silent
        )
        assert found.fit.candidates[0].speed.tokens_per_second == pytest.approx(published, rel=0.1)


def test_sizes_of_known_bases_are_near_the_published_files():
    # MB of Q4_K_M files on the hub: measuring them to the byte needs the vocabulary, which is not here
    for name, published in (("Qwen2.5-0.5B", 398), ("Qwen2.5-1.5B", 986), ("Qwen2.5-3B", 1930), ("Qwen2.5-7B", 4683)):
        found = fit_model(f"Qwen/{name}", load_device(PI), Limits(context_tokens=256), types=("q4_k_m",), say=silent)
        assert not found.is_exact
        assert found.fit.candidates[0].size_bytes / 1e6 == pytest.approx(published, abs=1)


def test_an_unknown_device_is_an_error_with_the_nearest_name():
    with pytest.raises(RecipeError, match="Did you mean 'raspberry_pi_5_8gb'"):
        find_device("raspbery_pi_5_8gb", silent)


def test_a_profile_is_refused_with_every_mistake_at_once(tmp_path):
    content = yaml.safe_load(PI.read_text(encoding="utf-8"))
    content["decode_bytes_per_secnd"] = content.pop("decode_bytes_per_second")
    content["memory_bytes"] = {"value": 8}
    content["formats"] = ["onnx"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        find_device(str(path), silent)
    said = str(error.value)
    assert "mine.yaml" in said
    assert "Did you mean 'decode_bytes_per_second'" in said
    assert "memory_bytes.source: this key is needed" in said
    assert "formats" in said
    assert "onnx" in said


def test_a_profile_cannot_have_more_usable_memory_than_memory(tmp_path):
    content = yaml.safe_load(PI.read_text(encoding="utf-8"))
    content["usable_memory_bytes"]["value"] = 9_000_000_000
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RecipeError, match="usable_memory_bytes is 9,000,000,000, more than memory_bytes"):
        load_device(path)


def test_a_probed_profile_is_written_and_read_again(tmp_path):
    device = probe(silent, types=("q8_0", "q4_0"), repeats=1)
    assert set(device.rates) == {"q8_0", "q4_0"}
    assert set(device.cache_rates) == {"f16", "q8_0", "q4_0"}
    write_device(device, tmp_path / "here.yaml")
    again = load_device(tmp_path / "here.yaml")
    assert again.packs == device.packs
    assert device_text(again) == device_text(device)


@pytest.mark.parametrize(("load", "told"), [(0.1, False), (1.9, True)])
def test_a_machine_that_is_not_idle_is_told(monkeypatch, load, told):
    monkeypatch.setattr(probing, "available_cores", lambda: 2)
    monkeypatch.setattr(probing, "busy_processors", lambda: load)
    monkeypatch.setattr(probing, "one_pass", lambda types, settings: {})
    monkeypatch.setattr(probing, "profile_of", lambda passes, threads: load_device(PI))
    said = []
    found = probe(said.append, repeats=1)
    assert any("1.9 of 2 processors" in line for line in said) == told
    assert found.busy_processors == (1.9 if told else 0)


def test_a_profile_that_was_measured_on_a_busy_machine_says_so_wherever_it_is_used(model, tmp_path, capsys):
    write_device(load_device(PI).model_copy(update={"busy_processors": 1.9}), tmp_path / "busy.yaml")
    assert cli.main(["fit", str(model), "--device", str(tmp_path / "busy.yaml"), "--context", "256"]) == 0
    assert "not idle: 1.9 processors were in use by others" in capsys.readouterr().out


def test_a_probe_does_not_begin_where_its_result_cannot_go(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probing, "probe", lambda say: pytest.fail("it was measured"))
    (tmp_path / "recipe.yaml").write_text("name: mine")
    assert cli.main(["device", "probe", "--out", str(tmp_path / "recipe.yaml")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "recipe.yaml").read_text() == "name: mine"
    assert cli.main(["device", "probe", "--out", str(tmp_path / "none/board.yaml")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_example_that_the_documentation_has_is_a_profile(tmp_path):
    (_, example, *_) = (shipped.folder("devices") / "README.md").read_text(encoding="utf-8").split("```")
    (tmp_path / "board.yaml").write_text(example.removeprefix("yaml"), encoding="utf-8")
    assert load_device(tmp_path / "board.yaml").usable_memory_bytes.value == 300e6


def test_device_list_names_every_profile(capsys):
    assert cli.main(["device", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in shipped_devices())


def test_what_fits_is_shown_with_status_0_and_the_sizes_of_the_files(model, small_board, capsys):
    assert cli.main(["fit", str(model), "--device", small_board(1000), "--context", "256"]) == 0
    shown = capsys.readouterr().out
    assert "fits: f16 is the largest" in shown
    assert "file sizes are exact" in shown


def test_nothing_fits_with_status_1_names_the_memory_and_what_would_do(model, small_board, capsys):
    arguments = ["fit", str(model), "--device", small_board(20), "--context", "1024", "--types", "q8_0"]
    assert cli.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "nothing fits: memory: the smallest, q8_0 with a q4_0 cache, needs" in shown
    assert "20.0 MB are usable" in shown
    assert "MB of usable memory (q8_0 with a q4_0 cache)" in shown


def test_too_slow_a_device_names_the_speed_that_can_be_had(model, small_board, capsys):
    arguments = ["fit", str(model), "--device", small_board(1000, rate=1e5), "--context", "256", "--types", "q8_0"]
    assert cli.main([*arguments, "--min-tps", "100"]) == 1
    shown = capsys.readouterr().out
    assert "nothing fits: speed: the fastest, q8_0 with a q4_0 cache, reaches" in shown
    assert "--min-tps 0" in shown


def test_the_page_draws_every_type_and_tells_every_cache(model, small_board, tmp_path, capsys):
    page = tmp_path / "fit.html"
    arguments = ["fit", str(model), "--device", small_board(60), "--context", "256", "--types", "q8_0,q4_0"]
    assert cli.main([*arguments, "--json", "--html", str(page)]) in (0, 1, 3)
    found = json.loads(capsys.readouterr().out)
    read = parsed(page.read_text(encoding="utf-8"))
    rows = [[cell.text() for cell in row.children if not isinstance(cell, str)] for row in read.all("tr")]
    shown = [(row[0], row[1], row[-1].split(":")[0].split(" ")[0]) for row in rows[1:]]
    assert shown == [(c["file_type"], c["cache_type"], c["verdict"].split(" ")[0]) for c in found["candidates"]]
    memory, speed = (chart for chart in read.all("svg", role="img"))
    drawn = [text.text() for text in memory.all("text")]
    assert [text for text in drawn if text.startswith("q")] == ["q8_0", "q4_0"]
    assert any(text.startswith("usable: 60.0 MB") for text in drawn)
    assert len(list(speed.all("circle"))) == 2


def test_json_has_every_type_with_every_cache(model, small_board, capsys):
    arguments = ["fit", str(model), "--device", small_board(1000), "--context", "256", "--types", "q8_0,q4_0"]
    assert cli.main([*arguments, "--cache", "f16,q8_0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    pairs = [(candidate["file_type"], candidate["cache_type"]) for candidate in found["candidates"]]
    assert pairs == [("q8_0", "f16"), ("q8_0", "q8_0"), ("q4_0", "f16"), ("q4_0", "q8_0")]
    assert found["verdict"] == "fits"
    assert found["sizes_are_exact"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--types", "q8_1"], "Did you mean 'q8_0'"),
        (["--cache", "q9_0"], "unknown type of cache 'q9_0'"),
        (["--context", "2048"], "was trained on 1,024 at most"),
        (["--prompt-tokens", "256"], "leaves no room for an answer"),
    ],
)
def test_what_cannot_be_asked_is_an_error_with_status_2(model, small_board, capsys, arguments, said):
    assert cli.main(["fit", str(model), "--device", small_board(1000), "--context", "256", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_types_are_not_asked_of_a_file_that_has_its_own(tiny_qwen, small_board, tmp_path, capsys):
    made = Gguf(types=()).quantize("gguf-f16", tiny_qwen, ExportRows(), tmp_path, {}.__getitem__).path
    quantize_file(made, "q8_0", tmp_path / "model-q8_0.gguf", None, None)
    asked = ["fit", str(tmp_path / "model-q8_0.gguf"), "--device", small_board(1000), "--context", "256"]
    assert cli.main([*asked, "--types", "q4_0"]) == 2
    assert "model-q8_0.gguf is quantized already; expected a 16-bit model" in capsys.readouterr().err


def test_a_folder_of_one_file_and_the_embedded_model_are_looked_at_too(tiny_qwen, small_board, tmp_path, capsys):
    made = Gguf(types=()).quantize("gguf-f16", tiny_qwen, ExportRows(), tmp_path, {}.__getitem__).path
    for model in (str(made.parent), "starter"):
        asked = ["fit", model, "--device", small_board(1000), "--context", "256", "--prompt-tokens", "200"]
        assert cli.main(asked) == 0, capsys.readouterr().err


def test_a_gguf_file_of_no_model_is_an_error(small_board, tmp_path, capsys):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "")
    writer.add_type("imatrix")
    writer.kv_data[0].pop("general.architecture", None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert cli.main(["fit", str(tmp_path / "x.gguf"), "--device", small_board(1000), "--context", "256"]) == 2
    assert "names no architecture" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_an_error(small_board, capsys):
    assert cli.main(["fit", "./nothing", "--device", small_board(1000), "--context", "256"]) == 2
    assert "there is no model ./nothing" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.skipif(not (REAL_QWEN / "config.json").is_file(), reason=f"no real Qwen at {REAL_QWEN}")
def test_sizes_of_a_real_qwen_are_exact_to_the_byte(tmp_path):
    from export.converter import convert, convert_header
    from export.device.sizes import planned_file
    from export.formats._gguf_quantize import quantize_file

    skeleton = tmp_path / "skeleton.gguf"
    convert_header(REAL_QWEN, "real", skeleton)
    source, _ = convert(REAL_QWEN, "real", tmp_path)
    content = read_gguf(skeleton)
    for file_type in ("q8_0", "q4_k_m", "q4_0", "iq4_nl", "q5_k_m", "q6_k"):
        made = tmp_path / f"{file_type}.gguf"
        quantize_file(source, file_type, made)
        assert planned_file(skeleton, content, file_type).size_bytes == made.stat().st_size, file_type
        made.unlink()
