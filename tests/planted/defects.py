"""Every planted defect: how it is made, what it is sold as, and by what the gate must name it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from tests.planted import in_folder, in_gguf, in_training
from tests.planted.training import Trained


class Defect(NamedTuple):
    """A broken artifact. `seen_by` are findings and checks which must fail it, whatever others do too."""

    name: str
    build: Callable[[Trained, Path], Path]
    sold_as: Literal["q8_0", "q4_k_m", "4bit", "16bit"]
    seen_by: frozenset[str]

    @property
    def file_name(self) -> str:
        """The name it ships under, which promises a type."""
        return f"{self.name}-{self.sold_as}{'.gguf' if self.sold_as.startswith('q') else ''}"


def _defect(build: Callable[[Trained, Path], Path], sold_as: str, *seen_by: str, name: str = "") -> Defect:
    where = build.__module__.rpartition("in_")[2]
    return Defect(f"{where}_{name or build.__name__}", build, sold_as, frozenset(seen_by))


DEFECTS = (
    # what a GGUF file says about itself
    _defect(in_gguf.stop_id_changed, "q8_0", "stop ids"),
    _defect(in_gguf.chat_template_removed, "q8_0", "chat template"),
    _defect(in_gguf.default_prompt_dropped, "q8_0", "chat template", "token ids"),
    _defect(in_gguf.beginning_token_added, "q8_0", "added tokens"),
    _defect(in_gguf.pre_tokenizer_renamed, "q8_0", "token ids"),
    _defect(in_gguf.merges_cut_short, "q8_0", "token ids"),
    _defect(in_gguf.special_tokens_swapped, "q8_0", "vocabulary", "token ids"),
    _defect(in_gguf.special_token_made_plain, "q8_0", "token ids"),
    _defect(in_gguf.vocabulary_truncated, "q8_0", "vocabulary"),
    _defect(in_gguf.rope_base_changed, "q8_0", "settings", "kl_mean"),
    _defect(in_gguf.norm_epsilon_changed, "q8_0", "settings"),
    _defect(in_gguf.context_shortened, "q8_0", "settings"),
    _defect(in_gguf.tensor_missing, "q8_0", "file"),
    _defect(in_gguf.cut_short, "q8_0", "file"),
    _defect(in_gguf.sold_as_another_type, "q4_k_m", "tensor types"),
    _defect(in_gguf.labelled_as_another_type, "q4_k_m", "tensor types"),
    # its weights
    _defect(in_gguf.tensor_zeroed, "q4_k_m", "weights"),
    _defect(in_gguf.layer_scaled, "q4_k_m", "weights"),
    _defect(in_gguf.layers_swapped, "q4_k_m", "weights"),
    _defect(in_gguf.layer_repeated, "q4_k_m", "weights", "kl_mean"),
    _defect(in_gguf.head_diverged, "q4_k_m", "tied embeddings"),
    _defect(in_gguf.heads_swapped, "q4_k_m", "weights", "kl_mean"),
    _defect(in_gguf.head_norms_lost, "q4_k_m", "weights"),
    _defect(in_gguf.norm_not_a_number, "q4_k_m", "weights"),
    _defect(in_gguf.too_sure, "q4_k_m", "weights", "kl_mean"),
    _defect(in_gguf.never_stops, "q4_k_m", "stops", "perplexity"),
    # what was merged
    _defect(in_training.adapter_not_merged, "q4_k_m", "weights", "kl_mean", "exact_match"),
    _defect(in_training.adapter_merged_twice, "q4_k_m", "weights", "kl_mean"),
    _defect(in_training.wrong_base, "q4_k_m", "weights"),
    _defect(in_training.scale_forgotten, "q4_k_m", "weights", "kl_percentile_99"),
    _defect(in_training.one_layer_left_out, "q4_k_m", "weights"),
    _defect(in_training.one_matrix_left_out, "q4_k_m", "weights"),
    _defect(in_training.earlier_step(0.5), "q4_k_m", "perplexity", name="half_of_the_steps"),
    # folders
    _defect(in_folder.template_in_config_changed, "16bit", "chat template", "token ids"),
    _defect(in_folder.shard_missing, "16bit", "file"),
    _defect(in_folder.tensor_missing, "16bit", "file"),
    _defect(in_folder.cut_short, "16bit", "file"),
    _defect(in_folder.stop_id_changed, "4bit", "stop ids"),
    _defect(in_folder.scales_wrong, "4bit", "weights"),
    _defect(in_folder.zero_points_shifted, "4bit", "weights", "kl_mean"),
    _defect(in_folder.calibrated_on_held_out, "4bit", "calibration rows"),
)
