"""How many short texts a second `find_personal` reads on one core: run `python -m tests.benchmarks.personal`."""

import time

from finetune.data.personal import find_personal

SETS = {
    "English, no digits": "Could you turn the lights in the kitchen off, and tell me when the washing is done?",
    "English, small digits": "She buys 2 pounds of cheddar for $10 and pays 3 * 4 = 12 dollars for the rest in 2024.",
    "Chinese, no digits": "我最近总是睡不好，白天没有精神，工作也提不起兴趣，请问应该怎么办？谢谢您的回答。",
    "Chinese, full width": "请把客厅的灯调到３０％，然后在２０２４年４月１日提醒我：给妈妈打电话。",
    "rows of digits, none found": "In 1998-2000 (CI 10.84-14.07) doses of 10 000 000 IU were given, PMID 10340286.",
    "a phone number": "请打电话13812345678联系我，我整天都在家里，谢谢您。",
}


def main() -> None:
    """The best of five rounds for each kind of text, and the time of two texts that are made to be slow."""
    for name, text in SETS.items():
        find_personal(text)
        best = min(_seconds(text, 2000) for _ in range(5))
        print(f"{name:34} {2000 / best:10,.0f} texts/s of {len(text)} characters, {len(find_personal(text))} found")
    slow = {
        "a table of 20,000 numbers": "4321 765 " * 10_000,
        "phones written close": "2024561111 " * 2000,
        "100,000 letters and an @": "a" * 100_000 + " @",
        "a sum of 20,000 terms": "12+" * 20_000,
        "dotted letters": "a." * 50_000 + "com/ @",
        "capitals with digits": "GB82" * 20_000,
    }
    for name, text in slow.items():
        print(f"{name:34} {_seconds(text, 1):10.3f} s for {len(text):,} characters")


def _seconds(text: str, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        find_personal(text)
    return time.process_time() - start


if __name__ == "__main__":
    main()
