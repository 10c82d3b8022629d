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
# Quickstart: one recipe, from rows to judged files

A small model that comes with fieldtune learns a cleaning robot's commands, is written as files for llama.cpp, and every
file is measured against the model it was made from. No GPU, no account and no download are needed; after the
installation it takes about five minutes on two processor cores.

Run the cells from top to bottom. A cell that cannot do its work stops the notebook and says why.
"""

# %% [markdown]
"""
## 1. What you may change

`FIELDTUNE` says where fieldtune is installed from, if it is not there yet: the folder of a clone, or a wheel that you
uploaded. `SETTINGS` override keys of the recipe. Here they leave out the GPTQ folder, which is for GPUs and whose
package takes long to build.
"""

# %% tags=["parameters"]
FIELDTUNE = ""
FOLDER = "runs/quickstart"
SETTINGS = ["export.gptq=null"]

# %% [markdown]
"""
## 2. Install

Nothing happens where fieldtune can be imported already. Otherwise llama.cpp is compiled once, which takes about ten
minutes on two cores.
"""

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("finetune") is None:
    if not FIELDTUNE:
        raise FileNotFoundError("fieldtune is not installed. Set FIELDTUNE above to a clone's folder or to a wheel.")
    command = [sys.executable, "-m", "pip", "install", FIELDTUNE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout:
            print(line, end="", flush=True)
    if pip.returncode != 0:
        raise RuntimeError("fieldtune could not be installed. The last lines that pip printed say why.")
    importlib.invalidate_caches()

# %% [markdown]
"""
## 3. This machine

The report names the machine, because speed and memory are its own. The embedded model, `starter`, is small enough for
any.
"""

# %%
from export.hardware import compute_dtype, environment

print(f"{environment().identity}; training computes in {compute_dtype()}")

# %% [markdown]
"""
## 4. The recipe

A recipe is one YAML file: which rows, which base model, how to train, which files to write and what to measure. What it
leaves out takes a default. The rows of this one are generated, so that it needs no data of yours.
"""

# %%
from pathlib import Path

from finetune.recipe import find

print(find(Path("quickstart")).read_text(encoding="utf-8"))

# %% [markdown]
"""
## 5. The rows

Everything is decided by the rows, so they are looked at before anything is trained: split by what belongs together,
held to a contract, and shown as the model reads them. Only what stands in ⟦ ⟧ carries loss: the model learns answers,
and where they end, not questions.

`fieldtune(...)` runs the command line. What it prints first is what you would type in a terminal. Its exit status says
how it ended: 0 pass, 1 fail, 3 cannot tell. Whatever could not be done at all stops the notebook.
"""

# %%
from finetune.notebook import fieldtune, page, shipped_files

RUN = Path(FOLDER)
OPTIONS = ["--out", RUN, *(word for setting in SETTINGS for word in ("--set", setting))]
fieldtune("data", "quickstart", *OPTIONS, "--preview", "2")

# %% [markdown]
"""
The same as a page: what became of the rows, how long they are, and what the held-out rows share with those of training.
"""

# %%
page(RUN / "data/report.html")

# %% [markdown]
"""
## 6. Train

LoRA trains two small matrices beside each layer and leaves the model's own weights alone. The loss is that of the
training rows; `valid` is that of rows that are only watched. A stage that is done is not done again: run the cell twice
and see.
"""

# %%
fieldtune("train", "quickstart", *OPTIONS)

# %% [markdown]
"""
## 7. Merge, export, measure

The adapter is folded into the weights, the files are written, and each is run on held-out rows in the engine that will
run it. Every number has an error, and every file a verdict on what it lost against the merged model. `cannot tell` is a
verdict too: the rows are then too few to know, and the lines say how many would settle it.
"""

# %%
fieldtune("run", "quickstart", *OPTIONS)

# %% [markdown]
"""
## 8. The verdicts

What ships, how large it is, and what the gate says of it. A file that failed is called failed, here and on its card.
"""

# %%
print(shipped_files(RUN))

# %% [markdown]
"""
The whole report is one page that needs no network: `report.html` in the run's folder. It shows quality against size,
how the predictions of each file differ, the answers that changed most, and where everything came from.
"""

# %%
page(RUN / "report.html")

# %% [markdown]
"""
## 9. Ask it

The smallest file, in llama.cpp, as a device would run it. In a terminal `fieldtune chat` is a conversation.
"""

# %%
fieldtune("chat", RUN / "export/gguf-q4_k_m", typed="Vacuum the kitchen twice.\n请把客厅的地板拖一下\n")

# %% [markdown]
"""
Next: `02_your_own_data.ipynb` does the same with a table of yours.
"""
