"""Makes the starter model from nothing: corpus, tokenizer, pretraining, model folder and its papers.

    python -m finetune.starter.pretrain [--out DIR] [--minutes N | --tokens N]

A plain PyTorch loop on the CPU: AdamW, warm-up and cosine, next-token loss on every token. It writes a checkpoint
every few minutes and goes on from it when started again. The papers (training.json, PROVENANCE.md) are written by
``provenance.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.hardware import keep_freed_memory, share_cores
from finetune.starter.packing import fill_windows, first_documents, training_windows
from finetune.starter.tokenizer import END_OF_TEXT, TURN_END, VOCABULARY_SIZE, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

logger = logging.getLogger(__name__)
DEFAULT_OUT = Path(__file__).parent / "model"
TOKENIZER_DOCUMENTS = 40_000
HELD_OUT_DOCUMENTS = 600
HELD_OUT_WINDOWS = 96
EVALUATE_EVERY_STEPS = 150
CHECKPOINT_EVERY_SECONDS = 120.0


@dataclass(frozen=True)
class Settings:
    """Everything that decides the run; one of the two limits is set."""

    seed: int = 20240607
    batch_windows: int = 8
    peak_learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup_fraction: float = 0.02
    limit_seconds: float | None = None
    limit_tokens: int | None = None

    def progress(self, seconds: float, tokens: int) -> float:
        """How much of the run is done, from 0 to 1."""
        if self.limit_tokens is not None:
            return min(1.0, tokens / self.limit_tokens)
        return min(1.0, seconds / (self.limit_seconds or 1.0))

    def learning_rate(self, progress: float) -> float:
        """Linear warm-up, then a cosine down to a twentieth of the peak."""
        if progress < self.warmup_fraction:
            return self.peak_learning_rate * max(progress / self.warmup_fraction, 0.01)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup_fraction) / (1 - self.warmup_fraction)))
        return self.peak_learning_rate * (0.05 + 0.95 * cosine)


@dataclass
class History:
    """What the run has done so far; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    corpus_sha256: str = ""
    curve: list[dict[str, float]] = field(default_factory=list)


def model_config() -> Qwen3Config:
    """The shape of the starter model: 5.8 million parameters, tied embeddings."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
    )


def make_optimizer(model: Qwen3ForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """AdamW; norms and other vectors are not decayed."""
    import torch

    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_learning_rate, betas=(0.9, 0.95), fused=True)


def next_token_loss(model: Qwen3ForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats per token of windows shaped (batch, tokens)."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=windows).logits
    targets = windows[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().reshape(-1, VOCABULARY_SIZE), targets)


def evaluate(model: Qwen3ForCausalLM, windows: torch.Tensor) -> float:
    """Held-out loss in nats per token."""
    import torch

    model.eval()
    with torch.no_grad():
        losses = [next_token_loss(model, part).item() for part in torch.split(windows, 16)]
    model.train()
    return sum(losses) / len(losses)


class Pretraining:
    """One run: model, optimizer, data and history, with checkpoints in ``out/checkpoint.pt``."""

    def __init__(self, settings: Settings, out: Path) -> None:
        import torch
        from transformers import Qwen3ForCausalLM

        torch.manual_seed(settings.seed)
        self.settings = settings
        self.checkpoint_path = out / "checkpoint.pt"
        self.held_out_documents = set(first_documents(f"{settings.seed}:held-out", HELD_OUT_DOCUMENTS))
        self.tokenizer: PreTrainedTokenizerFast = load_or_train_tokenizer(settings.seed, out, self.held_out_documents)
        ordered = iter(first_documents(f"{settings.seed}:held-out", HELD_OUT_DOCUMENTS))
        self.held_out = torch.tensor(fill_windows(ordered, self.tokenizer, HELD_OUT_WINDOWS))
        self.model: Qwen3ForCausalLM = Qwen3ForCausalLM(model_config())
        self.optimizer = make_optimizer(self.model, settings)
        self.history = History()

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        import torch

        if not self.checkpoint_path.exists():
            return
        saved: dict[str, Any] = torch.load(self.checkpoint_path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = History(**saved["history"])
        logger.info("resumed at step %d", self.history.step)

    def save_checkpoint(self) -> None:
        """Write the checkpoint beside its final name first, so that an interruption leaves the old one whole."""
        import torch

        unfinished = self.checkpoint_path.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "history": asdict(self.history)}, unfinished)
        unfinished.replace(self.checkpoint_path)

    def train_step(self) -> float:
        """One batch; returns its loss in nats per token."""
        import torch

        settings, history = self.settings, self.history
        rows = training_windows(
            self.tokenizer, settings.seed, history.step, settings.batch_windows, self.held_out_documents
        )
        windows = torch.tensor(rows)
        history.corpus_sha256 = hashlib.sha256(history.corpus_sha256.encode() + windows.numpy().tobytes()).hexdigest()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate(settings.progress(history.seconds, history.tokens))
        loss = next_token_loss(self.model, windows)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        history.step += 1
        history.tokens += windows.numel()
        return loss.item()

    def note_progress(self, recent: list[float]) -> None:
        """Add a point to the loss curve and print it."""
        history = self.history
        point = {
            "tokens": float(history.tokens),
            "train_loss": sum(recent) / max(len(recent), 1),
            "held_out_loss": evaluate(self.model, self.held_out),
        }
        history.curve.append({name: round(value, 4) for name, value in point.items()})
        done = self.settings.progress(history.seconds, history.tokens)
        speed = history.tokens / max(history.seconds, 1e-9)
        logger.info("%5.1f%% step %d %s %.0f tokens/s", 100 * done, history.step, history.curve[-1], speed)

    def train(self) -> None:
        """Run until the limit."""
        self.model.train()
        recent: list[float] = []
        last_saved = time.monotonic()
        while self.settings.progress(self.history.seconds, self.history.tokens) < 1.0:
            started = time.monotonic()
            recent.append(self.train_step())
            if self.history.step % EVALUATE_EVERY_STEPS == 0:
                self.note_progress(recent)
                recent = []
            self.history.seconds += time.monotonic() - started
            if time.monotonic() - last_saved > CHECKPOINT_EVERY_SECONDS:
                self.save_checkpoint()
                last_saved = time.monotonic()
        self.note_progress(recent)
        self.save_checkpoint()


def load_or_train_tokenizer(seed: int, out: Path, held_out: set[str]) -> PreTrainedTokenizerFast:
    """The tokenizer in ``out``, trained first if it is not there; held-out text takes no part in training."""
    from transformers import AutoTokenizer

    if (out / "tokenizer.json").exists():
        loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(out)
        return loaded
    texts = first_documents(f"{seed}:tokenizer", TOKENIZER_DOCUMENTS)
    tokenizer = train_tokenizer(text for text in texts if text not in held_out)
    tokenizer.save_pretrained(out)
    return tokenizer


def save_model(run: Pretraining, out: Path) -> None:
    """Write the model folder's weights in bfloat16, with generation ending at the end of a turn or of a text."""
    import torch
    from transformers import GenerationConfig

    ends = [run.tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT)]
    run.model.config.eos_token_id = ends[0]
    run.model.config.pad_token_id = ends[1]
    run.model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[1], do_sample=False)
    run.model.to(torch.bfloat16).save_pretrained(out)


def parse_arguments() -> tuple[Settings, Path]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="the model folder to write")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--minutes", type=float, help="stop after this much training time (default 25)")
    limit.add_argument("--tokens", type=int, help="stop after this many training tokens")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    arguments = parser.parse_args()
    minutes = 25.0 if arguments.minutes is None else arguments.minutes
    limit_seconds = None if arguments.tokens else minutes * 60
    return Settings(seed=arguments.seed, limit_seconds=limit_seconds, limit_tokens=arguments.tokens), arguments.out


def main() -> None:
    """Train, then write the model folder and its papers."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings, out = parse_arguments()
    out.mkdir(parents=True, exist_ok=True)
    share_cores()
    keep_freed_memory()
    run = Pretraining(settings, out)
    logger.info("model has %d parameters, tokenizer %d entries", run.model.num_parameters(), len(run.tokenizer))
    run.resume()
    run.train()
    save_model(run, out)
    from finetune.starter.provenance import write_papers

    write_papers(run, out)
    run.checkpoint_path.unlink()


if __name__ == "__main__":
    main()
