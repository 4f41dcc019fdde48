"""The wandb workspace of a project: training, lengths, retrieval, comparison of methods."""

import importlib.util
import json
from typing import Any


def workspace(entity: str, project: str) -> Any:
    """Sections over what `tracking` logs; nothing is sent. Raises ValueError without the extra."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError("the dashboard needs wandb-workspaces: pip install 'ctxext[dashboard]'")
    import wandb_workspaces.workspaces as ws

    from ctxext.tracking.dashboard_panels import sections

    return ws.Workspace(
        name="ctxext",
        entity=entity,
        project=project,
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in sections().items()
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
            "must exist: track a run in it first"
        ) from error
