"""What the tests of a batch speak with: an engine that answers text with its capitals, rows, and answers read back."""

import json
from pathlib import Path

from export.engines import Generation


class Engine:
    """Answers a prompt, which here is text, with its capitals; `interrupt_at` presses Ctrl-C before that answer."""

    def __init__(self, prompts_at_once=3, interrupt_at=None, rounding=""):
        self.rounding = rounding
        self.prompts_at_once = prompts_at_once
        self.interrupt_at = interrupt_at
        self.answered = 0
        self.closed = False

    def generate(self, prompts, max_new_tokens):
        assert 0 < len(prompts) <= self.prompts_at_once
        made = []
        for prompt in prompts:
            if self.answered == self.interrupt_at:
                raise KeyboardInterrupt
            self.answered += 1
            ids = tuple(map(ord, prompt.upper()))
            made.append(Generation(ids=ids[:max_new_tokens], stopped=len(ids) <= max_new_tokens, seconds=0.0))
        return made

    def close(self):
        self.closed = True


def write_rows(*texts):
    Path("in.jsonl").write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(texts)))


def read_answers(path="out.jsonl"):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


ASK = ("--in", "in.jsonl", "--out", "out.jsonl", "--prompt", "{text}")
TABLE = ("--in", "in.jsonl", "--out", "out.csv", "--prompt", "{text}")
