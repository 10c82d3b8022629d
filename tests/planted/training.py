"""A short real run on the starter, whose files the planted defects are made from.

It is the quickstart with fewer rows and steps. Two things differ from a run of the command: the base's chat template
writes a default system prompt, as Qwen2.5's does, so that one can be lost; and the checkpoints of training are kept.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from export.artifacts import ModelFolder, QuantizedModel
from export.chat import Conversation
from export.chat_tokenizer import load_tokenizer
from export.checks import Items
from finetune import recipe as recipes
from finetune.base_model import BaseModelSource
from finetune.methods import Adapter
from finetune.methods.sft import Sft
from finetune.pipeline import Run
from finetune.recipe import CheckSettings
from finetune.subjects import items_of
from finetune.terminal import quiet_libraries

ROOT = Path(__file__).parents[2]
STARTER = ROOT / "finetune/starter/model"
DEFAULT_PROMPT = "You are a helpful assistant."
# The shortest training whose model is good enough: an honest file in 4 bits stays a hundred times below its limit.
STEPS = 100
CHECKPOINT_EVERY = 10
# Rows on which defects are measured, and where an answer is cut: the longest of the reference's has 41 tokens.
ROWS, MAX_NEW_TOKENS = 60, 48
SETTINGS = (
    "data.rows=3000",
    f"train.max_steps={STEPS}",
    "export.gptq.calibration_rows=64",
)


class Trained(NamedTuple):
    """What the run left. `checkpoints` are adapters by their step, `exports` artifacts by their names in a report."""

    base: BaseModelSource
    adapter: Adapter
    checkpoints: dict[int, Path]
    merged: ModelFolder
    exports: dict[str, QuantizedModel]
    held_out: tuple[Conversation, ...]

    def items(self, rows: int) -> Items:
        """The first held-out rows, at most so many, as every engine is given them."""
        settings = CheckSettings(rows=rows, max_new_tokens=MAX_NEW_TOKENS)
        tokenizer = load_tokenizer(self.merged.folder)
        return items_of(self.held_out, tokenizer, settings, seed=0, thinking=False, system_prompt=None)


def train(folder: Path) -> Trained:
    """Runs the quickstart's stages up to the exports, in `folder`."""
    quiet_libraries()  # as the command does
    base = _base_with_default_prompt(folder / "base")
    recipe = recipes.load(ROOT / "recipes/quickstart.yaml", [f"model.name={base}", *SETTINGS])
    run = Run(recipe, folder / "run", say=print)
    with pytest.MonkeyPatch.context() as patch:
        _keep_checkpoints(patch, folder / "checkpoints")
        run.until("quantize")
    adapter = run.trained
    assert isinstance(adapter, Adapter)
    checkpoints = {int(path.name.partition("-")[2]): path for path in (folder / "checkpoints").glob("checkpoint-*")}
    return Trained(
        base=run.base,
        adapter=adapter,
        checkpoints=dict(sorted(checkpoints.items())),
        merged=run.merged,
        exports={model.subject: model for model in run.exports},
        held_out=run.splits.conversations("held_out"),
    )


def _base_with_default_prompt(folder: Path) -> Path:
    """The starter, with a template that opens every conversation without a system prompt with one of its own."""
    shutil.copytree(STARTER, folder)
    template = folder / "chat_template.jinja"
    opening = (
        "{%- if messages[0]['role'] != 'system' -%}"
        f"{{{{ '<|im_start|>system\\n{DEFAULT_PROMPT}<|im_end|>\\n' }}}}"
        "{%- endif -%}"
    )
    template.write_text(opening + template.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def _keep_checkpoints(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Training keeps its last checkpoint alone, and deletes it at the end: here all are wanted."""
    arguments = Sft._arguments

    def keeping(self, base, steps, checkpoints, seed):
        made = arguments(self, base, steps, folder, seed)
        made.save_total_limit, made.save_steps = None, CHECKPOINT_EVERY
        return made

    patch.setattr(Sft, "_arguments", keeping)
