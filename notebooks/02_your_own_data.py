# ---
# jupyter:
#   jupytext:
#     cell_markers: '"""'
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# Your own data: from a table to a file that was judged

A table of questions and answers teaches a Qwen model, which is then written as GGUF files for llama.cpp. Each file is
measured on rows that were held back, and you download the one you want together with the verdict on it.

On a GPU, such as the T4 that Colab lends, it trains a real Qwen. Without one it trains the small model that comes with
fieldtune: the same path in minutes, to see how it goes.
"""

# %% [markdown]
"""
## 1. What you may change

`FIELDTUNE` says where fieldtune is installed from, if it is not there yet: the folder of a clone, or a wheel that you
uploaded. `ROWS` is your CSV file (in Colab upload it in the panel of files on the left); left empty, a small table is
written. `COLUMNS` names its columns, such as `{"prompt": "{title}", "answer": "{text}"}`; left empty, they are guessed.
`SETTINGS` override keys of the recipe, such as `"train.epochs=3"`. `WANTED` is the file to download.
"""

# %% tags=["parameters"]
FIELDTUNE = ""
ROWS = ""
COLUMNS = {}
SETTINGS = []
WANTED = "gguf/q4_k_m"

# %% [markdown]
"""
## 2. Install

Nothing happens where fieldtune can be imported already. Otherwise llama.cpp is compiled once, which takes about ten
minutes on two cores. `qlora` brings what holds a model in 4 bits while it is trained.
"""

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("finetune") is None:
    if not FIELDTUNE:
        raise FileNotFoundError("fieldtune is not installed. Set FIELDTUNE above to a clone's folder or to a wheel.")
    command = [sys.executable, "-m", "pip", "install", f"{FIELDTUNE}[qlora]"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout:
            print(line, end="", flush=True)
    if pip.returncode != 0:
        raise RuntimeError("fieldtune could not be installed. The last lines that pip printed say why.")
    importlib.invalidate_caches()

# %% [markdown]
"""
## 3. What this machine can train

The GPU's memory decides which base model is taken and whether it is held in 4 bits while it is trained (QLoRA). The
number type is what the machine computes fast in: a T4 has no bfloat16, so that float16 is taken there.
"""

# %%
from finetune.starting_point import starting_point

start = starting_point()
print(start.sentence)

# %% [markdown]
"""
## 4. The table

Without a table of yours, one is written here: what a bicycle workshop is asked. Two columns are enough. Some hundred
rows are a beginning; a verdict that is sure needs more.
"""

# %%
import csv
from itertools import islice
from pathlib import Path

from finetune.data.sources import read_rows

WORKSHOP = {  # what is replaced: its price in euros, how many minutes that takes, and when it is due
    "brake pads": (18, 20, "less than one millimetre of rubber is left"),
    "brake cable": (14, 15, "the lever has to be pulled to the handlebar"),
    "chain": (35, 15, "it is three quarters of a percent longer than new"),
    "cassette": (60, 25, "a new chain jumps on the small sprockets"),
    "front tyre": (40, 20, "the tread is smooth or the threads show"),
    "inner tube": (12, 15, "it loses air within a day"),
    "saddle": (55, 10, "the cover is torn or the frame squeaks"),
    "handlebar tape": (22, 30, "it slips under the hand"),
    "pedals": (45, 10, "they wobble or grind"),
    "bottom bracket": (70, 45, "the cranks can be moved sideways"),
    "headset bearing": (65, 60, "the front wheel knocks when the brake is held"),
    "rear light": (25, 10, "it flickers on rough roads"),
    "hub dynamo": (120, 90, "the lamp stays dark with a sound cable"),
    "spokes": (30, 40, "the wheel wobbles from side to side"),
    "derailleur hanger": (28, 30, "gears jump after a fall"),
    "kickstand": (20, 15, "the bicycle leans too far"),
    "mudguards": (38, 35, "they rattle or have a crack"),
    "bell": (8, 5, "its spring is broken"),
    "battery of an e-bike": (520, 20, "a full charge takes you half as far as before"),
    "display of an e-bike": (140, 20, "its figures can no longer be read in the sun"),
}


def questions_and_answers():
    """The rows of the workshop's table: six for each part."""
    for part, (euros, minutes, sign) in WORKSHOP.items():
        yield f"What do you charge for replacing the {part}?", f"{euros} euros, work included."
        yield f"{part}, how much with fitting?".capitalize(), f"With fitting, {euros} euros in all."
        yield f"How long must I wait while you fit the {part}?", f"About {minutes} minutes."
        yield f"Is there time for the {part} before I go to work?", f"It takes about {minutes} minutes."
        yield f"When is it time to replace the {part}?", f"When {sign}."
        yield f"I noticed that {sign}. What should I do?", f"Have the {part} replaced, for {euros} euros."


rows_path = Path(ROWS or "workshop.csv")
if not ROWS:
    with rows_path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *questions_and_answers()])
for row in islice(read_rows(rows_path), 6):
    print(row.fields)

# %% [markdown]
"""
## 5. Which column is what

A data template says how a row becomes a conversation. For two columns it is one line of the recipe: `{question}` stands
for the cell of that column. If the guess is wrong, set `COLUMNS` above.
"""

# %%
from finetune.data.guessed_columns import guess_columns

template = COLUMNS
if not template:
    guess = guess_columns(list(islice(read_rows(rows_path), 50)))
    template = guess.template()
    print(f"{guess.prompt!r} is the question and {guess.answer!r} the answer: told {guess.because}")
print(f"template: {template}")

# %% [markdown]
"""
## 6. The recipe

One YAML file holds all choices. A fifth of the rows is held out to measure on. Five passes over few rows are a
beginning: watch whether the loss of the validation rows still falls. Answers in free words can be right in many ways,
so that exact match is left out. 100 rows are measured at most, because llama.cpp runs on the processor here. `validate`
finds every mistake before anything is loaded.
"""

# %%
import yaml

from finetune.notebook import fieldtune, page, shipped_files

recipe = {
    "name": "my_model",
    "model": {"name": start.model},
    "data": {"path": str(rows_path.resolve()), "template": template, "held_out_share": 0.2},
    "train": {**start.train(), "epochs": 5},
    "export": {"gguf": {"types": ["q8_0", "q4_k_m"]}},
    "check": {"rows": 100, "max_new_tokens": 64, "measures": {"exact_match": None}},
}
RECIPE, RUN = Path("my_model.yaml"), Path("runs/my_model")
RECIPE.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
print(RECIPE.read_text(encoding="utf-8"))

CHANGES = [word for setting in SETTINGS for word in ("--set", setting)]
fieldtune("validate", RECIPE, *CHANGES)

# %% [markdown]
"""
## 7. The rows, as the model reads them

The model is downloaded here, if it is one from a hub: its tokenizer cuts the rows into tokens. Only what stands in ⟦ ⟧
carries loss. Rows that break the contract end with status 1, and the lines say which rows and what to do: mend the
table and run the cell again, for nothing is trained on them.
"""

# %%
fieldtune("data", RECIPE, "--out", RUN, *CHANGES, "--preview", "2")

# %% [markdown]
"""
The same as a page: what became of the rows, how long they are, what the held-out rows share with those of training, and
whether there is personal data in them.
"""

# %%
page(RUN / "data/report.html")

# %% [markdown]
"""
## 8. Train

LoRA trains two small matrices beside each layer and leaves the model's own weights alone. If this is interrupted, run
the cell again: it goes on from its last checkpoint. If the GPU runs out of memory, put `"train.accumulation=16"` into
`SETTINGS`: one row at a time, and the same result but for rounding.
"""

# %%
fieldtune("train", RECIPE, "--out", RUN, *CHANGES)

# %% [markdown]
"""
## 9. Merge, export, gate

The adapter is folded into the weights, the files are written, and each is run on the held-out rows in the engine that
will run it. The verdict is on what a file lost against the merged model: status 0 pass, 1 fail, 3 cannot tell. With few
rows `cannot tell` is the honest answer to be expected, and the lines say how many rows would settle it. Whether
the fine-tuning itself was worth it is seen by comparing `base` with `merged`.
"""

# %%
fieldtune("run", RECIPE, "--out", RUN, *CHANGES)

# %% [markdown]
"""
## 10. The verdicts

What ships, how large it is, and what the gate says of it.
"""

# %%
files = shipped_files(RUN)
print(files)

# %% [markdown]
"""
The whole report, with its charts: quality against size, how the predictions of each file differ, the answers that
changed most, and where everything came from.
"""

# %%
page(RUN / "report.html")

# %% [markdown]
"""
## 11. Ask it

The file you want, in llama.cpp, as a device would run it, with a question that was held out of training. Put your own
into `typed`, one a line.
"""

# %%
from finetune.data import read_conversations

wanted = files.named(WANTED)
held_out = next(read_conversations(RUN / "data/held_out.jsonl")).messages
question = next(message.content for message in held_out if message.role == "user")
fieldtune("chat", wanted.path, typed=" ".join(question.split()) + "\n")
print(f"the table's own answer: {held_out[-1].content}")

# %% [markdown]
"""
## 12. Download

In Colab the browser fetches the file; elsewhere it lies where the path says. A file that failed is not offered: the
report above says what it lost, and usually more bits (`WANTED = "gguf/q8_0"`) are the remedy. Its folder has a model
card with these figures.
"""

# %%
print(f"{wanted.name}: {wanted.verdict}, {wanted.size_bytes / 1e6:,.1f} MB\n{wanted.path.resolve()}")
if wanted.verdict == "fail":
    print("It failed, and is not offered.")
elif "google.colab" in sys.modules:
    from google.colab import files as browser

    browser.download(str(wanted.path))
