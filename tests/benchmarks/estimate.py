"""An estimate beside what trainings took: run `python -m tests.benchmarks.estimate RUN...` on folders of finished runs.

Seen on two cores of an AMD EPYC with AVX-512 BF16, beside other work (predicted over measured peak memory): random
models of Qwen2.5-0.5B's dimensions in bfloat16 with 4 rows of 312 tokens 1.03, the same recomputing activations 1.04,
1 row at a time 1.17, in float32 with 2 rows 0.90; the starter with 16 such rows 0.89; a real Qwen2.5-0.5B with an
untied head on 60 steps of 8 short rows 0.92. In bfloat16 the half-billion models reached 12 to 23 % of the 960 GFLOPS
that both cores reach idle, with two to four other processes beside them; in float32 about a quarter of 216 GFLOPS.

Seen on an H100 with 80 GB, random models, 4 steps of 2 times 16 rows (predicted over measured device memory, share of
the probed speed): Qwen3-1.7B with LoRA 1.00 (19.2 GB; 8 %, the process's first training), QLoRA 1.14 (15 %),
recomputing 1.12 (14 %); Qwen2.5-7B with LoRA 0.99 (48.1 GB; 21 %), QLoRA 1.10 (29 %), recomputing 1.01 (29 %).
"""

import json
import sys
from pathlib import Path

from finetune.estimate import estimate, find_hardware
from finetune.recipe import Recipe
from finetune.yaml_text import read_yaml


def main(folders: list[str]) -> None:
    """Memory and time of each run folder, predicted and measured."""
    for folder in map(Path, folders):
        recipe = Recipe.model_validate(read_yaml(folder / "recipe.yaml"))
        took = json.loads((folder / "adapter/manifest.json").read_text(encoding="utf-8"))["result"]
        on_gpu = took.get("device_peak_memory_bytes")
        machine = find_hardware("this_machine" if on_gpu else "two_cores")
        held = on_gpu or took["peak_memory_bytes"]
        found = estimate(recipe, machine.model_copy(update={"dtype": took["dtype"]}))
        print(
            f"{folder.name:24} memory {found.training_bytes / 1e9:5.2f} GB, measured "
            f"{held / 1e9:5.2f} GB ({found.training_bytes / held:.2f})"
        )
        if took["dtype"] == machine.dtype:  # the table's speed is that of its own computing type
            reached = found.seconds.low * machine.efficiency[1] / took["seconds"]
            print(
                f"{'':24} time {found.seconds.low:,.0f} to {found.seconds.high:,.0f} s, measured "
                f"{took['seconds']:,.0f} s: about {reached:.0%} of the machine's speed"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
