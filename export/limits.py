"""How much worse an artifact may be than what it was made from: the default limits, by nominal bits per weight.

What is done with them is `export.compare`'s.
"""

from pydantic import Field

from export.frozen import Frozen
from export.promises import promised


class Limits(Frozen):
    """How much worse an artifact may be than what it was made from: by default, in 6 bits and more."""

    kl_mean: float = Field(default=0.01, ge=0, description="Largest mean KL divergence, nats per assistant token.")
    kl_percentile_99: float = Field(default=0.1, ge=0, description="Largest 99th percentile of that divergence, nats.")
    same_top_token: float = Field(
        default=0.97, ge=0, le=1, description="Smallest share of tokens with the same top one."
    )
    perplexity_ratio: float = Field(default=1.01, ge=1, description="Largest ratio of perplexities, after over before.")
    task_drop: float = Field(default=0.007, ge=0, description="Largest drop of a task score, as a share.")
    task_drop_bound: float = Field(
        default=0.02, ge=0, description="Largest one-sided 95 % bound of that drop, as a share."
    )


class LooserLimits(Limits):
    """The same limits with the defaults of 5 bits and fewer."""

    kl_mean: float = Field(default=0.05, ge=0, description="Largest mean KL divergence, nats per assistant token.")
    kl_percentile_99: float = Field(default=0.5, ge=0, description="Largest 99th percentile of that divergence, nats.")
    same_top_token: float = Field(
        default=0.90, ge=0, le=1, description="Smallest share of tokens with the same top one."
    )
    perplexity_ratio: float = Field(default=1.03, ge=1, description="Largest ratio of perplexities, after over before.")


class Gate(Frozen):
    """Limits by the artifact's nominal bits per weight."""

    from_6_bits: Limits = Field(
        default=Limits(), description="For 6, 8 and 16 bits, and for the merged model against the model as trained."
    )
    below_6_bits: LooserLimits = Field(default=LooserLimits(), description="For 5 bits and fewer.")

    def limits_for_merge(self, *, four_bit_base: bool) -> Limits:
        """The limits the merged model is held to against the model as it was trained.

        An adapter whose base was in 4 bits is merged onto 16, so that they differ by the rounding of the 4 bits too:
        divergence and perplexity are then held to the limits of fewer than 6 bits, task scores as ever.
        """
        if not four_bit_base:
            return self.from_6_bits
        fields = ("kl_mean", "kl_percentile_99", "same_top_token", "perplexity_ratio")
        return self.from_6_bits.model_copy(update={field: getattr(self.below_6_bits, field) for field in fields})

    def limits_for(self, subject: str, bits: float | None = None) -> Limits:
        """The limits an artifact is held to: by the bits its name promises, else by `bits`, measured or known.

        With neither it is taken for a dense model, of 16 bits.
        """
        nominal = promised(subject).bits or bits or 16
        return self.below_6_bits if nominal < 6 else self.from_6_bits
