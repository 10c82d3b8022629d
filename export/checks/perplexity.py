"""How well a model predicts the reference answers."""

from export.checks._base import Check, Items, Measurement, Observation, measurement


class Perplexity(Check):
    """Perplexity of the held-out assistant tokens: exp of the mean negative log-probability, turn ends included."""

    def measure(self, work: Items, seen: Observation) -> tuple[Measurement, ...]:
        """One number over all scored tokens; its standard error counts rows, not tokens, as independent."""
        sample = [[-value for value in item.log_probs] for item in seen.items]
        return (
            measurement(
                "perplexity", seen.subject, sample, unit="perplexity", higher_is_better=False, statistic="exp_mean"
            ),
        )


step = Perplexity
