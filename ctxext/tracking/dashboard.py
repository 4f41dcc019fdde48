"""The wandb workspace of a project: training, lengths, retrieval, comparison of methods."""

import importlib.util
import json
from typing import Any

from ctxext.tasks import suite_classes


def workspace(entity: str, project: str) -> Any:
    """Sections over what `tracking` logs; nothing is sent. Raises ValueError without the extra."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError("the dashboard needs wandb-workspaces: pip install 'ctxext[dashboard]'")
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn as Column

    def by_step(title: str, *names: str, log_y: bool = False) -> Any:
        return wr.LinePlot(
            title=title, x="train/step", y=[f"train/{name}" for name in names], log_y=log_y
        )

    def matching(title: str, regex: str, *, x: str, log_x: bool = False) -> Any:
        return wr.LinePlot(title=title, x=x, metric_regex=regex, log_x=log_x)

    def by_length(title: str, regex: str) -> Any:
        return matching(title, regex, x="eval/seq_len", log_x=True)

    method = wr.Config("method")
    columns = [
        method,
        wr.Config("rope.factor"),
        wr.Config("train.seq_len"),
        wr.Config("train.steps"),
        wr.SummaryMetric("train/loss"),
        wr.SummaryMetric("train/short_drift"),
    ]
    sections = {
        "Training": [
            by_step("loss, nats per token", "loss"),
            by_step("learning rate", "learning_rate"),
            by_step("gradient norm", "grad_norm", log_y=True),
            by_step("tokens per second", "tokens_per_second"),
            by_step("MFU", "mfu"),
            by_step("largest attention logit", "attention_logit_max"),
            matching(
                "largest attention logit of each layer", "train/attention_logit/.*", x="train/step"
            ),
            by_step(
                "short-context drift: loss on short held-out text above step 0, nats", "short_drift"
            ),
            by_step("loss on short held-out text, nats per token", "short_loss"),
        ],
        "Length generalisation": [
            matching("loss by tokens seen", "train/loss_by_position/.*", x="train/step"),
            by_length("nats per token by length", "eval/ppl[^/]*/.*/nats_per_token"),
            by_length("LongPPL, nats per key token by length", "eval/longppl/.*/nats_per_token"),
        ],
        "Retrieval": [
            by_length("right answers by length", "eval/[^/]*/.*/correct"),
            by_length("nats per answer by length", "eval/[^/]*/.*/answer_nll"),
            wr.MediaBrowser(
                title="length x depth",
                media_keys=[f"heatmaps/{task.name}" for task in suite_classes()],
                num_columns=2,
            ),
        ],
        "Comparison of methods": [
            wr.LinePlot(
                title="loss by method, mean and range",
                x="train/step",
                y=["train/loss"],
                groupby=method,
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            ),
            wr.BarPlot(
                title="loss at the end by method",
                metrics=["train/loss"],
                groupby=method,
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            ),
            wr.ParallelCoordinatesPlot(
                title="settings and outcome", columns=[Column(metric=c) for c in columns]
            ),
            wr.RunComparer(diff_only="split"),
            wr.WeavePanelSummaryTable(table_name="rows"),
        ],
    }
    return ws.Workspace(
        name="ctxext",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()
        ],
    )


def as_json(project: str, entity: str = "") -> dict[str, Any]:
    """The workspace as wandb would be sent it; needs no login."""
    model = workspace(entity, project)._to_model()
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def save(project: str, entity: str = "") -> str:
    """Save the workspace as a new view of the project and return its address.

    Raises ValueError without a login or a project.
    """
    from ctxext.tracking.wandb import default_entity

    new = workspace(entity or default_entity(), project)
    try:
        return new.save().url
    except Exception as error:  # of whatever transport wandb uses
        raise ValueError(
            f"wandb did not save the dashboard of {new.entity}/{project} ({error}); the project "
            "must exist: track a "
            "run in it first"
        ) from error
