"""The measures of answers, with their names."""

from collections.abc import Callable
from dataclasses import dataclass

from ctxext.evals.stats import Interval
from ctxext.report.analysis.scores import Scores
from ctxext.report.pages.tables_by_length import interval_text


@dataclass(frozen=True)
class Measure:
    """A number of the answers to some questions, with its name."""

    key: str
    title: str
    value: Callable[[Scores], Interval | None]
    """None where the records do not have it."""
    spec: str
    """Format specification of its numbers."""
    description: str

    def text(self, scores: Scores) -> str:
        """Its value with the interval, and before it what was counted, if it is a share."""
        interval = self.value(scores)
        value = "-" if interval is None else interval_text(interval, self.spec)
        counts = {"right": scores.correct, "choice": scores.num_chosen}
        return f"{counts[self.key]}/{scores.n} {value}" if self.key in counts else value


ACCURACY = Measure(
    "right",
    "right answers, %",
    lambda scores: scores.accuracy,
    ".0f",
    "Percent of right answers with 95 % Wilson intervals.",
)
MEAN_SCORE = Measure(
    "score",
    "mean score, %",
    lambda scores: scores.mean_score,
    ".0f",
    "Partly right answers count in part; 95 % t intervals over documents.",
)
CHOICE = Measure(
    "choice",
    "right answer chosen, %",
    lambda scores: scores.choice,
    ".0f",
    "How often the right answer is more likely, in nats per token, than every other candidate; "
    "95 % Wilson intervals.",
)
ANSWER_NLL = Measure(
    "nats",
    "nats per token of the right answer",
    lambda scores: scores.nll,
    ".2f",
    "Negative log-likelihood of the right answer, teacher-forced; lower is better; 95 % t "
    "intervals over documents.",
)
MEASURES = (ACCURACY, MEAN_SCORE, CHOICE, ANSWER_NLL)
