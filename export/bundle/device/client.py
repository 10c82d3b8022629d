#!/usr/bin/env python3
"""Turns a command into one checked action, with the model that lies beside this file. It ships as it is.

    python client.py "mop the kitchen"         one command
    python client.py --lines < commands.txt    one command a line in, one JSON line out; the model is loaded once
    python client.py --server URL "..."        the same through a llama-server that serve.sh started
    python client.py --verify                  compares every file with SHA256SUMS

What comes out is a JSON object: `action`, or null and the `reason` why there is none. An action is given only if the
answer is JSON, keeps schema.json, and says nothing that known_values.json does not know of its fields. Nothing is ever
drawn by chance: the most probable token that the grammar allows is taken. So asking again would give the same answer,
and there is one retry only: an answer that was cut by its length goes on to twice the length. All else is rejected, and
what to do then is the caller's. Without a schema the action is the answer's text, and nothing is checked.

Needs Python 3.10 or newer, jsonschema, and llama-cpp-python unless --server is given.
"""

import argparse
import contextlib
import hashlib
import http.client
import importlib.metadata
import json
import os
import re
import sys
import time
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

HERE = Path(__file__).resolve().parent
SETTINGS, SCHEMA, GRAMMAR, KNOWN, SUMS = (
    "bundle.json",
    "schema.json",
    "grammar.gbnf",
    "known_values.json",
    "SHA256SUMS",
)
STATE = "prefix.state"
# How long a server may be silent, unless --seconds says otherwise.
_SECONDS_TO_WAIT = 600.0
_SECONDS_TO_LOAD = 120.0
_MOST_SECONDS = 86_400.0
# Values that are nested deeper are no action, and would take more of Python's stack than there is.
_DEEPEST = 100


class Generation(NamedTuple):
    """One answer as the model wrote it. `stopped`: it ended by itself and was not cut."""

    text: str
    tokens: int
    stopped: bool
    prompt_tokens: int
    first_token_seconds: float
    decode_seconds: float


class Model(Protocol):
    """What answers: `tokenize` reads special tokens only where asked; `generate` takes a whole prompt's token ids."""

    state: str

    def tokenize(self, text: str, special: bool) -> list[int]: ...  # noqa: D102 - as the class says

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> Generation: ...  # noqa: D102 - as the class says


class RejectedError(Exception):
    """There is no action to take; the message says why."""


def prompt_ids(prompt: Mapping[str, Any], command: str, tokenize: Callable[[str, bool], list[int]]) -> list[int]:
    """Token ids of the whole prompt. No special token is read in a command, whatever it spells.

    Raises RejectedError for an empty one, and for one that spells a token which llama.cpp reads wherever it stands.
    """
    text = unicodedata.normalize("NFC", command).strip()
    if not text:
        raise RejectedError("the command is empty")
    spelled = [token for token in prompt.get("always_read", ()) if token in text]
    if spelled:
        raise RejectedError(f"the command spells {spelled[0]}, which the model would not read as text")
    spoken = tokenize(prompt["before_command"] + text + prompt["behind_command"], False)
    return [*prompt["prefix_ids"], *spoken, *tokenize(prompt["opening"], True)]


def read_action(text: str) -> Any:
    """An answer's JSON value. Raises RejectedError where it is none, or says a key twice: which one counts is open."""
    try:
        action = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        json.dumps(action, ensure_ascii=False).encode()  # half of a character, written as an escape, is no text
        _refuse_depth(action)
    except (ValueError, RecursionError) as error:
        raise RejectedError(f"the answer is not JSON: {error}") from None
    return action


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        held = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for values in held for inner in values]
    if level:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is larger than any number there is room for")
    return value


def schema_problem(schema: Any, action: Any) -> str | None:
    """How an action breaks the schema, or None."""
    from jsonschema import Draft202012Validator, validators

    kind = validators.validator_for(schema, default=Draft202012Validator)
    error = next(iter(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(action)), None)
    return None if error is None else f"{error.json_path}: {error.message}"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each text, number and the like within a value, with the fields that lead to it; places in lists do not count.

    An empty list or object is such a value too: its field is said all the same.
    """
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield from leaves(inner, f"{path}/*")
    else:
        yield path, value


def spoken(text: str) -> str:
    """A text as it is compared: composed, in half-width characters, and without case."""
    return unicodedata.normalize("NFKC", text).casefold()


def says(command: str, value: Any) -> bool:
    """Whether a command, as `spoken`, holds a value: whole words of it, in a script that parts its words.

    A number is whole, with its sign and its decimals: neither 90 nor 5 is in "turn -90, drive 2.5", and neither 3 nor
    五 in "3万" and "十五"; both ends of a range are. What may be written in several ways (-90 as 负90, 0.5 as .5) is
    looked for in each. A number in words is of Chinese or English, and no other language.
    """
    return any(_holds(command, spelling) for spelling in _spellings(value))


def _spellings(value: Any) -> Iterator[str]:
    """The texts that say a value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield spoken(str(value)).strip()
        return
    size = str(abs(value))
    sizes = {size, size.removesuffix(".0"), size[1:] if size.startswith("0.") else size}
    for prefix in _MINUS if value < 0 else ("",):
        yield from (prefix + one for one in sizes)


def _holds(command: str, wanted: str) -> bool:
    place = command.find(wanted) if wanted else -1
    while place >= 0:
        before, behind = command[:place], command[place + len(wanted) :]
        if not _continues(before, wanted, behind):
            return True
        place = command.find(wanted, place + 1)
    return False


def _continues(before: str, wanted: str, behind: str) -> bool:
    """Whether what stands around a text makes another word or number of it."""
    if _joined(before[-1:], wanted[0]) or _joined(wanted[-1], behind[:1]):
        return True
    if _IN_HAN.fullmatch(wanted):  # a numeral, and not a word with one, such as 周三
        if _IN_HAN_OR_DIGITS.search(before[-1:]) or _IN_HAN_OR_DIGITS.match(behind):
            return True
        changed = _COUNTS_OTHERWISE_BEFORE.search(before) or _COUNTS_OTHERWISE_BEHIND.match(behind)
        return changed is not None or _is_decimal(before, wanted, behind)
    if wanted[0] in _DASHES and not _is_signed(before + wanted[0]):
        return True
    if wanted[0] in ".0123456789" and (_COUNTS_OTHERWISE_BEFORE.search(before) or _may_be_signed(before)):
        return True
    if wanted[0].isdecimal() and _is_decimal(before, wanted, behind):
        return True
    return wanted[-1].isdecimal() and _COUNTS_OTHERWISE_BEHIND.match(behind) is not None


def _is_signed(before: str) -> bool:
    """Whether a number behind this text is a negative one, for certain; behind a number's unit a dash makes a range."""
    return _SIGN_BEFORE.search(before) is not None and _NUMBER_NEAR.search(before[:-1]) is None


def _may_be_signed(before: str) -> bool:
    """The same, or whether it cannot be told: 冰箱二区-18度 and 5栋-3单元 look alike."""
    return _SIGN_BEFORE.search(before) is not None and _RANGE_BEFORE.search(before[:-1]) is None


def _is_decimal(before: str, wanted: str, behind: str) -> bool:
    """Whether a number stands beside 点 as a decimal point, as in 三点五米; 8点20 and 8点3位 are times of the day."""
    behind_point = _POINT_BEFORE.search(before) and _MEASURED.match(wanted + behind)
    return bool(behind_point) or _POINT_BEHIND.match(behind) is not None


_HAN_DIGITS, _HAN_UNITS = "零〇一二两三四五六七八九", "十百千万亿萬億"
_HAN = _HAN_DIGITS + _HAN_UNITS
_DASHES = "-‐−–"
_BELOW_ZERO = ("负", "負", "零下", "零下约", "零下大约", "零下大概", "minus", "negative")
_MINUS = (*_DASHES, *(word + space for word in _BELOW_ZERO for space in ("", " ")))
_IN_HAN, _IN_HAN_OR_DIGITS = re.compile(f"[{_HAN}]+"), re.compile(f"[0-9{_HAN}]")
# What makes another number of the digits behind it: decimals, a unit (3万5), a fraction, a power, a word for minus.
_COUNTS_OTHERWISE_BEFORE = re.compile(
    rf"(?:\d[.,]|(?:\A|[{_DASHES}\s(])\.|[{_HAN_UNITS}]|[{_HAN.replace('百', '')}]分之|\d\s?[/⁄×*^]\s?|\d[eE][-+]?"
    r"|(?:负|負|零下(?:大?约|大概)?|\b(?:minus|negative))\s*)\Z"
)
# The same behind a number; 千克 is a unit.
_COUNTS_OTHERWISE_BEHIND = re.compile(
    rf"[.,]\d|\s?[/⁄×*^]\s?[\d(]|\s\d+[/⁄]\d|\s?(?:千(?![克米瓦卡赫帕焦])|[{_HAN_UNITS.replace('千', '')}])|分之|‰"
    r"|\s*(?:hundred|thousand|million|billion|dozen)\b"
)
# Within a word a dash is no sign (room-5), nor with a space behind it, nor right behind a number or its unit: 20-25,
# 5月1日-5月3日; but in "joint 1 -90" it is one.
_SIGN_BEFORE = re.compile(rf"(?<![A-Za-z0-9)\]])[{_DASHES}]\Z")
_UNITS = (
    "[年月日号点时分秒度米元岁周天个层楼人次升斤块步圈瓦伏倍包杯张页章集档只台份位排座栋路班级°℃%]"
    "|厘米|毫米|公里|千米|毫升|公斤|千克|小时|分钟|秒钟|点钟|点半|世纪|万元|周岁|°C"
)
_RANGE_BEFORE = re.compile(rf"[0-9{_HAN}](?:{_UNITS})\Z|[0-9]\Z")
_NUMBER_NEAR = re.compile(rf"[0-9{_HAN}][\u4e00-\u9fff°℃%]{{0,3}}\Z")
# A decimal point is one between Chinese numerals (一点五, but 三点五分) and where something is measured: 3点5米.
_POINT_BEFORE = re.compile(rf"[0-9{_HAN}]点\Z")
_MEASURED = re.compile(
    rf"(?:[0-9]+(?:[米度倍秒升斤克元块伏瓦圈吨安牛折%]|公里|千米|厘米|毫米|毫升|公斤|千克|小时|分钟|摄氏度|弧度|赫兹|平方|公分|英)"
    rf"|[{_HAN_DIGITS}]+(?![分刻十半]))"
)
_POINT_BEHIND = re.compile(rf"点{_MEASURED.pattern}")


def _joined(left: str, right: str) -> bool:
    """Whether two characters side by side are within one word: letters or digits of Latin, Greek or Cyrillic script."""
    return all(one.isalnum() and ord(one) < 0x0590 for one in (left, right) if one) and bool(left and right)


def meaning_problem(known: Mapping[str, Any], action: Any, command: str) -> str | None:
    """What an action says that training never showed, or None: an unknown field, an unknown value of a field that has
    few, or words that the command does not hold where a field always repeats the command's.
    """
    said = spoken(command)
    for path, value in leaves(action):
        rule = known["fields"].get(path)
        if rule is None:
            return f"no training row has the field {path}"
        if rule["kind"] == "closed" and not any(value == one and type(value) is type(one) for one in rule["values"]):
            return f"{path}: {value!r} is none of the {len(rule['values'])} values known"
        if rule["kind"] == "quoted" and not says(said, value):
            return f"{path}: {value!r} is not in the command"
    return None


class Rules:
    """What answers are held to: the files that bundle.json names as `rules`, each with its hash.

    Raises RuntimeError for one that is missing or changed: without it anything would pass. ImportError without
    jsonschema, where there is a schema.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        for name, expected in settings["rules"].items():
            found = _sha256(folder / name) if (folder / name).is_file() else "nothing"
            if found != expected:
                raise RuntimeError(
                    f"{folder / name}: found {found[:12]}, expected {expected[:12]}: copy the bundle anew"
                )
        self.schema = _read(folder / SCHEMA) if SCHEMA in settings["rules"] else None
        self.known = _read(folder / KNOWN) if KNOWN in settings["rules"] else None
        self.grammar = (folder / GRAMMAR).read_bytes() if GRAMMAR in settings["rules"] else None
        if self.schema is not None:
            import jsonschema  # noqa: F401 - now, and not at the first answer


class Client:
    """A bundle's settings and rules, and a model that answers by them."""

    def __init__(self, settings: Mapping[str, Any], rules: Rules, model: Model) -> None:
        self.model = model
        self._settings = settings
        self._rules = rules

    def answer(self, command: Any) -> dict[str, Any]:
        """What to do for a command, and what it took. Whatever comes in or goes wrong, an answer comes out."""
        try:
            if not isinstance(command, str):
                raise RejectedError("the command is no text")
            ids = prompt_ids(self._settings["prompt"], command, self.model.tokenize)
            most = self._settings["max_new_tokens"]
            if len(ids) + most > self._settings["context_tokens"]:
                raise RejectedError(f"the command is too long: {len(ids)} tokens with its prompt")
        except RejectedError as error:
            return {"action": None, "reason": str(error)}
        except UnicodeError:
            return {"action": None, "reason": "the command is no text in UTF-8"}
        except Exception as error:  # whatever a model or a server ends in, the next command is answered
            return {"action": None, "reason": f"the model gave no answer: {_words(error)}"}
        room, attempts = self._settings["context_tokens"] - len(ids), 1
        try:
            generation = self.model.generate(ids, most)
            if not generation.stopped and room > most:
                generation, attempts = self.model.generate(ids, min(2 * most, room)), 2
        except Exception as error:  # whatever a model or a server ends in, the next command is answered
            return {"action": None, "reason": f"the model gave no answer: {_words(error)}"}
        return {**self._judged(generation, command), **generation._asdict(), "attempts": attempts}

    def _judged(self, generation: Generation, command: str) -> dict[str, Any]:
        """The action of an answer, or why it is not taken; `schema_valid` is null where there is no schema."""
        rules = self._rules
        if rules.schema is None:
            return {"action": generation.text, "reason": None, "schema_valid": None}
        valid = False
        try:
            if not generation.stopped:
                raise RejectedError(f"the answer was cut at {generation.tokens} tokens")
            action = read_action(generation.text)
            problem = schema_problem(rules.schema, action)
            if problem is not None:
                raise RejectedError(f"the answer breaks the schema: {problem}")
            valid = True
            strange = None if rules.known is None else meaning_problem(rules.known, action, command)
            if strange is not None:
                raise RejectedError(strange)
        except RejectedError as error:
            return {"action": None, "reason": str(error), "schema_valid": valid}
        return {"action": action, "reason": None, "schema_valid": True}


class LocalModel:
    """The bundle's file in this process, by llama.cpp's C interface; the prompt's beginning comes from its state file.

    `state` says where that came from: loaded, or rebuilt because the file was missing, damaged, or of another version
    or model.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], grammar: bytes | None, threads: int | None = None
    ) -> None:
        # OpenMP's threads wait by spinning: beside another program on the same cores that takes many times as long
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        # numpy, which llama_cpp imports, sets memory aside for each thread of a library that nothing here uses
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        import llama_cpp

        self._library = llama_cpp
        self._log: list[bytes] = []
        # llama.cpp keeps the pointer: the callback must live as long as the library is used
        self._keep_log = llama_cpp.llama_log_callback(
            lambda level, text, _: self._log.append(text) if level > 3 else None
        )
        llama_cpp.llama_log_set(self._keep_log, None)
        llama_cpp.llama_backend_init()
        self._batch_tokens = settings["batch_tokens"]
        self._prefix = list(settings["prompt"]["prefix_ids"])
        self._context = self._open(folder / settings["model"], settings, threads or _cores())
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._grammar, self._within, self._greedy = self._samplers(grammar)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._folder, self._settings = folder, settings
        self._state_path = folder / STATE
        self.state = self._begin()

    def tokenize(self, text: str, special: bool) -> list[int]:
        """See `Model`."""
        import ctypes

        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 1))()
        count = self._library.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, special)
        return list(ids[:count])

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> Generation:
        """See `Model`. Only what stands behind the prefix is read."""
        started = time.perf_counter()
        self._rewind()
        if self._grammar is not None:
            self._library.llama_sampler_reset(self._grammar)
        self._run(ids[len(self._prefix) :])
        data, tokens, token, first = b"", 0, self._next(), time.perf_counter()
        while not (stopped := self._library.llama_vocab_is_eog(self._vocabulary, token)) and tokens < max_new_tokens:
            data += self._bytes_of(token)
            tokens += 1
            self._run([token])
            token = self._next()
        seconds = time.perf_counter() - first
        return Generation(data.decode(errors="replace"), tokens, bool(stopped), len(ids), first - started, seconds)

    def _open(self, path: Path, settings: Mapping[str, Any], threads: int) -> Any:
        parameters = self._library.llama_model_default_params()
        # a build by GCC for AMX ends in an illegal instruction where it uses it (llama.cpp's pull request 26954)
        parameters.use_extra_bufts = b"AMX_INT8 = 1" not in self._library.llama_print_system_info()
        # weights that llama.cpp packs anew for the processor would else be in memory twice
        parameters.load_mode = self._library.LLAMA_LOAD_MODE_NONE
        self._model = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise self._refused(f"llama.cpp could not load {path}")
        wanted = self._library.llama_context_default_params()
        wanted.n_ctx = settings["context_tokens"]
        wanted.n_batch = wanted.n_ubatch = self._batch_tokens
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.swa_full = False  # a layer with a window keeps its window, and not the whole context
        wanted.type_k = wanted.type_v = getattr(self._library, f"GGML_TYPE_{settings['cache_type'].upper()}")
        context = self._library.llama_init_from_model(self._model, wanted)
        if not context:
            raise self._refused(f"llama.cpp could not set up {wanted.n_ctx} tokens of context")
        return context

    def _samplers(self, text: bytes | None) -> tuple[Any, Any, Any]:
        """The grammar, the most probable token within it, and the most probable of all."""
        library = self._library
        greedy = library.llama_sampler_init_greedy()
        if text is None:
            return None, None, greedy
        grammar = library.llama_sampler_init_grammar(self._vocabulary, text, b"root")
        if not grammar:
            raise self._refused(f"llama.cpp reads no grammar in {GRAMMAR}")
        within = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        library.llama_sampler_chain_add(within, grammar)
        library.llama_sampler_chain_add(within, library.llama_sampler_init_greedy())
        return grammar, within, greedy

    def _next(self) -> int:
        """The most probable token that the grammar allows. All others are asked only where the top one fails."""
        import ctypes

        token = int(self._library.llama_sampler_sample(self._greedy, self._context, -1))
        if self._grammar is None:
            return token
        one = self._library.llama_token_data(token, 0.0, 0.0)
        array = self._library.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        self._library.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if one.logit != 0.0:
            return int(self._library.llama_sampler_sample(self._within, self._context, -1))
        self._library.llama_sampler_accept(self._grammar, token)
        return token

    def _run(self, ids: Sequence[int]) -> None:
        import ctypes

        for start in range(0, len(ids), self._batch_tokens):
            some = ids[start : start + self._batch_tokens]
            held = (ctypes.c_int32 * len(some))(*some)  # the batch only points to it
            batch = self._library.llama_batch_get_one(held, len(some))
            if self._library.llama_decode(self._context, batch) != 0:
                raise self._refused("llama.cpp broke off")

    def _begin(self) -> str:
        if self._load_state():
            return "loaded"
        self._library.llama_memory_clear(self._memory, True)
        if self._prefix:
            self._run(self._prefix)
        self._save_state()
        return "rebuilt"

    def _rewind(self) -> None:
        """Goes back to the prefix: by cutting what stands behind it or, where the memory cannot be cut, by its file."""
        if self._prefix and self._library.llama_memory_seq_rm(self._memory, 0, len(self._prefix), -1):
            return
        if not self._load_state():
            self._library.llama_memory_clear(self._memory, True)
            if self._prefix:
                self._run(self._prefix)

    def _load_state(self) -> bool:
        import ctypes

        if not has_state_of(self._settings, self._folder):
            return False
        room = (ctypes.c_int32 * (len(self._prefix) + 1))()
        count = ctypes.c_size_t(0)
        self._library.llama_memory_clear(self._memory, True)
        read = self._library.llama_state_seq_load_file(
            self._context, str(self._state_path).encode(), 0, room, len(room), ctypes.byref(count)
        )
        return bool(read) and list(room[: count.value]) == self._prefix

    def _save_state(self) -> None:
        """Writes the state beside the bundle. Where that cannot be, the next start takes a little longer."""
        import ctypes

        ids = (ctypes.c_int32 * len(self._prefix))(*self._prefix)
        partial = self._state_path.with_name(f".{STATE}.{os.getpid()}")
        record = partial.with_name(f"{partial.name}.sha256")
        try:
            if not self._library.llama_state_seq_save_file(self._context, str(partial).encode(), 0, ids, len(ids)):
                raise OSError("llama.cpp could not write it")
            record.write_text(_state_record(self._settings, partial))
            partial.replace(self._state_path)
            record.replace(self._state_path.with_name(f"{STATE}.sha256"))
        except OSError as error:
            print(f"{self._state_path} was not written: {error}", file=sys.stderr)
            for left in (partial, record):
                left.unlink(missing_ok=True)

    def _bytes_of(self, token: int) -> bytes:
        import ctypes

        room = 256
        while True:
            piece = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(self._vocabulary, token, piece, room, 0, False)
            if count >= 0:
                return piece.raw[:count]
            room = -count

    def _refused(self, what: str) -> RuntimeError:
        said = b"".join(self._log[-4:]).decode(errors="replace").strip()
        return RuntimeError(f"{what}: {said or 'it gave no reason; is there enough memory?'}")


class ServerModel:
    """The same through llama-server: its /tokenize, /completion and /slots, as serve.sh starts it."""

    def __init__(
        self, url: str, grammar: bytes | None, *, seconds: float = _SECONDS_TO_WAIT, has_state: bool = True
    ) -> None:
        self._seconds = seconds
        if not url.startswith(("http://", "https://")):
            raise RuntimeError(f"--server {url}: expected an address that begins with http://")
        self._url = url.rstrip("/")
        # a proxy of the environment is none of this server's
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self._wait_until_loaded()
        self._grammar = None if grammar is None else grammar.decode()
        if not has_state:  # the server reads the prefix itself then
            self.state = f"not loaded: {STATE} is missing, damaged or of another model"
            return
        try:
            self._post("/slots/0?action=restore", {"filename": STATE})
            self.state = "loaded"
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.state = f"not loaded: {_words(error)}"

    def tokenize(self, text: str, special: bool) -> list[int]:
        """See `Model`."""
        asked = {"content": text, "add_special": False, "parse_special": special}
        return list(self._post("/tokenize", asked)["tokens"])

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> Generation:
        """See `Model`. The seconds are the server's own account."""
        asked = {"prompt": list(ids), "n_predict": max_new_tokens, "temperature": 0, "cache_prompt": True, "id_slot": 0}
        said = self._post("/completion", {**asked, **({} if self._grammar is None else {"grammar": self._grammar})})
        took, stopped = said["timings"], said["stop_type"] == "eos"
        return Generation(
            text=said["content"],
            tokens=said["tokens_predicted"] - stopped,  # the server counts the token that ends the turn
            stopped=stopped,
            prompt_tokens=len(ids),
            first_token_seconds=took["prompt_ms"] / 1000,
            decode_seconds=took["predicted_ms"] / 1000,
        )

    def _wait_until_loaded(self) -> None:
        """Until /health says so. Raises RuntimeError where nobody does for two minutes."""
        until, told = time.monotonic() + _SECONDS_TO_LOAD, False
        while True:
            try:
                with self._open(f"{self._url}/health", timeout=10):
                    return
            except (ValueError, http.client.InvalidURL) as error:
                raise RuntimeError(f"--server {self._url} is no address: {error}") from None
            except (OSError, http.client.HTTPException) as error:  # not there yet, still loading (503), or another
                if time.monotonic() > until:
                    raise RuntimeError(f"no llama-server answers at {self._url}: {_words(error)}") from None
            if not told:
                print(f"waiting for {self._url}, {_SECONDS_TO_LOAD:.0f} seconds at most", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.5)

    def _post(self, path: str, content: Mapping[str, Any]) -> Any:
        data, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers)
        with self._open(request, timeout=self._seconds) as response:
            return json.load(response)


def verify(folder: Path) -> list[str]:
    """The files that are not as SHA256SUMS says: missing, or of other bytes; SHA256SUMS itself where it is no list."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return [SUMS]
    listed = [line.split("  ", 1) for line in lines]
    if not all(len(one) == 2 for one in listed) or SETTINGS not in (name for _, name in listed):
        return [SUMS]
    return [name for expected, name in listed if not (folder / name).is_file() or _sha256(folder / name) != expected]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RuntimeError(f"{path} is no JSON ({error}): copy the bundle anew") from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _MOST_SECONDS:
        raise ValueError(text)
    return value


def _settings(folder: Path) -> dict[str, Any]:
    """What bundle.json holds. Raises RuntimeError where that is no bundle's settings."""
    found = _read(folder / SETTINGS)
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("prompt", "rules")):
        raise RuntimeError(f"{folder / SETTINGS} holds no bundle's settings: copy the bundle anew")
    return found


def has_state_of(settings: Mapping[str, Any], folder: Path) -> bool:
    """Whether the state file is whole and, by its record, of the model that the settings name."""
    state, record = folder / STATE, folder / f"{STATE}.sha256"
    if not state.is_file() or not record.is_file():
        return False
    return record.read_text(errors="replace") == _state_record(settings, state)


def _state_record(settings: Mapping[str, Any], state: Path) -> str:
    """The state file's hash, and that of the model which it holds the memory of; `sha256sum --check` reads it."""
    return f"{_sha256(state)}  {STATE}\n{settings['model_sha256']}  {settings['model']}\n"


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("llama-cpp-python", "jsonschema"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _say(content: Mapping[str, Any]) -> None:
    print(json.dumps(content, ensure_ascii=False, allow_nan=False), flush=True)


def _commands(lines: Iterator[str], kind: str) -> Iterator[Any]:
    """The command of each line; one that is no JSON is passed on as nothing, and refused like any other."""
    for line in lines:
        if kind == "text":
            yield line.strip()
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


def main(arguments: Sequence[str] | None = None) -> int:
    """0: an action; 1: none for at least one command, or a file that is not as listed; 2: it could not be done."""
    parser = argparse.ArgumentParser(description="Turns a command into one checked action.")
    parser.add_argument("command", nargs="*")
    parser.add_argument(
        "--lines", nargs="?", const="text", choices=["text", "json"], help="read commands, one a line, as text or JSON"
    )
    parser.add_argument("--server", metavar="URL", help="ask a llama-server, such as http://127.0.0.1:8080")
    parser.add_argument(
        "--seconds", type=_seconds, default=_SECONDS_TO_WAIT, help="how long a server may be silent (default: 600)"
    )
    parser.add_argument("--threads", type=int, help="processor threads (default: all that this process may use)")
    parser.add_argument("--verify", action="store_true", help="compare the files with SHA256SUMS, and do nothing else")
    parsed = parser.parse_args(arguments)
    if parsed.verify:
        wrong = verify(HERE)
        _say({"wrong": wrong})
        return 1 if wrong else 0
    if bool(parsed.command) == (parsed.lines is not None):
        parser.error("expected either a command or --lines, which reads commands from the standard input")
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape" if stream is sys.stdin else "strict")
    started = time.perf_counter()
    try:
        settings = _settings(HERE)
        rules = Rules(HERE, settings)  # before a model is loaded that nothing could hold to them
        model: Model
        if parsed.server:
            model = ServerModel(
                parsed.server, rules.grammar, seconds=parsed.seconds, has_state=has_state_of(settings, HERE)
            )
        else:
            model = LocalModel(HERE, settings, rules.grammar, parsed.threads)
        client = Client(settings, rules, model)
    except KeyError as error:
        print(f"client.py: {HERE / SETTINGS} says nothing of {error}: copy the bundle anew", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, ImportError, MemoryError, ValueError) as error:
        print(f"client.py: {_words(error)}", file=sys.stderr)
        return 2
    if parsed.lines:
        seconds = time.perf_counter() - started
        _say({"ready": True, "state": model.state, "seconds": seconds, "versions": _versions()})
    commands = _commands(iter(sys.stdin), parsed.lines) if parsed.lines else iter([" ".join(parsed.command)])
    taken = True
    for command in commands:
        answer = client.answer(command)
        taken = taken and answer["action"] is not None
        _say(answer)
    return 0 if taken else 1


if __name__ == "__main__":
    sys.exit(main())
