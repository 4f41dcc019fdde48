"""The panels of each section of the dashboard. Needs wandb-workspaces."""

import re
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

from ctxext.tasks import suite_classes


def sections() -> dict[str, list[Any]]:
    """Panels by the title of their section, in the order of the dashboard."""
    return {
        "Training": training(),
        "Length generalisation": length_generalisation(),
        "Retrieval": retrieval(),
        "Comparison of methods": comparison(),
    }


def training() -> list[Any]:
    """Everything against the step of training."""
    return [
        _by_step("loss, nats per token", "loss"),
        _by_step("learning rate", "learning_rate"),
        _by_step("gradient norm", "grad_norm", log_y=True),
        _by_step("tokens per second", "tokens_per_second"),
        _by_step("MFU", "mfu"),
        _by_step("peak memory of a device, GiB", "device_peak_gib"),
        _by_step("peak memory of the host process, GiB", "host_peak_gib"),
        _by_step("largest attention logit", "attention_logit_max"),
        _matching(
            "largest attention logit of each layer", "train/attention_logit/.*", x="train/step"
        ),
        _by_step(
            "short-context drift: loss on short held-out text above step 0, nats", "short_drift"
        ),
        _by_step("loss on short held-out text, nats per token", "short_loss"),
        _matching("right answers during training", _tasks_during_training(), x="train/step"),
        _matching("loss of held-out text by length", "train/eval/loss@.*", x="train/step"),
    ]


def _tasks_during_training() -> str:
    """A pattern of the measures of questions; the loss has other units."""
    names = [*(re.escape(task.name) for task in suite_classes()), "retrieval", ".*/.*"]
    return f"train/eval/({'|'.join(names)})@.*"


def length_generalisation() -> list[Any]:
    """Losses by position in training, and perplexities by length."""
    return [
        _matching("loss by tokens seen", "train/loss_by_position/.*", x="train/step"),
        _by_length("nats per token by length", "eval/ppl[^/]*/.*/nats_per_token"),
        _by_length("LongPPL, nats per key token by length", "eval/longppl/.*/nats_per_token"),
    ]


def retrieval() -> list[Any]:
    """Answers by length, and the heatmaps of length and depth."""
    return [
        _by_length("right answers by length", "eval/[^/]*/.*/correct"),
        _by_length("nats per answer by length", "eval/[^/]*/.*/answer_nll"),
        wr.WeavePanelSummaryTable(table_name="wrong_answers"),
        wr.MediaBrowser(
            title="length x depth",
            media_keys=[f"heatmaps/{task.name}" for task in suite_classes()],
            num_columns=2,
        ),
    ]


def comparison() -> list[Any]:
    """Losses of runs grouped by method, and settings next to outcomes."""
    method = wr.Config("method")
    by_method: dict[str, Any] = {
        "groupby": method,
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    columns = [
        method,
        wr.Config("rope.factor"),
        wr.Config("train.seq_len"),
        wr.Config("train.steps"),
        wr.SummaryMetric("train/loss"),
        wr.SummaryMetric("train/short_drift"),
    ]
    return [
        wr.LinePlot(
            title="loss by method, mean and range", x="train/step", y=["train/loss"], **by_method
        ),
        wr.BarPlot(title="loss at the end by method", metrics=["train/loss"], **by_method),
        wr.ParallelCoordinatesPlot(
            title="settings and outcome",
            columns=[ParallelCoordinatesPlotColumn(metric=column) for column in columns],
        ),
        wr.RunComparer(diff_only="split"),
        wr.WeavePanelSummaryTable(table_name="rows"),
    ]


def _by_step(title: str, name: str, *, log_y: bool = False) -> Any:
    return wr.LinePlot(title=title, x="train/step", y=[f"train/{name}"], log_y=log_y)


def _matching(title: str, regex: str, *, x: str, log_x: bool = False) -> Any:
    """All metrics whose name matches."""
    return wr.LinePlot(title=title, x=x, metric_regex=regex, log_x=log_x)


def _by_length(title: str, regex: str) -> Any:
    return _matching(title, regex, x="eval/seq_len", log_x=True)
