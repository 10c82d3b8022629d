"""Finds and masks what may name a person: e-mail addresses, phone numbers, id numbers, and URLs.

Tuned for precision, so that masking leaves dates, doses and arithmetic alone. What is a valid number is left to
libraries that follow the issuers: `phonenumbers` (Google's libphonenumber) and `python-stdnum`. This module decides
where to ask them, and when a row of digits that happens to be valid is still no phone number.

Not found: addresses spelt out ("jo at example dot org"), hosts without a path ("example.org": it names an organisation
more often than a person), passports, postal addresses, names.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from phonenumbers import PhoneNumberMatch

PersonalKind = Literal["email", "phone", "id_number", "url"]

PLACEHOLDERS: dict[PersonalKind, str] = {
    "email": "[email]",
    "phone": "[phone]",
    "id_number": "[id number]",
    "url": "[url]",
}


class Found(NamedTuple):
    """One finding in a text: its kind and where it stands."""

    kind: PersonalKind
    start: int
    end: int


Span = tuple[int, int]


def find_personal(text: str) -> list[Found]:
    """Every finding, in order, none overlapping another; positions are those of `text` as it was given.

    A URL owns the digits and addresses within it, an e-mail address the digits within it, an id number those that
    would make a phone number.
    """
    plain = text if text.isascii() else text.translate(_narrowing())
    has_digits = _DIGIT.search(plain) is not None
    finders: list[tuple[PersonalKind, Callable[[str], list[Span]]]] = [("url", _urls), ("email", _emails)]
    if has_digits:
        finders += [("id_number", _id_numbers), ("phone", _phones)]
    found: list[Found] = []
    for kind, finder in finders:
        spans = finder(plain)
        found += [Found(kind, start, end) for start, end in spans]
        plain = _blanked(plain, spans)
    return sorted(found, key=lambda one: one.start)


def mask_personal(text: str) -> str:
    """`text` with a placeholder of its kind in place of every finding: plain words, which no tokenizer treats apart.

    A number in JSON becomes a text: what was JSON stays JSON.
    """
    found = find_personal(text)
    if not found:
        return text
    masked = _replaced(text, found, "")
    return _replaced(text, found, '"') if _is_json(text) and not _is_json(masked) else masked


def _replaced(text: str, found: list[Found], quote: str) -> str:
    """`text` with placeholders; with a `quote` around those that stand where JSON has a bare value."""
    parts = []
    done = 0
    for one in found:
        placeholder = PLACEHOLDERS[one.kind]
        is_bare = quote and text[: one.start].rstrip()[-1:] in (":", ",", "[")
        parts += [text[done : one.start], f"{quote}{placeholder}{quote}" if is_bare else placeholder]
        done = one.end
    return "".join([*parts, text[done:]])


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def shown_partly(text: str, found: Found) -> str:
    """A finding for a report, most of it hidden, so that the report itself gives nobody away: `jo…@…`, `138…`."""
    value = text[found.start : found.end]
    if found.kind == "email":
        local = re.split("[@＠]", value)[0]
        return f"{local[: 2 if len(local) > 3 else 1]}…@…"
    if found.kind == "url":
        opening = re.match(r"(?:\w+[:：][/／]{2})?(?:[wｗ]{3}[.．])?", value, re.IGNORECASE)
        shown = opening.end() if opening else 0
        return f"{value[: shown + 3]}…"
    return f"{value[:3]}…"


@cache
def _narrowing() -> dict[int, str]:
    """For `str.translate`: full-width signs and digits of every script, one character for one, so that positions stay.

    NFKC would change lengths. Full-width punctuation that ends a sentence or brackets a remark is left as it is, for it
    also ends a URL; phonenumbers knows full-width parentheses itself. Made when first needed: it takes some 10 ms.
    """
    wide = [chr(code) for code in range(0xFF01, 0xFF5F)]
    return {
        **{ord(sign): chr(ord(sign) - 0xFEE0) for sign in wide if sign.isalnum() or sign in "＠：．／－＋＿～"},
        **dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-"),
        **dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x3000), " "),
        **{code: str(unicodedata.digit(chr(code))) for code in range(0x660, 0x1FC00) if chr(code).isdecimal()},
    }


_BLANK = "\0"
_DIGIT = re.compile("[0-9]")


def _blanked(text: str, spans: list[Span]) -> str:
    """`text` with what is accounted for made unreadable, at the same length."""
    for start, end in spans:
        text = f"{text[:start]}{_BLANK * (end - start)}{text[end:]}"
    return text


# A scheme, or www., or a host of a common ending that goes on with a path. The characters are those of RFC 3986.
_URL = re.compile(
    r"""(?<![A-Za-z0-9])(?:https?|ftps?|wss?)://[A-Za-z0-9\[][\w\-.~:/?#\[\]@!$&'()*+,;=%]*
    |(?<![A-Za-z0-9@.\-/])www\.[a-z0-9][a-z0-9\-]*\.[a-z0-9][\w\-.~:/?#\[\]@!$&'()*+,;=%]*
    |(?<![A-Za-z0-9@.\-/])[a-z0-9](?:[a-z0-9\-]{0,62}\.){1,5}(?:com|org|net|edu|gov|info|io|cn|uk|me|tv|co|cc)
     /[\w\-.~:/?#\[\]@!$&'()*+,;=%]+""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_URL_SIGN = re.compile(r"://|\bwww\.|\.[a-z]{2,4}/", re.IGNORECASE | re.ASCII)


def _urls(text: str) -> list[Span]:
    """URLs without the punctuation that a sentence adds: a closing bracket belongs only if it was opened within."""
    if not _URL_SIGN.search(text):
        return []
    spans = []
    for match in _URL.finditer(text):
        url = match[0]
        while url[-1] in ".,;:!?'*~" or any(url[-1] == b and url.count(a) < url.count(b) for a, b in ("()", "[]")):
            url = url[:-1]
        spans.append((match.start(), match.start() + len(url.rstrip("(["))))
    return spans


# The common form of an address (RFC 5322's dot-atom, without its rarer signs), Latin letters with accents included.
# Lengths are bounded (RFC 5321: 64 before the @), so that a long row of letters costs no quadratic time.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9À-ɏ_])[A-Za-z0-9À-ɏ_][A-Za-z0-9À-ɏ_.+%\-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![A-Za-z])"
)
_FILE_NAME = re.compile(r"\.(?:png|jpe?g|gif|webp|svg|py|js|css)$", re.IGNORECASE)


def _emails(text: str) -> list[Span]:
    """Addresses, but not the names of pictures ("icon@2x.png")."""
    if "@" not in text:
        return []
    return [match.span() for match in _EMAIL.finditer(text) if not _FILE_NAME.search(match[0])]


def _id_numbers(text: str) -> list[Span]:
    """Numbers that were issued to one person or account, each valid by the rules of its issuer."""
    spans: list[Span] = []
    for pattern, valid_span in _ID_NUMBERS:
        for match in pattern.finditer(text):
            span = valid_span(match)
            if span and all(span[1] <= start or end <= span[0] for start, end in spans):
                spans.append(span)
    return spans


def _identity_card(match: re.Match[str]) -> Span | None:
    """China's resident identity card: place, date of birth and the check digit of GB 11643-1999.

    The old form of 15 digits has neither century nor check digit: it is valid if its completion to 18 digits is.
    """
    from stdnum.cn import ric

    number = re.sub("[ -]", "", match[0]).upper()
    if len(number) == 15:
        longer = f"{number[:6]}19{number[6:]}0"
        number = longer[:-1] + ric.calc_check_digit(longer)
    return match.span() if ric.is_valid(number) else None


def _social_security(match: re.Match[str]) -> Span | None:
    """A US social security number: areas, groups and serials that were never issued are left out."""
    from stdnum.us import ssn

    return match.span() if ssn.is_valid(match["number"]) else None


def _payment_card(match: re.Match[str]) -> Span | None:
    """A payment card: an issuer's first digits at that issuer's length, and Luhn's check digit (ISO/IEC 7812-1)."""
    from stdnum import luhn

    number = re.sub("[ -]", "", match[0])
    return match.span() if _CARD_ISSUERS.fullmatch(number) and luhn.is_valid(number) else None


def _bank_account(match: re.Match[str]) -> Span | None:
    """An IBAN (ISO 13616): the country's structure and two check digits; words that follow in capitals are cut off."""
    from stdnum import iban

    number = match[1]
    while len(number) >= 15:
        if iban.is_valid(number):
            return match.start(), match.start() + len(number)
        number = number[: max(number.rfind(" "), number.rfind("-"), 0)]
    return None


_CARD_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|62\d{14,17}|(?:6011|64[4-9]\d|65\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
_ID_NUMBERS: list[tuple[re.Pattern[str], Callable[[re.Match[str]], Span | None]]] = [
    (re.compile(r"(?<![0-9A-Za-z.])[1-8]\d{5}[ -]?\d{8}[ -]?\d{3}[\dXx](?![0-9A-Za-z])", re.ASCII), _identity_card),
    (re.compile(r"(?<![0-9A-Za-z.])[1-8]\d{14}(?![0-9A-Za-z])", re.ASCII), _identity_card),
    (re.compile(r"(?<![0-9A-Za-z.\-])(?=[2-6])\d(?:[ -]?\d){12,18}(?![0-9A-Za-z\-])", re.ASCII), _payment_card),
    (re.compile(r"(?<![0-9A-Za-z.\-/])(?P<number>\d{3}-\d\d-\d{4})(?![0-9A-Za-z\-/])", re.ASCII), _social_security),
    (
        re.compile(r"(?:SSN|social security (?:number|no\.?))(?: is)?[ :#]{0,3}(?P<number>\d{9})(?!\d)", re.I | re.A),
        _social_security,
    ),
    (
        re.compile(r"(?<![0-9A-Za-z])(?=([A-Z]{2}\d\d(?:[ -]?[A-Z0-9]){11,30}(?![A-Za-z0-9])))", re.ASCII),
        _bank_account,
    ),
]

# Where phonenumbers is asked at all: seven digits with little between them, possibly with a plus or bracket before.
_RUN = re.compile(r"[+(（]{0,2}[0-9](?:[ ().\-/~（）]{0,3}[0-9]){6,}")
_REGIONS = ("CN", "US", "GB")
# A number that is not valid is tried in parts; in a table of digits that must have an end.
_MOST_TRIES = 200

_NUMBER = r"[0-9][0-9.,]*+"
_YEAR = r"(?:1[0-9]|20)[0-9]{2}"
_DATE = (
    rf"(?:{_YEAR}(?P<s1>[-/.])(?:0?[1-9]|1[0-2])(?P=s1)(?:3[01]|[12][0-9]|0?[1-9])"
    rf"|(?:3[01]|[12][0-9]|0?[1-9])(?P<s2>[-/.])(?:3[01]|[12][0-9]|0?[1-9])(?P=s2){_YEAR})"
)
_UNIT = (
    r"(?:(?:[mkµμn]?g|mcg|[mkcµμn]?m|[mµμ]?l|[kMG]?Hz|[KMG]B|kcal|cal|IU|units?|people|dollars?|years?|pixels?|res)\b"
    r"|[万亿元年人米克%℃°]|美元|公里|千米|毫[克升米]|平方)"
)
# Digits that are accounted for otherwise, each with an example of what it takes out. IP addresses and ISBNs of 13
# digits need no line here: phonenumbers lets none of them through. Nor does it ranges of years, but they are frequent
# in abstracts, and not asking about them is five times as quick.
_NOT_A_PHONE = re.compile(
    "|".join(
        [
            r"<<[^<>\n]{0,200}>>",  # <<10/2=5>>, GSM8K's marked arithmetic
            rf"(?<![0-9])(?<![0-9][-./]){_DATE}(?![0-9])(?:\s?[-~]\s?[0-9]{{1,2}}[-/.][0-9]{{1,2}}[-/.]{_YEAR})?",
            rf"(?<![0-9])(?<![0-9][-./ ()]){_YEAR}\s?[-~/]\s?{_YEAR}(?![0-9]|[-./ ][0-9]{{3}})",  # 1990-1995
            r"(?<![0-9.])[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])",  # 1,200,000
            r"(?<![0-9.])[0-9]+\.[0-9]+(?![0-9]|\.[0-9])",  # 3.141592653
            rf"[$€£¥￥]\s?{_NUMBER}",
            rf"(?<![0-9.,]){_NUMBER}\s?[*×÷]\s?{_NUMBER}",  # 1024 * 7680000
            # 450,000 - 2000 = 448000
            rf"(?<![0-9.,]){_NUMBER}(?:\s?[-+*/×÷]\s?\$?{_NUMBER}){{1,12}}\s?=(?:\s?[-$]{{0,2}}{_NUMBER})?",
            # 10 000 mg, 2000-10000元; a phone number that a unit seems to follow begins with 0 or is a mobile one
            rf"(?<![0-9])(?<![0-9][-. )])(?!0|1[3-9][0-9]{{9}})[0-9]+(?: [0-9]{{3}})*(?:\s?[-~]\s?[0-9]+)?\s?{_UNIT}",
            r"\b(?:ISBN|ISSN|PMID|PMCID|PMC|NCT|DOI|(?:order|invoice|item|model|serial|tracking) (?:no\.?|number|id))"
            r"[\s:#(]{0,3}[0-9Xx][0-9Xx\-./]*",
            r"(?:订单|运单|快递|单|编|批|书|刊|型)号[码:： 是为]{0,3}[0-9][0-9\-]*",  # 订单号：13800001111
        ]
    ),
    re.IGNORECASE,
)

# Words after which even a bare row of digits is taken for a phone number; "or" and a bracket follow another number.
_CUE = re.compile(
    r"\b(?:call|dial|phone|tel|telephone|fax|tty|tdd|mobile|cell|whatsapp|hotline|text|sms|ring|contact)\b"
    r"|电话|電話|手机|手機|致电|拨打|撥打|热线|熱線|传真|联系|联络|座机|号码",
    re.IGNORECASE,
)
_CUE_REACH = 24


def _phones(text: str) -> list[Span]:
    """Phone numbers as written in China, the US and Britain, and anywhere with a plus before the country's code."""
    if not _RUN.search(text):
        return []
    open_text = _NOT_A_PHONE.sub(lambda match: _BLANK * len(match[0]), text)
    spans: list[Span] = []
    for run in _RUN.finditer(open_text):
        for span in _phones_in(open_text, run.start(), run.end(), spans[-1][1] if spans else None):
            if not spans or spans[-1][1] <= span[0]:
                spans.append(span)
    return spans


def _phones_in(text: str, start: int, end: int, last_end: int | None) -> list[Span]:
    """The phone numbers in one run of digits, in order; `last_end` is where the phone number before it ends."""
    from phonenumbers import Leniency, PhoneNumberMatcher

    # a little more on both sides: the matcher looks at the letter before and after, and reads extensions
    # (nothing before a plus, for it fails on "(+33 1 ...)")
    opening = text.find("+", start, start + 3)
    opening = max(0, start - 2) if opening < 0 else opening
    piece = text[opening : end + 10]
    near = last_end is not None and start - last_end <= _CUE_REACH
    cued = near or _CUE.search(text, max(0, start - _CUE_REACH), start) is not None
    spans: list[Span] = []
    for region in _REGIONS:
        matcher = PhoneNumberMatcher(piece, region, leniency=Leniency.STRICT_GROUPING, max_tries=_MOST_TRIES)
        for match in matcher:
            # the matcher takes the bracket that opens "(2024561111)", and leaves the one that closes it
            unpaired = match.raw_string[0] in "(（" and not re.search("[)）]", match.raw_string)
            span = (opening + match.start + unpaired, opening + match.end)
            free = all(span[1] <= other[0] or other[1] <= span[0] for other in spans)
            if free and span[0] < end and _convincing(match, region, cued or bool(spans)):
                spans.append(span)
    return sorted(spans)


def _convincing(match: "PhoneNumberMatch", region: str, cued: bool) -> bool:
    """Whether a valid number is written as people write phone numbers, or stands where one is announced.

    Many rows of ten digits are valid US numbers and many of eight are Chinese service numbers (PMIDs look so), so that
    bare digits count only for a Chinese mobile number, or after a word such as "call".
    """
    from phonenumbers import PhoneNumberType, number_type

    raw = match.raw_string
    if cued or raw.startswith("+"):
        return True
    if raw.isdigit():
        return region == "CN" and len(raw) == 11 and number_type(match.number) == PhoneNumberType.MOBILE
    groups = re.findall("[0-9]+", raw)
    if " - " in raw or " / " in raw or max(map(len, groups)) < 3:
        return False
    # groups with nothing but spaces between are columns of a table, unless the trunk prefix 0 begins them
    chinese_mobile = len(groups[0]) == 3 and groups[0][0] == "1"
    return bool(re.search(r"[-.()（）/]", raw)) or raw.startswith("0") or chinese_mobile
