"""What an artifact is found to be: honest ones pass in every respect, and each way in which published files have been
broken is planted once and must be found, by name.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.chat import Conversation, Message, encode
from export.checks import Item, Items
from export.converter import convert
from export.errors import ModelError
from export.identity import _reading, identify
from export.loading import open_tokenizer
from tests.export import tiny_models
from tests.export.artifact_edits import Metadata, change_json, change_weights, pack_folder, rewrite_gguf
from tests.export.chat_tokenizers import PLAIN, THINKING
from tests.export.identity_cases import ROWS, Made, failed, findings, held_out, make, quantized, set_key

ALL_OF_A_GGUF = {
    *("file", "chat template", "token ids", "stop ids", "added tokens", "vocabulary", "tensor types"),
    *("tied embeddings", "settings", "weights"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may spoil."""
    return Path(shutil.copytree(made.folder, tmp_path / "copy"))


# --- honest artifacts


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("template", [PLAIN, THINKING], ids=["plain", "thinking"])
def test_honest_files_pass(architecture: tiny_models.Architecture, tied: bool, template: str, tmp_path: Path) -> None:
    made = make(tmp_path, architecture=architecture, tied=tied, template=template)
    items = held_out(made.folder, *ROWS)
    for path in (made.f16, made.q4_k_m, made.folder, pack_folder(made.folder, tmp_path / "gptq-4bit")):
        found = findings(path, made.folder, items=items)
        assert set(found) >= ALL_OF_A_GGUF
        assert [finding for finding in found.values() if not finding.ok] == []
        # with thinking off, a template with a thinking mode shows no thoughts: two conversations cannot be trained on
        asked, refused = (26, "2 conversations are refused") if template is THINKING else (30, "")
        assert f"{asked} texts of conversations and 3 held-out rows" in found["token ids"].found
        assert refused in found["token ids"].note
    thinking = findings(made.q4_k_m, made.folder, items=items, thinking=True)
    assert [finding for finding in thinking.values() if not finding.ok] == []
    assert "30 texts of conversations" in thinking["token ids"].found


def test_a_template_that_refuses_system_prompts_is_asked_the_rest(tmp_path: Path) -> None:
    template = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif -%}"
    made = make(tmp_path, template=template + tiny_models.CHAT_TEMPLATE)
    found = findings(made.f16, made.folder)["token ids"]
    assert found.ok
    assert "3 conversations are refused" in found.note


def test_a_reference_that_is_a_tokenizer_alone_is_enough(made: Made, folder: Path) -> None:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).unlink()
    assert failed(made.q4_k_m, folder) == {}
    found = findings(made.folder, folder)
    assert all(finding.ok for finding in found.values())
    assert found["tied embeddings"].found == "not compared"


def test_a_reference_that_cannot_be_read_is_an_error_and_no_finding(made: Made, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        identify("s", made.f16, "llama_cpp", folder)


# --- files that cannot be opened


def cut(path: Path, target: Path, keep: float) -> Path:
    data = path.read_bytes()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.02, 0.9, 0.999])
def test_a_gguf_cut_short_is_found_and_nothing_else_is_asked(made: Made, tmp_path: Path, keep: float) -> None:
    found = findings(cut(made.q4_k_m, tmp_path / "model-q4_k_m.gguf", keep), made.folder)
    assert set(found) == {"file"}
    assert not found["file"].ok
    assert ("cut short" if keep > 0 else "empty") in found["file"].found


def test_what_is_no_gguf_is_found(made: Made, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    assert "version" in failed(tmp_path / "x.gguf", made.folder)["file"].found
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" * 64)
    assert "begins with" in failed(tmp_path / "x.gguf", made.folder)["file"].found
    assert "not there" in failed(tmp_path / "y.gguf", made.folder)["file"].found


def test_a_file_that_holds_a_vocabulary_alone_is_found(made: Made, tmp_path: Path) -> None:
    path = rewrite_gguf(made.q4_k_m, tmp_path / "x.gguf", tensors=lambda tensors: tensors.clear())
    assert "no weights" in failed(path, made.folder)["file"].found


def test_a_vocabulary_at_which_llama_cpp_aborts_does_not_end_the_run(made: Made, tmp_path: Path) -> None:
    def double(values: Metadata) -> None:
        values["tokenizer.ggml.tokens"][300] = values["tokenizer.ggml.tokens"][301]

    found = failed(rewrite_gguf(made.q4_k_m, tmp_path / "x.gguf", double), made.folder)
    assert set(found) == {"file"}
    assert "llama.cpp broke off" in found["file"].found
    assert "GGML_ASSERT" in found["file"].found


def test_a_missing_part_of_a_split_model_is_named(made: Made, tmp_path: Path) -> None:
    part = tmp_path / "model-00001-of-00002.gguf"
    rewrite_gguf(made.q4_k_m, part, lambda values: values.update({"split.count": 2}))
    assert "model-00002-of-00002.gguf is not there" in failed(part, made.folder)["file"].found


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.5, 0.9999])
def test_a_folder_with_weights_cut_short_is_found(made: Made, folder: Path, keep: float) -> None:
    cut(made.folder / "model.safetensors", folder / "model.safetensors", keep)
    found = findings(folder, made.folder)
    assert set(found) == {"file"}
    assert not found["file"].ok
    assert ("is cut short" if keep >= 0.5 else "is no safetensors file") in found["file"].found


def test_a_missing_shard_a_broken_tokenizer_and_no_config_are_found(made: Made, folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "model.x.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "1 tensors are missing" in failed(folder, made.folder)["file"].found
    assert "b.safetensors" in failed(folder, made.folder)["file"].found
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    assert "cannot load the tokenizer" in failed(folder, made.folder)["file"].found
    (folder / "config.json").unlink()
    assert "no config.json" in failed(folder, made.folder)["file"].found


# --- planted in GGUF files


def ids_of(made: Made) -> dict[str, int]:
    return {str(token): i for i, token in open_tokenizer(made.folder).added_tokens_decoder.items()}


def without_default_system_prompt(values: Metadata) -> None:
    values["tokenizer.chat_template"] = tiny_models.CHAT_TEMPLATE


def swap_specials(values: Metadata) -> None:
    tokens = values["tokenizer.ggml.tokens"]
    a, b = tokens.index("<|im_start|>"), tokens.index("<|im_end|>")
    tokens[a], tokens[b] = tokens[b], tokens[a]


def truncate(values: Metadata) -> None:
    for name in ("tokens", "token_type"):
        values[f"tokenizer.ggml.{name}"] = values[f"tokenizer.ggml.{name}"][:380]


def reverse_merges(values: Metadata) -> None:
    values["tokenizer.ggml.merges"].reverse()


PLANTED: dict[str, tuple[Callable[[Metadata], None], dict[str, str]]] = {
    "template removed": (lambda values: values.pop("tokenizer.chat_template"), {"chat template": "none"}),
    "template of another kind": (
        set_key("tokenizer.chat_template", "{{ messages[0].content }}"),
        {"chat template": "it writes", "token ids": "at position 0"},
    ),
    "template that fails": (
        set_key("tokenizer.chat_template", "{{ messages[0].content + 1 }}"),
        {"chat template": "refuses the conversation", "token ids": "its template fails"},
    ),
    "default system prompt dropped": (
        without_default_system_prompt,
        {"chat template": "<|im_start|>user", "token ids": "at position 1"},
    ),
    "an answer's end that is none": (
        set_key("tokenizer.ggml.eos_token_id", 5),
        {"stop ids": "the file's end of sequence is 5"},
    ),
    "bos added": (
        lambda values: values.update({"tokenizer.ggml.bos_token_id": 5, "tokenizer.ggml.add_bos_token": True}),
        {"added tokens": "a plain text, 'a', becomes 5 "},
    ),
    "two special tokens swapped": (swap_specials, {"vocabulary": "2 ids with another text", "token ids": "<|im_"}),
    "vocabulary truncated": (truncate, {"vocabulary": "380 tokens; ", "token ids": "", "stop ids": "does not stop"}),
    "merges in another order": (reverse_merges, {"token ids": "at position"}),
    "another pre-tokenizer": (set_key("tokenizer.ggml.pre", "gpt-2"), {"token ids": "at position"}),
    "a stop in the middle of text": (set_key("tokenizer.ggml.eom_token_id", 70), {"stop ids": "eom token"}),
}


@pytest.mark.parametrize("plan", PLANTED)
def test_a_planted_defect_is_found_by_name(made: Made, tmp_path: Path, plan: str) -> None:
    change, expected = PLANTED[plan]
    found = failed(rewrite_gguf(made.q4_k_m, tmp_path / "x-q4_k_m.gguf", change), made.folder)
    assert set(found) == set(expected)
    for what, words in expected.items():
        assert words in found[what].found, found[what]


def test_the_rewriting_itself_plants_nothing(made: Made, tmp_path: Path) -> None:
    assert failed(rewrite_gguf(made.q4_k_m, tmp_path / "x-q4_k_m.gguf"), made.folder) == {}


@pytest.mark.parametrize("key", ["eos", "eot"])
def test_an_end_that_llama_cpp_would_forgive_is_still_found(made: Made, tmp_path: Path, key: str) -> None:
    """It knows <|im_end|> by name and would stop; other runtimes go by the id."""
    other = ids_of(made)["<|endoftext|>"]
    path = rewrite_gguf(made.f16, tmp_path / "x-f16.gguf", set_key(f"tokenizer.ggml.{key}_token_id", other))
    found = failed(path, made.folder)
    assert set(found) == {"stop ids"}
    assert f"{other} '<|endoftext|>'" in found["stop ids"].found
    assert "'<|im_end|>'" in found["stop ids"].expected


def test_a_stop_that_the_reference_has_and_llama_cpp_does_not_is_found(made: Made, folder: Path) -> None:
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[*c["eos_token_id"], 7]))
    assert "would not stop at the ids [7]" in failed(made.f16, folder)["stop ids"].found


def test_the_first_differing_token_is_shown_with_both_ids_and_texts(made: Made, tmp_path: Path) -> None:
    path = rewrite_gguf(made.f16, tmp_path / "x-f16.gguf", swap_specials)
    found = failed(path, made.folder)["token ids"]
    ids = ids_of(made)
    assert found.found == f"at position 0: id {ids['<|im_end|>']} '<|im_end|>'"
    assert found.expected == f"id {ids['<|im_start|>']} '<|im_start|>'"
    assert "30 of 30 texts" in found.note
    assert "the first is 'one turn without a system prompt'" in found.note


def test_held_out_rows_are_read_too(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary that differs only where no conversation of ours goes."""
    monkeypatch.setattr(_reading, "PROBES", {"x": _reading.PROBES["one turn with a system prompt"]})
    path = rewrite_gguf(made.f16, tmp_path / "x-f16.gguf", set_key("tokenizer.ggml.pre", "gpt-2"))
    assert failed(path, made.folder) == {}
    found = failed(path, made.folder, items=held_out(made.folder, "hello", *ROWS))["token ids"]
    assert "the first is 'held-out row 3'" in found.note


def test_an_answer_that_begins_with_white_space_is_no_mismatch_of_the_file(made: Made) -> None:
    """Training cuts the text before the answer; read as a whole, its line breaks would be one token."""
    talk = Conversation(messages=(Message(role="user", content="a"), Message(role="assistant", content="\n\n\nb")))
    tokenizer = open_tokenizer(made.folder)
    assert encode(tokenizer, talk).ids != _reading.ids_of(
        tokenizer, _reading.render(tokenizer, talk.messages, thinking=False, open_turn=False)
    )
    ids = encode(tokenizer, talk).ids
    items = Items(items=(Item(ids=ids, scored=(), prompt=ids[:4], answer="x"),), vocabulary_size=512, max_new_tokens=4)
    assert failed(made.f16, made.folder, items=items) == {}


def test_training_that_reads_otherwise_than_the_template_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode_wrongly(*arguments: Any, **more: Any) -> Any:
        right = encode(*arguments, **more)
        return right.model_copy(update={"ids": (*right.ids[:5], 7, *right.ids[6:])})

    monkeypatch.setattr(_reading, "encode", encode_wrongly)
    found = failed(made.f16, made.folder)
    assert set(found) == {"token ids"}
    assert "encoded for training and read as a whole" in found["token ids"].note
    assert found["token ids"].expected.startswith("id 7 ")


def test_another_source_that_writes_the_same_is_no_failure(made: Made, tmp_path: Path) -> None:
    path = rewrite_gguf(made.f16, tmp_path / "x-f16.gguf", set_key("tokenizer.chat_template", PLAIN + "{# hello #}"))
    found = findings(path, made.folder)
    assert all(finding.ok for finding in found.values())
    assert "another source, which writes all 30 texts" in found["chat template"].note


def test_padding_beyond_the_real_ids_is_allowed_and_said(made: Made) -> None:
    note = findings(made.f16, made.folder)["vocabulary"].note
    known = len(open_tokenizer(made.folder))
    assert note.startswith(f"{tiny_models.MODEL_VOCABULARY_SIZE - known} more ids")


# --- planted in folders


def test_a_folder_that_stops_elsewhere_is_found(made: Made, folder: Path) -> None:
    ids = ids_of(made)
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=ids["<|endoftext|>"]))
    found = failed(folder, made.folder)
    assert set(found) == {"stop ids"}
    assert "without the turn's end" in found["stop ids"].found
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[*ids.values(), 9]))
    assert "it stops at 9" in failed(folder, made.folder)["stop ids"].found
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[ids["<|im_end|>"]]))
    assert "does not stop at" in failed(folder, made.folder)["stop ids"].found
    change_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"))
    assert "the tokenizer's end of sequence" in failed(folder, made.folder)["stop ids"].found


def test_a_folder_with_another_tokenizer_is_found(made: Made, folder: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        first, second = list(vocabulary)[5:7]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]

    change_json(folder / "tokenizer.json", rename)
    assert "2 ids with another text" in failed(folder, made.folder)["vocabulary"].found
    shutil.copyfile(made.folder / "tokenizer.json", folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(tiny_models.CHAT_TEMPLATE, encoding="utf-8")
    assert set(failed(folder, made.folder)) == {"chat template", "token ids"}
    (folder / "chat_template.jinja").unlink()
    assert failed(folder, made.folder)["chat template"].found == "none"


def test_a_folder_whose_matrices_are_too_short_is_found(made: Made, folder: Path) -> None:
    name = "model.embed_tokens.weight"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name][:300].clone()}))
    assert f"{name} has 300 rows" in failed(folder, made.folder)["vocabulary"].found


def add_endoftext(folder: Path, token: int) -> None:
    """Makes a folder's tokenizer put <|endoftext|> in front of every text."""

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    def add(content: dict[str, Any]) -> None:
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, sequence("A")],
            "pair": [sequence("A"), sequence("B")],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [token], "tokens": ["<|endoftext|>"]}},
        }

    change_json(folder / "tokenizer.json", add)
    change_json(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="TokenizersBackend"))


def test_what_is_added_to_a_text_is_what_the_reference_adds(made: Made, folder: Path, tmp_path: Path) -> None:
    token = ids_of(made)["<|endoftext|>"]
    add_endoftext(folder, token)
    found = failed(folder, made.folder)
    assert "<|endoftext|>" in found["added tokens"].found
    assert failed(Path(shutil.copytree(folder, tmp_path / "same")), folder) == {}
    adding = {"tokenizer.ggml.bos_token_id": token, "tokenizer.ggml.add_bos_token": True}
    file = rewrite_gguf(made.f16, tmp_path / "x-f16.gguf", lambda values: values.update(adding))
    assert failed(file, folder) == {}
    assert set(failed(file, made.folder)) == {"added tokens"}
    found = failed(made.f16, folder)
    assert set(found) == {"added tokens"}
    assert "<|endoftext|>" in found["added tokens"].expected


# --- a base model as the reference: its template ends turns with one token, its files name another


@pytest.fixture
def base(folder: Path, made: Made) -> Path:
    """A copy that is what Qwen's base models are."""
    change_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token="<|endoftext|>"))
    for name in ("generation_config.json", "config.json"):
        change_json(folder / name, lambda c: c.update(eos_token_id=ids_of(made)["<|endoftext|>"]))
    return folder


def test_an_exact_copy_of_a_base_model_passes_and_its_end_is_said(made: Made, base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "exact"))
    items = held_out(made.folder, *ROWS)
    found = findings(copy, base, items=items)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert "<|im_end|>" in found["stop ids"].note
    assert "neither it nor the reference stops" in found["stop ids"].note
    end = ids_of(made)["<|endoftext|>"]

    def of_base(values: Metadata) -> None:
        values.update({"tokenizer.ggml.eos_token_id": end, "tokenizer.ggml.eot_token_id": end})

    found = findings(rewrite_gguf(made.f16, tmp_path / "x-f16.gguf", of_base), base, items=items)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert "it stops at the turn's end" in found["stop ids"].note


def test_a_file_that_stops_at_the_turn_end_is_no_worse_than_its_base(made: Made, base: Path) -> None:
    found = findings(made.f16, base)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert "too, at which the reference does not" in found["stop ids"].note
    assert failed(made.folder, base) == {}


def test_another_end_than_the_bases_is_still_found(made: Made, base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "exact"))
    change_json(copy / "tokenizer_config.json", lambda c: c.update(eos_token="<|im_start|>"))
    assert "end of sequence is" in failed(copy, base)["stop ids"].found
    change_json(copy / "generation_config.json", lambda c: c.update(eos_token_id=7))
    assert "it does not stop at" in failed(copy, base)["stop ids"].found


def test_a_reference_whose_template_refuses_everything_says_why(made: Made, folder: Path) -> None:
    refusing = "{%- if messages|length > 0 %}{{ raise_exception('nothing is good enough') }}{% endif -%}"
    (folder / "chat_template.jinja").write_text(refusing, encoding="utf-8")
    with pytest.raises(ModelError, match="nothing is good enough"):
        identify("s", made.f16, "llama_cpp", folder)
    # one that refuses all but what is asked to find the turn's end
    (folder / "chat_template.jinja").write_text(
        "{%- if messages[0].content != '?' and messages[0].role %}{{ raise_exception('only ?') }}{% endif -%}"
        + tiny_models.CHAT_TEMPLATE,
        encoding="utf-8",
    )
    with pytest.raises(ModelError, match=r"refuses the turns user, assistant: only \?"):
        identify("s", made.f16, "llama_cpp", folder)


# --- its settings and its weights


def test_a_file_says_what_was_looked_at(made: Made) -> None:
    assert "no engine has run it" in findings(made.folder, made.folder)["file"].found
    assert "its weights were not run" in findings(made.f16, made.folder)["file"].found


def test_words_of_a_publishers_own_in_a_config_are_no_settings(made: Made, folder: Path) -> None:
    change_json(folder / "config.json", lambda c: c.update(unsloth_fixed=True, initializer_range=0.5))
    assert failed(folder, made.folder) == {}
    change_json(folder / "config.json", lambda c: c.update(max_position_embeddings=64, rms_norm_eps=1e-3))
    found = failed(folder, made.folder)
    assert set(found) == {"settings"}
    assert "max_position_embeddings is 64 and not 1024; rms_norm_eps is 0.001" in found["settings"].found


def test_a_tensor_of_zeros_is_like_another_and_unlike_the_rest(tmp_path: Path) -> None:
    made = make(tmp_path, architecture="qwen2")
    name = "model.layers.0.self_attn.k_proj.bias"
    copy = Path(shutil.copytree(made.folder, tmp_path / "zeroed"))
    change_weights(copy, lambda tensors: tensors[name].zero_())
    for reference, path in ((copy, made.folder), (made.folder, copy), (copy, made.f16)):
        found = failed(path, reference)
        assert set(found) == {"weights"}, (reference, path)
    assert failed(Path(shutil.copytree(copy, tmp_path / "same")), copy) == {}
    assert failed(quantized(convert(copy, "x", copy)[0], "q8_0", copy), copy) == {}


@pytest.mark.parametrize("kind", ["f16", "q4_k_m", "gptq-4bit", "folder"])
def test_one_scaled_matrix_is_found(made: Made, folder: Path, tmp_path: Path, kind: str) -> None:
    change_weights(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].mul_(2.0))
    path = {"f16": made.f16, "q4_k_m": made.q4_k_m, "folder": made.folder}.get(kind)
    found = failed(path or pack_folder(made.folder, tmp_path / kind), folder)
    assert set(found) == {"weights"}
    assert found["weights"].found.startswith("1 of 2")
    assert ("up_proj" if kind in ("folder", "gptq-4bit") else "ffn_up") in found["weights"].found
