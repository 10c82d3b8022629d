"""A base model of a real one's dimensions and random weights: run `python -m tests.benchmarks.random_base NAME FOLDER`.

Memory and time of a training depend on a model's dimensions and on its rows, not on what it knows. NAME is one of
finetune/estimate/bases.yaml; the tokenizer is that of the tests' tiny models, which knows few of the vocabulary's
words.
"""

import sys
from pathlib import Path

from finetune import estimate
from finetune.yaml_text import read_yaml
from tests.export import tiny_models

_BASES = Path(estimate.__file__).with_name("bases.yaml")


def build_base(name: str, folder: Path) -> Path:
    """Writes the folder, on the GPU where there is one: a processor takes minutes for billions of random numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    (known,) = (entry for entry in read_yaml(_BASES)["bases"] if name in entry["names"])
    settings = dict(known["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    tiny = tiny_models.build(folder.with_name(folder.name + "-tokenizer"), "qwen2", tied=True, hidden_size=64)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig.from_pretrained(tiny.folder)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.folder).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(build_base(sys.argv[1], Path(sys.argv[2])))
