"""Makes a run of the embedded model and its bundle, in little time, for the tests of bundles and of rehearsals."""

import contextlib
import json
from pathlib import Path

from finetune import cli

RECIPE = """\
name: robot
model: {name: starter}
data: {path: generated:robot_dialogue, template: robot_dialogue, rows: 240, held_out_share: 0.2, group_by: group}
train: {max_steps: 24, batch_size: 8, learning_rate: 4e-3, lora: {rank: 16, alpha: 32}}
export: {gguf: {types: [q8_0]}}
check:
  rows: 12
  max_new_tokens: 64
  measures:
    behaviour: null
    exact_match: {compare: json}
    fields:
      json_schema:
        type: object
        required: [actions, say]
        additionalProperties: false
        properties:
          say: {type: string, minLength: 1}
          actions:
            type: object
            required: [first]
            additionalProperties: false
            properties: {first: {$ref: "#/$defs/action"}, then: {$ref: "#/$defs/action"}}
        $defs:
          action:
            type: object
            required: [task]
            additionalProperties: false
            properties:
              task: {enum: [sweep, vacuum, mop, wash, dock, pause, stop, empty_bin, refuse]}
              area: {type: string}
              reason: {const: out_of_scope}
"""


def make_bundle(run: Path) -> Path:
    """A finished run at `run`, and the folder of its bundle."""
    recipe = run.with_name("recipe.yaml")
    recipe.write_text(RECIPE, encoding="utf-8")
    assert cli.main(["run", str(recipe), "--out", str(run)]) in (1, 3)  # so few rows and steps pass nothing
    with contextlib.chdir(run.parent):  # people write a run's folder as it lies before them
        assert cli.main(["bundle", run.name, "--file", "gguf/q8_0", "--accept-unproven", "--for", "robot"]) == 0
    return run / "bundle" / "robot"


def read(path: Path):
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
