"""Runs a Hugging Face folder: a dense model, one with an adapter attached, or a GPTQ folder through its own kernels.

Dense weights are computed in float32: exact for bfloat16 weights, and the reference that everything else is compared
with. Where that does not fit on a GPU, they are computed in the type they are stored in, and the engine says so. An NF4
base computes in the type it was trained in. GPTQ kernels convert what they are given themselves.
"""

import contextlib
import copy
import gc
import io
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.artifacts import read_model_config
from export.engines._base import ROWS_AT_ONCE, Engine, Generation, Subject, require_beginning, require_positions
from export.errors import EngineError, MissingDependencyError, ModelError
from export.hardware import torch_device
from export.loading import open_model, open_tokenizer
from export.precision import Precision, best_precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GENERATION_BATCH = 32


def load(subject: Subject, *, vocabulary_size: int | None, threads: int) -> Engine:
    """The subject, ready to run. `threads` is set for the whole process: torch has one pool.

    `vocabulary_size` is the number of real ids; logits rows behind it are dropped. None means as many as the folder's
    tokenizer knows. Raises EngineError when a weight is missing, unexpected or of the wrong shape: transformers would
    fill it with random numbers and go on.
    """
    return load_hf(subject, vocabulary_size=vocabulary_size, threads=threads)


def load_hf(subject: Subject, *, vocabulary_size: int | None, threads: int) -> "HfEngine":
    """`load`, typed as the engine it returns."""
    import torch

    torch.set_num_threads(threads)
    model, rounding = _load_model(subject)
    tokenizer = open_tokenizer(_tokenizer_folder(subject))
    return HfEngine(model, vocabulary_size or len(tokenizer), _stop_ids(model, tokenizer), rounding)


class HfEngine(Engine):
    """A transformers model behind the engine interface."""

    prompts_at_once = GENERATION_BATCH

    def __init__(self, model: Any, vocabulary_size: int, stop_ids: tuple[int, ...], rounding: str = "") -> None:
        from transformers import GenerationConfig

        rows = int(model.get_output_embeddings().weight.shape[0])
        if vocabulary_size > rows:
            raise EngineError(
                f"the tokenizer knows {vocabulary_size} ids but the model has logits for only {rows}: "
                "the folder mixes the tokenizer of one model with the weights of another."
            )
        self.model = model
        self.vocabulary_size = vocabulary_size
        self.stop_ids = stop_ids
        self.rounding = rounding
        # A model's own file often holds sampling settings, which greedy decoding would warn about and ignore.
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=list(stop_ids) or None, pad_token_id=stop_ids[0] if stop_ids else 0
        )
        self._head_follows_decoder = self._sees_the_same_without_its_head()

    @property
    def kernel(self) -> str | None:
        """The class that multiplies quantized weights (a GPTQ kernel, say); None for a dense model."""
        names = {type(m).__name__ for m in self.model.modules() if hasattr(m, "qweight") or hasattr(m, "quant_state")}
        return ", ".join(sorted(names)) or None

    def log_prob_blocks(self, ids: Sequence[int], positions: Sequence[int]) -> "Iterator[NDArray[np.float32]]":
        """See `Engine.log_prob_blocks`. Logits are made for the wanted positions only, then normalised in float32."""
        import torch

        require_positions(ids, positions)
        if not positions:
            yield torch.empty((0, self.vocabulary_size)).numpy()
            return
        tokens = self._tokens(ids)
        wanted = torch.tensor(positions, device=self.model.device) - 1
        blocks = self._logits(tokens, wanted)
        while True:
            with _eager():  # not over the yield: what is done with a block is no business of the model's
                if (logits := next(blocks, None)) is None:
                    return
                block = logits[:, : self.vocabulary_size].float().log_softmax(dim=-1).cpu().numpy()
            yield block

    def log_probs_behind(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> "Iterator[NDArray[np.float32]]":
        """See `Engine.log_probs_behind`. The prompt is run once, and each continuation behind a copy of its cache."""
        import torch

        require_beginning(prompt)
        with _eager():
            first = self.model(input_ids=self._tokens(prompt), use_cache=True, logits_to_keep=1)
        for continuation in continuations:
            with _eager():
                logits = [first.logits[0]]
                if len(continuation) > 1:
                    cache = copy.deepcopy(first.past_key_values)  # of any kind: a recurrent state cannot be cut back
                    tokens = self._tokens(continuation[:-1])
                    logits.append(self.model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[0])
                rows = torch.cat(logits)[: len(continuation), : self.vocabulary_size]
                found: NDArray[np.float32] = rows.float().log_softmax(dim=-1).cpu().numpy()
            yield found

    def _tokens(self, ids: Sequence[int]) -> Any:
        import torch

        return torch.tensor([list(ids)], device=self.model.device)

    def _logits(self, tokens: Any, wanted: Any) -> Iterator[Any]:
        """Logits behind the `wanted` indexes of one sequence, in blocks of shape (at most ROWS_AT_ONCE, rows)."""
        if not self._head_follows_decoder:
            yield from (
                self.model(input_ids=tokens, use_cache=False, logits_to_keep=wanted).logits[0].split(ROWS_AT_ONCE)
            )
            return
        hidden = self.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[0, wanted]
        for block in hidden.split(ROWS_AT_ONCE):
            yield self.model.get_output_embeddings()(block)

    def _sees_the_same_without_its_head(self) -> bool:
        """Whether logits are the output layer's of the decoder's last states and nothing more.

        It is so for Qwen. Where a model scales or caps its logits behind that layer (as Gemma 2 does), they can only be
        had for all positions at once.
        """
        import torch

        probe = self._tokens((0, 1))
        with _eager():
            whole = self.model(input_ids=probe, use_cache=False).logits
            states = self.model.get_decoder()(input_ids=probe, use_cache=False).last_hidden_state
            return bool(torch.equal(whole, self.model.get_output_embeddings()(states)))

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, batch_size: int = GENERATION_BATCH
    ) -> list[Generation]:
        """See `Engine.generate`. Prompts of like length are decoded together, padded on the left.

        `seconds` of an answer is its batch's wall time over the batch's size; `batch_size=1` times a single stream.
        """
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Generation] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            answers.update(zip(batch, self._generate_batch([prompts[i] for i in batch], max_new_tokens), strict=True))
        return [answers[index] for index in range(len(prompts))]

    def close(self) -> None:
        """See `Engine.close`."""
        import torch

        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _generate_batch(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Generation]:
        import torch

        longest = max(len(prompt) for prompt in prompts)
        pad = self.model.generation_config.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        started = time.perf_counter()
        with _eager():
            out = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens)
        seconds = (time.perf_counter() - started) / len(prompts)
        return [self._answer(row, seconds) for row in out[:, longest:].tolist()]

    def _answer(self, ids: list[int], seconds: float) -> Generation:
        """One row of a batch, cut where its own answer ended; what follows is padding."""
        end = next((index for index, token in enumerate(ids) if token in self.stop_ids), None)
        return Generation(ids=tuple(ids[:end]), stopped=end is not None, seconds=seconds)


@contextlib.contextmanager
def quiet_gptqmodel() -> Iterator[None]:
    """Holds back what gptqmodel prints to stdout and undoes the root log handler its import installs.

    Its output is a banner and progress lines, on the stream where our command line prints results. When the work
    inside fails, what was held back goes to stderr, because it may say why.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    held = io.StringIO()
    try:
        with contextlib.redirect_stdout(held), warnings.catch_warnings():
            # optimum reads every attribute of a module, this deprecated property of transformers among them
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            warnings.filterwarnings("ignore", module=r"(gptqmodel|torchao|defuser|tokenicer)(\.|$)")
            # each of its settings objects owns a temporary folder, which it leaves to the garbage collector
            warnings.filterwarnings("ignore", message="Implicitly cleaning up", category=ResourceWarning)
            yield
            gc.collect()
    except BaseException:
        sys.stderr.write(held.getvalue())
        raise
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Runs without gradients, and without the compilation that gptqmodel's plain kernels ask for.

    On a CPU those kernels (8, 3 and 2 bits) hand their unpacking to torch.compile, which fails on a machine without a
    C++ compiler and gives the same numbers.
    """
    import torch

    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        yield


def _precision(subject: Subject) -> Precision:
    """The best there is for dense weights; the type of training for NF4; for packed weights their kernel's own."""
    if subject.four_bit_compute is not None:
        # bitsandbytes computes in the type of what a layer is given, whatever its settings say
        import torch

        return Precision(getattr(torch, subject.four_bit_compute))
    if torch_device() != "cpu" and "quantization_config" in read_model_config(subject.path):
        return Precision("auto")
    return best_precision(subject.path)


def _load_model(subject: Subject) -> tuple[Any, str]:
    """The model, and what of its weights' precision is lost in how it is computed."""
    config = read_model_config(subject.path)
    try:
        precision = _precision(subject)
        compute = None if subject.four_bit_compute is None else precision.dtype
        with quiet_gptqmodel() if "quantization_config" in config else contextlib.nullcontext():
            model, found = open_model(
                subject.path, dtype=precision.dtype, four_bit_compute=compute, device=torch_device()
            )
    except ModelError as error:
        raise EngineError(str(error)) from error
    _refuse_wrong_weights(subject.path, found)
    if subject.adapter is not None:
        model = _attach(model, subject.adapter)
    return model.eval().requires_grad_(False), precision.rounding


def _refuse_wrong_weights(path: Path, found: dict[str, Any]) -> None:
    kinds = {"missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of another shape"}
    wrong = {name: sorted(map(str, found.get(key, ()))) for key, name in kinds.items()}
    said = "; ".join(f"{len(keys)} {name} ({', '.join(keys[:3])})" for name, keys in wrong.items() if keys)
    if said:
        raise EngineError(
            f"the weights in {path} do not fit its config.json: {said}. They would be replaced by random numbers or "
            "left out. Make the folder again from a complete model."
        )


def _attach(model: Any, adapter: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependencyError("peft", "running an adapter", "pip install peft") from error
    try:
        with quiet_gptqmodel(), warnings.catch_warnings():
            # peft only warns when the adapter's file lacks weights its config asks for; such an adapter does nothing
            warnings.filterwarnings("error", message="Found missing adapter keys")
            # peft reads this deprecated property of transformers
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise EngineError(f"the adapter in {adapter} does not fit the model: {error}") from error


def _tokenizer_folder(subject: Subject) -> Path:
    """An adapter that was saved with its own tokenizer is run with that one: training may have set its stop token."""
    if subject.adapter is not None and (subject.adapter / "tokenizer_config.json").is_file():
        return subject.adapter
    return subject.path


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every stop id that the artifact declares, in generation_config.json or in its tokenizer."""
    declared = model.generation_config.eos_token_id
    ids = set(declared if isinstance(declared, list) else [declared]) | {tokenizer.eos_token_id}
    return tuple(sorted(token for token in ids if token is not None))
