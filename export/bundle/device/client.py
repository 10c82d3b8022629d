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
import functools
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
from decimal import Decimal
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
STATE_RECORD = f"{STATE}.sha256"
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
    """How an action breaks the schema, or None. Nothing is fetched that a schema refers to."""
    from jsonschema import Draft202012Validator, validators
    from referencing import Registry

    kind = validators.validator_for(schema, default=Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER, registry=Registry())
    error = next(iter(validator.iter_errors(action)), None)
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
    """A text as it is compared: composed, in half-width characters, and without case.

    A comma that parts is followed by a space, whichever comma it was; one between digits stays as it is.
    """
    return _PARTING_COMMA.sub(", ", unicodedata.normalize("NFKC", _WIDE_COMMA.sub(", ", text)).casefold())


def says(command: str, value: Any) -> bool:
    """Whether a command, as `spoken`, holds a value: a number that it says, or whole words of it.

    A number is compared by what it is worth: 8 is in "08:30", 1000 in "1,000", -90 in 负90, and neither 5 nor 90 is in
    "turn -90, drive 2.5". Words are whole in a script that parts them, and never cut a number, a time or a weekday:
    三楼 is not in 十三楼, 8点 not in 8点30分, and five not in "twenty five". Numbers that are not in digits are words
    here. What can be read in two ways is not held.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _holds(command, spoken(str(value)).strip())
    wanted = Decimal(str(value))
    return any(number.value == wanted for number in _numbers(command))


class _Number(NamedTuple):
    """A number within a command, with its sign; without a `value` where it is another than its digits, or unclear."""

    start: int
    end: int
    value: Decimal | None


def _holds(command: str, wanted: str) -> bool:
    """Whether words stand in a command without cutting a word, a number, a time or a weekday."""
    numbers = _numbers(command)
    whole = [(number.start, number.end) for number in numbers]
    spelled, days, times = ([m.span() for m in one.finditer(command)] for one in (_SPELLED, _WEEKDAY, _TIME))
    often = [match.span() for match in _HOW_OFTEN.finditer(command)]
    start = command.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        cut = _joined(command[max(0, start - 1) : start], wanted[0]) or _runs_on(command, end)
        cut = cut or _is_cut(start, end, [*whole, *spelled, *days])
        cut = cut or ((start, end) not in whole and _is_cut(start, end, times))  # an hour by itself is a number
        cut = cut or any(start <= begin and end == stop for begin, stop in often)
        if wanted[0] in _DASHES and wanted[1:2].isdecimal():  # a range's dash is no sign
            cut = cut or not any(n.start == start and n.value is not None for n in numbers)
        if not cut:
            return True
        start = command.find(wanted, start + 1)
    return False


def _is_cut(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(begin < end and start < stop and not start <= begin <= stop <= end for begin, stop in spans)


@functools.lru_cache(maxsize=16)
def _numbers(command: str) -> tuple[_Number, ...]:
    found, place = list[_Number](), 0
    while match := _NUMBER.search(command, place):
        place = match.end()
        if match["size"] is None:
            continue
        listed = _LIST.match(command, match.start("size"))  # 1,3,5 is three numbers, and 1,3 may be one
        if listed and not match["minus"] and not _SIGN_BEFORE.search(command[: match.start()][-_NEAR:]):
            place = listed.end()
            found += [
                _Number(m.start(), m.end(), Decimal(m[0])) for m in _IN_LIST.finditer(command, match.start(), place)
            ]
            continue
        start, size = _signed(command, match)
        clock = _TIME_OF_DAY.search(command[max(0, match.start() - _NEAR) : match.start()]) is not None
        if other := (_OTHERWISE_BUT_TIMES if clock else _OTHERWISE).match(command, place):
            size, place = None, other.end()
        elif below := _BELOW_ZERO_BEHIND.match(command, place):
            size, place = None if size is None else -abs(size), below.end()
        found.append(_Number(start, place, size))
    return tuple(found)


def _signed(command: str, match: re.Match[str]) -> tuple[int, Decimal | None]:
    """Where a number begins, its sign with it, and what it is worth as far as that is clear from what stands before."""
    start, digits = match.start(), match["size"]
    begin = match.start("size")
    before = command[max(0, begin - _NEAR) : begin]
    if _IN_HAN.fullmatch(digits) or _joined(before[-1:], digits[0]) or _runs_on(command, match.end()):
        size = None
    elif "," in digits and not _CURRENCY.search(before) and set(digits.split(",")[1:]) != {"000"}:
        size = None  # 101,102 may be two rooms
    else:
        size = Decimal(digits.replace(",", ""))
    if match["minus"]:
        return start, None if size is None else -size
    if _UNCLEAR_BEFORE.search(before):
        return start, None
    signed = _SIGN_BEFORE.search(before)
    if signed is None or _RANGE_BEFORE.search(before[: signed.start()]):
        return start, size
    ahead = before[: signed.start()]
    certain = _TOWARDS.search(ahead) or not _NUMBER_NEAR.search(ahead)  # 冰箱二区-18度 may be a range
    return begin - len(before) + signed.start(), -size if certain and size is not None else None


def _runs_on(command: str, end: int) -> bool:
    """Whether a word goes on behind this place; a number's unit is a word of its own (5m, 25C, 7pm)."""
    if command[end - 1].isdecimal() and _UNIT_LETTERS.match(command, end):
        return False
    return _joined(command[end - 1], command[end : end + 1])


def _joined(left: str, right: str) -> bool:
    """Whether two characters side by side are within one word: letters or digits of Latin, Greek or Cyrillic script."""
    return all(one.isalnum() and ord(one) < 0x0590 for one in (left, right) if one) and bool(left and right)


_NEAR = 24  # characters before a number that can change it
_WIDE_COMMA, _PARTING_COMMA = re.compile(r"\s*[，、]\s*"), re.compile(r"\s*,(?!\d)\s*")
_HAN_DIGITS, _HAN_UNITS = "零〇一二两兩三四五六七八九几幾壹贰貳叁參肆伍陆陸柒捌玖", "十百千万亿萬億廿卅拾佰仟"
_HAN = _HAN_DIGITS + _HAN_UNITS
_IN_HAN = re.compile(f"[{_HAN}]+")
_DASHES = "-‐−–"
_WEEK = "(?:[周週]|星期|礼拜|禮拜)[一二三四五六]"
# 周三 is a day, and 一周三次 and 每周三小时 are how often and how long.
_COUNTED = f"(?:次|遍|回(?![家来來去])|趟|圈|米|小[时時]|分[钟鐘]|天(?![气氣])|[个個]|[到至][0-9{_HAN}])"
_WEEKDAY = re.compile(rf"(?<![0-9{_HAN}])(?<![0-9{_HAN}][个個]){_WEEK}(?!{_COUNTED})")
_HOW_OFTEN = re.compile(rf"(?:(?<=[0-9{_HAN}])|(?<=[0-9{_HAN}][个個])){_WEEK}|{_WEEK}(?={_COUNTED})")
# A number with its word for minus; percent is no fraction, and a weekday no number: both are passed by.
_BELOW = "(?:零度以下|零下|冰点以?下)(?:大?约|大概|差不多)?有?"
_NUMBER = re.compile(
    rf"百分之|{_WEEKDAY.pattern}"
    rf"|(?P<minus>(?:负|負|{_BELOW}|\b(?:minus|negative)\b(?:\s+(?:about|around|roughly))?\s*[{_DASHES}]?)\s*)?"
    rf"(?P<size>(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,])|\d+)(?:\.\d+)?|(?<![^{_DASHES}\s(])\.\d+|[{_HAN}]+)"
)
_LIST = re.compile(r"(?!\d+(?:,\d{3})+(?![\d,]))\d+(?:\.\d+)?(?:,\d+(?:\.\d+)?){2,}(?![\d.,])")
_IN_LIST = re.compile(r"\d+(?:\.\d+)?")
# Within a word a dash is no sign (room-5), nor with a space behind it, nor right behind a number or its unit: 20-25,
# 5月1日-5月3日; but in "joint 1 -90" and behind "to" it is one.
_CURRENCY = re.compile(r"[a-z]{0,2}[$€£¥₹₩₽฿]\s?\Z")
_SIGN_BEFORE = re.compile(rf"(?<![A-Za-z0-9)\]])[{_DASHES}](?:[a-z]{{0,2}}[$€£¥₹₩₽฿])?\Z")
_TOWARDS = re.compile(r"(?:[到至为為是成]|\b(?:to|at|is))\s*\Z")
# The second end of a range below zero, and a dash with spaces around it where a number is awaited.
_UNCLEAR_BEFORE = re.compile(
    rf"(?:负|負|{_BELOW}|\b(?:minus|negative)\s)\s*[0-9.{_HAN}]+\s*[度°]?\s*(?:[{_DASHES}到至~]|\bto\b)\s*\Z"
    rf"|(?:[到至为為是]|\b(?:to|at|by|is))\s*[{_DASHES}]\s+\Z"
)
_UNITS = (
    "[年月日号點点时時分秒度米元岁周天个個层樓楼人次升斤块塊步圈瓦伏倍包杯张页章集档只台份位排座栋路班级°℃%]"
    "|厘米|毫米|公里|千米|毫升|公斤|千克|小[时時]|分[钟鐘]|秒[钟鐘]|[点點][钟鐘半]|世纪|万元|周岁|°C"
)
_RANGE_BEFORE = re.compile(rf"[0-9{_HAN}](?:{_UNITS})\Z|[0-9]\Z", re.IGNORECASE)
_NUMBER_NEAR = re.compile(rf"[0-9{_HAN}][\u4e00-\u9fff°℃%]{{0,3}}\Z")
_UNIT_LETTERS = re.compile(
    r"(?:[mcdk]?m[23]?|[mk]?g|[mc]?l|m?s|secs?|mins?|h|hrs?|[cf]|k?wh?|m?v|m?ah|[kmg]?hz|rpm|[km]ph|db|k?pa|[ap]m|st|nd|rd|th"
    r"|x|in|ft|lbs?|oz|rad|deg[cf]?|degrees?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|times|steps?|percent"
    r"|inch(?:es)?|feet|met(?:er|re)s?|o'clock|[ap]\.m\.?)(?![a-z0-9])"
)
# Numbers of several English words: five is not in "twenty five", "five hundred", "minus five" and "five thirty".
_ONES = "(?:one|two|three|four|five|six|seven|eight|nine)"
_TEENS = "(?:ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen)"
_TENS = "(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
_UP_TO_99 = rf"(?:{_TENS}(?:[\s-]{_ONES})?|{_TEENS}|{_ONES})"
_SCALE = "(?:hundred|thousand|million|billion)"
_SPELLED = re.compile(
    rf"\b(?:(?:minus|negative)\s+)?(?:(?:{_UP_TO_99}|a)\s{_SCALE}(?:\s(?:and\s)?(?:{_UP_TO_99}|{_SCALE}))*"
    rf"|(?:{_ONES}|{_TEENS})[\s-](?:{_TENS}(?:[\s-]{_ONES})?|{_TEENS})|{_UP_TO_99})"
    rf"(?:\s+and\s+an?\s+(?:half|quarter)|\s+point(?:\s(?:{_ONES}|zero|oh))+)?\b"
)
# What is measured behind a decimal point: 3点5米 and 一点五, but 8点20, 三点零五分 and 8点3位 are times of the day.
_MEASURED = (
    r"(?:[0-9]+(?=[米度倍秒升斤克元块塊伏瓦圈吨安牛折%]|公里|千米|厘米|毫米|毫升|公斤|千克|小[时時]|分[钟鐘]|摄氏度|弧度|赫兹|平方|公分|英)"
    rf"|[{_HAN_DIGITS}]+(?![{_HAN_DIGITS}刻十半]|分(?![钟鐘])))"
)
_MINUTES = rf"(?:[0-5]?[0-9]|[{_HAN}]{{1,3}})分(?![钟鐘])|(?:[0-5][0-9]|[{_HAN}]{{2,3}})(?!{_UNITS}|[0-9{_HAN}])"
_TIME = re.compile(rf"(?:[0-9]{{1,2}}|[{_HAN}]+)[点點时時](?:半|[一三]刻|{_MINUTES})|[0-9]{{1,2}}:[0-9]{{2}}")
# What makes another number of the digits before it: more digits, a half, a fraction, a power, a unit (3万5; 千克 is one
# of its own), a word, and what stands behind a measure without one (1米75).
_OTHERWISE_BUT_TIMES = re.compile(
    r"(?:[.,]\d+)+|(?:\s?[/⁄×*^]\s?\(?[\d.]+)+|\s\d+[/⁄]\d+|e[-+]?\d+"
    rf"|(?<=[{_HAN}])[0-9]+|又[0-9{_HAN}]+(?:[/⁄][0-9]+)?|\s?(?!点|點)(?:{_UNITS})?半(?![径夜天空])|\s+and\s+an?\s+(?:half|quarter)\b"
    rf"|\s?(?:千(?![克米瓦卡赫帕焦])|[{_HAN_UNITS.replace('千', '')}])[0-9{_HAN}]*|分之[0-9{_HAN}]+|‰"
    r"|\s*(?:hundred|thousand|million|billion|trillion|dozen)\b|\s+point\s+[0-9]+"
    rf"|[块塊元圆圓][0-9{_HAN}]+[毛角]|[米块塊元](?:[0-9]+(?![0-9])|[{_HAN_DIGITS}]+(?![{_HAN}]))(?!{_UNITS}|[遍下回趟])"
)
_OTHERWISE = re.compile(rf"[点點]{_MEASURED}|{_OTHERWISE_BUT_TIMES.pattern}")
_TIME_OF_DAY = re.compile("(?:早上|早晨|上午|中午|下午|傍晚|晚上|夜里|夜裡|半夜|凌晨|[今明后後][早晚])\\Z")
_BELOW_ZERO_BEHIND = re.compile(
    r"\s*(?:°\s?[cf]?|degrees?(?:\s+(?:c|f|celsius|fahrenheit|centigrade))?|[cf])?\s*below\s+(?:zero|0|freezing)\b"
)


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
        except Exception as error:  # a schema that refers to nothing, or a number that no rule can be held to
            return {
                "action": None,
                "reason": f"the answer could not be checked: {_words(error)}",
                "schema_valid": valid,
            }
        return {"action": action, "reason": None, "schema_valid": True}


class LocalModel:
    """The bundle's file in this process, by llama.cpp's C interface; the prompt's beginning comes from its state file.

    `state` says where that came from: loaded, or rebuilt because the file was missing, damaged, or of another version
    or model.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], grammar: bytes | None, threads: int | None = None
    ) -> None:
        _require_its_size(folder / settings["model"], settings["model_bytes"])
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
            record.replace(self._state_path.with_name(STATE_RECORD))
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
        self._wait_until_loaded(min(seconds, _SECONDS_TO_LOAD))
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

    def _wait_until_loaded(self, seconds: float) -> None:
        """Until /health says so. Raises RuntimeError where nobody does for so long."""
        until, told = time.monotonic() + seconds, False
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
                print(f"waiting for {self._url}, {seconds:.0f} seconds at most", file=sys.stderr, flush=True)
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


def _require_its_size(model: Path, expected: int) -> None:
    """Raises RuntimeError for a model that is plainly another. Its hash takes seconds: `--verify` compares it."""
    found = model.stat().st_size
    if found != expected:
        raise RuntimeError(f"{model}: found {found:,} bytes, expected {expected:,}: copy the bundle anew")


def has_state_of(settings: Mapping[str, Any], folder: Path) -> bool:
    """Whether the state file is whole and, by its record, of the model that the settings name."""
    state, record = folder / STATE, folder / STATE_RECORD
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
    except ImportError as error:
        print(f"client.py: {_words(error)}: see INSTALL.md for what to install", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, MemoryError, ValueError) as error:
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
