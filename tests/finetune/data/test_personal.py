import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.personal import PLACEHOLDERS, Found, find_personal, mask_personal, shown_partly

# Numbers here are nobody's: those of standards and libraries' documentation, of films (Ofcom's drama numbers), of
# payment cards' test accounts, a public switchboard, or rows of consecutive digits.


def kinds_and_values(text: str) -> list[tuple[str, str]]:
    return [(one.kind, text[one.start : one.end]) for one in find_personal(text)]


@pytest.mark.parametrize(
    "value",
    [
        "jo@example.org",
        "123456@qq.com",
        "j.o+news@mail.example.co.uk",
        "müller@example.de",
        "jo＠example．org",
        "a_b@x.io",
    ],
)
@pytest.mark.parametrize("around", ["{}", "写信到{}，谢谢", "(mail: {}).", "QQ邮箱{}。", "mailto:{}?subject=1", "{}13"])
def test_email_addresses_are_found_to_the_letter(value, around):
    assert kinds_and_values(around.format(value)) == [("email", value)]


@pytest.mark.parametrize(
    "value",
    [
        "13812345678",
        "138 1234 5678",
        "138-1234-5678",
        "+86 138 1234 5678",
        "１３８１２３４５６７８",
        "010-62781234",
        "400-810-8888",
        "(202) 456-1111",
        "202-456-1111",
        "202.456.1111",
        "1-800-438-4380",
        "+1 202 456 1111",
        "020 7946 0958",
        "+44 20 7946 0958",
        "+33 1 42 68 53 00",
    ],
)
@pytest.mark.parametrize("around", ["{}", "电话{}。", "手机：{}，谢谢", "Ring {}, please.", "2013-04-05 {}", "({})"])
def test_phone_numbers_are_found_to_the_letter(value, around):
    assert kinds_and_values(around.format(value)) == [("phone", value)]


def test_bare_digits_that_are_no_chinese_mobile_number_need_a_word_that_announces_them():
    assert kinds_and_values("2024561111") == []
    assert kinds_and_values("Call 2024561111 or (3014965248)") == [("phone", "2024561111"), ("phone", "3014965248")]
    assert len(find_personal("Call any of us at 2024561111 or, in the evening, 3014965248")) == 2


@pytest.mark.parametrize(
    "value",
    [
        "11010519491231002X",  # the example of GB 11643-1999
        "11010519491231002x",
        "110105 19491231 002X",
        "１１０１０５１９４９１２３１００２Ｘ",
        "110105491231002",
        "536-90-4399",
        "4111 1111 1111 1111",
        "4111111111111111",
        "378282246310005",
        "GB82 WEST 1234 5698 7654 32",
        "DE89370400440532013000",
    ],
)
@pytest.mark.parametrize("around", ["{}", "身份证{}。", "编号为：{}，请核对", "No. {} (old)", "{} AND MORE WORDS"])
def test_id_numbers_are_found_to_the_letter(value, around):
    assert kinds_and_values(around.format(value)) == [("id_number", value)]


@pytest.mark.parametrize(
    "value",
    [
        "110105194912310021",  # the check digit
        "110105491331002",  # the thirteenth month
        "990105491231002",  # no such province
        "666-90-4399",  # an area that is not issued
        "4111111111111112",  # Luhn
        "2100000000000005",  # Luhn holds, but no issuer begins so
        "DE88370400440532013000",  # the check digits
        "0.4111111111111111",
    ],
)
def test_what_no_issuer_could_have_issued_is_no_id_number(value):
    assert kinds_and_values(value) == []


@pytest.mark.parametrize(
    "value",
    [
        "https://example.org/13812345678?to=jo@example.org",
        "http://example.org/a_(b)",
        "www.example.org",
        "weibo.com/u/1234567890",
        "ftp://files.example.org/x.zip#1",
    ],
)
@pytest.mark.parametrize("around", ["{}", "见{}，谢谢", "（{}）", "[here]({}).", "Look at {}, please!", "<{}>"])
def test_urls_are_found_without_the_sentences_punctuation_and_own_what_is_in_them(value, around):
    assert kinds_and_values(around.format(value)) == [("url", value)]


@pytest.mark.parametrize(
    "text",
    [
        "2013-04-05",
        "on 05.04.2013 and 2013/4/5 12:30",
        "01.04.2000-31.12.2000",
        "20130405123045",
        "1,200,000",
        "16,128,000-3,294,000",
        "10 000 mg and 1 000 000 IU",
        "2000-10000元",
        "1990-1995",
        "1896～1900 1913",
        "ISBN 978-7-302-12345-6",
        "ISBN 7302123456",
        "9787302123456",
        "PMID: 10340286",
        "10340286",
        "NCT00372320",
        "10.1016/j.cell.2013.04.005",
        "<<10/2=5>>5",
        "$<<450000-2000=448000>>448000",
        "2024561111-2000 = 2024559111",
        "<<8770/15=584.6666666666>>584.6666666666",
        "<<13812345678/2>>",
        "13812345678 * 2",
        "13812345678 + 2 = 4",
        "43,730-479-7762",
        "call 2422511509元",
        "call 2422511509 mg",
        "¥ 13812345678",
        "3.141592653",
        "0.3333333333333333",
        "3.13812345678",
        "5.71; 95% CI, 1.63-19.92, 0.871-0.941",
        "200 - 42 - 18 - 14",
        "202 - 456 - 1111",
        "4 65 25 1 1 2 2",
        "234 567 8901",
        "代郡 5677120123 太原 16986330902 南阳 359316528551",
        "订单号：13812345678",
        "order no. 202-456-1111",
        "$2024561111",
        "192.168.100.101",
        "1024-1280 pixels",
        "MD 20892-3655",
        "codons 1445-1580",
        "mean dose: 633 (600-700) mg/d",
        "1.2.3.4.5.6.7.8",
        "1700000000",
        "icon@2x.png, lodash@4.17.21, @jo, a @ b",
        "and so on.However, either/or, e.g./i.e., example.org",
        "AB12CDEF34567890123",
    ],
)
def test_what_only_looks_like_personal_data_is_left_alone(text):
    assert kinds_and_values(text) == []


def test_findings_are_in_order_and_positions_are_those_of_the_text_as_given():
    text = "①ﬁ 见https://t.cn/Ab１，邮箱jo＠example．org，电话：１３８１２３４５６７８，证号11010519491231002X"
    assert kinds_and_values(text) == [
        ("url", "https://t.cn/Ab１"),
        ("email", "jo＠example．org"),
        ("phone", "１３８１２３４５６７８"),
        ("id_number", "11010519491231002X"),
    ]


def test_masking_puts_each_kind_in_place_and_leaves_the_rest():
    text = "Ask jo@example.org (2013-04-05) or 13812345678; 536-90-4399, www.example.org."
    assert mask_personal(text) == "Ask [email] (2013-04-05) or [phone]; [id number], [url]."
    assert mask_personal("Nothing here: 1,200,000.") == "Nothing here: 1,200,000."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("john@example.org", "jo…@…"),
        ("jo＠example．org", "j…@…"),
        ("13812345678", "138…"),
        ("11010519491231002X", "110…"),
        ("https://www.example.org/jo", "https://www.exa…"),
        ("www.example.org", "www.exa…"),
    ],
)
def test_a_report_shows_little_of_a_finding(text, shown):
    (found,) = find_personal(f"见 {text}")
    assert shown_partly(f"见 {text}", found) == shown


_PERSONAL = ["jo@example.org", "13812345678", "11010519491231002X", "https://t.cn/a", "+44 20 7946 0958"]
_BETWEEN = [*" .-()7a@/=\n，２😀", "电话", "2013-04-05", "GB82 WEST 1234", "4111111111111111"]
_pieces = st.sampled_from([*_PERSONAL, *_BETWEEN])


@given(st.one_of(st.lists(_pieces, max_size=12).map("".join), st.text(max_size=60)))
def test_whatever_the_text_findings_lie_in_it_apart_from_one_another_and_masking_keeps_what_is_between(text):
    found = find_personal(text)
    bounds = [position for one in found for position in (one.start, one.end)]
    assert bounds == sorted(bounds)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    between = [text[a:b] for a, b in zip([0, *bounds[1::2]], [*bounds[::2], len(text)], strict=True)]
    masks = [*(PLACEHOLDERS[one.kind] for one in found), ""]
    assert mask_personal(text) == "".join(part + mask for part, mask in zip(between, masks, strict=True))


def test_placeholders_are_plain_words_in_which_nothing_is_found():
    assert {Found(kind, 0, 1).kind for kind in PLACEHOLDERS} == {"email", "phone", "id_number", "url"}
    for placeholder in PLACEHOLDERS.values():
        assert "<" not in placeholder and "|" not in placeholder
        assert find_personal(placeholder) == []


def test_the_number_libraries_are_loaded_only_where_digits_ask_for_them():
    code = (
        "import sys\nfrom finetune.data.personal import find_personal\n"
        "find_personal('Turn off 2 lights at 7:30, jo@example.org www.example.org')\n"
        "assert not {'phonenumbers', 'stdnum'} & {*sys.modules}\n"
        "assert find_personal('13812345678')\nassert 'phonenumbers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
