"""What a recipe needs of a machine, put together: parameters, memory, disk and time. Nothing is loaded or trained."""

from collections.abc import Sequence

from export.errors import RecipeError
from export.formats import Format
from export.formats.gguf import SIXTEEN_BIT
from export.formats.target import Target
from export.frozen import Frozen
from export.plugins import Chosen
from finetune.estimate import duration, memory
from finetune.estimate.architecture import Architecture, architecture_of
from finetune.estimate.hardware import Hardware
from finetune.estimate.memory import Batch, Part, Range
from finetune.estimate.rows import ROWS_ASSUMED, RowLengths, row_lengths
from finetune.methods import Footprint
from finetune.recipe import Recipe

# Bits per weight of the types whose names do not say them, as llama.cpp's quantize lists them for 7 billion weights.
_BITS_OF_TYPE = {"q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q5_k_s": 5.5, "q4_k_m": 4.9, "q4_k_s": 4.6, "q4_0": 4.7}
_BITS_UNKNOWN = 8.5


class Stage(Frozen):
    """The peak memory of a stage besides training."""

    name: str
    size_bytes: float


class Estimate(Frozen):
    """What a recipe needs on one machine. Sizes in bytes; each is meant within its error, which `wording` tells."""

    base: str
    hardware: Hardware
    rows: RowLengths
    footprint: Footprint
    batch: Batch
    parameters: int
    trained_parameters: int
    training: tuple[Part, ...]
    stages: tuple[Stage, ...]
    disk_bytes: float
    seconds: Range

    @property
    def training_bytes(self) -> float:
        """The peak of training."""
        return sum(part.size_bytes for part in self.training)

    @property
    def training_range(self) -> Range:
        """The peak of training with its error."""
        return memory.peak_range(self.training, self.hardware)

    @property
    def fits(self) -> bool | None:
        """Whether training fits the machine; None where its memory lies within the error."""
        low, high = self.training_range
        has = self.hardware.memory_bytes
        return True if high <= has else False if low > has else None


def estimate(recipe: Recipe, hardware: Hardware, rows: RowLengths | None = None) -> Estimate:
    """What the recipe needs on a machine. `rows` are read where they are not given.

    Raises ModelError for a base whose dimensions are not known, RecipeError for a method that does not tell its sizes.
    """
    model = architecture_of(recipe.model)
    footprint = footprint_of(recipe)
    rows = row_lengths(recipe, footprint.rows_per_pass) if rows is None else rows
    batch = Batch(rows=footprint.rows_per_pass, tokens_per_row=rows.longest_tokens)
    return Estimate(
        base=recipe.model.name,
        hardware=hardware,
        rows=rows,
        footprint=footprint,
        batch=batch,
        parameters=model.parameters,
        trained_parameters=memory.trained_parameters(model, footprint),
        training=memory.training_parts(model, footprint, batch, hardware),
        stages=(
            Stage(name="merge, convert and quantize", size_bytes=memory.merging_bytes(model)),
            Stage(name="check", size_bytes=memory.checking_bytes(model, hardware)),
        ),
        disk_bytes=_disk_bytes(model, footprint, recipe.export),
        seconds=duration.seconds(*_work(model, footprint, rows, recipe), hardware),
    )


def estimates(recipe: Recipe, machines: Sequence[Hardware]) -> tuple[Estimate, ...]:
    """The estimate on each of the machines; the rows are read once."""
    rows = row_lengths(recipe, footprint_of(recipe).rows_per_pass)
    return tuple(estimate(recipe, machine, rows) for machine in machines)


def footprint_of(recipe: Recipe) -> Footprint:
    """The sizes of the recipe's training. Raises RecipeError for a method that does not tell them."""
    found = recipe.train.footprint()
    if found is None:
        method = getattr(recipe.train, "method", type(recipe.train).__name__)
        raise RecipeError(f"train.method {method!r} does not tell its sizes: no estimate can be made of it.")
    return found


def _work(model: Architecture, footprint: Footprint, rows: RowLengths, recipe: Recipe) -> tuple[float, float]:
    """Operations of the whole training, the valid rows scored between its steps, and passes through single blocks."""
    count = ROWS_ASSUMED if rows.count is None else rows.count
    steps = footprint.steps
    passed = footprint.epochs * (count + rows.general) if steps is None else steps * footprint.rows_per_step
    data = recipe.data
    scored = footprint.evaluations * count * data.valid_share / (1 - data.valid_share - data.held_out_share)
    tokens = rows.padded_tokens
    operations = passed * tokens * duration.training_operations_per_token(model, footprint, tokens)
    operations += scored * tokens * duration.scoring_operations_per_token(model, tokens)
    return operations, model.layers * (passed + scored) / footprint.rows_per_pass


def _disk_bytes(model: Architecture, footprint: Footprint, formats: Chosen[Format]) -> float:
    """The base in 16 bits, and the larger of two: what training leaves lying while it goes on, and what all ends with.

    A checkpoint holds what is trained and AdamW's two moments of it, and the one before is still there while it is
    written; checkpoints go when training is done. What was trained stays, in float32, beside the merged folder and the
    exports.
    """
    trained = 4 * memory.trained_parameters(model, footprint)
    exported = sum(_exported_bytes(model.parameters, formats).values())
    return 2 * model.parameters + max((2 * 3 + 1) * trained, trained + 2 * model.parameters + exported)


def _exported_bytes(parameters: int, formats: Chosen[Format]) -> dict[str, float]:
    """About how large each file of the exports is, by its name: those of a target are made from others."""
    found: dict[str, float] = {}
    for step in formats.steps():
        if isinstance(step, Target):
            found[f"gguf-{SIXTEEN_BIT}"] = parameters * 2.0
            (name,) = step.variants()
            # how much a device leaves is known when its file is made: as for a type that is not known
            bits = _BITS_UNKNOWN if step.bits_per_weight is None else step.bits_per_weight
            found[name] = parameters * bits / 8 if step.size_bytes is None else float(step.size_bytes)
        else:
            found |= {variant: parameters * _bits_of(variant) / 8 for variant in step.variants()}
    return found


def _bits_of(variant: str) -> float:
    """About how many bits a weight takes in a file such as 'gguf-q4_k_m' or 'gptq-4bit'."""
    kind = variant.partition("-")[2]
    if kind.endswith("bit"):
        return float(kind.removesuffix("bit"))
    return 16.0 if kind in (SIXTEEN_BIT, "bf16") else _BITS_OF_TYPE.get(kind, _BITS_UNKNOWN)
