"""Nothing is trapped: a stage of a run as a plain transformers checkpoint or a peft adapter."""

from pathlib import Path
from typing import Any

from lifelong.errors import UserError
from lifelong.models import pretrained
from lifelong.models.restore import open_run


def export_run(source: Path, output: Path, stage: str | None = None, adapter: bool = False) -> dict[str, Any]:
    """Write the model of one stage (default: the last finished one) to `output`.

    Returns {"kind", "folder", "stage", "note"}. Raises UserError where `output` exists, or where an
    adapter is asked for and the update is not one of low rank.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} exists and is no empty folder; name another one.")
    restored = open_run(source, stage)
    model = restored.model
    grown = "lifelong_head" in dict(model.network.named_children())
    if adapter:
        update = restored.tuner.low_rank(model, restored.tuner_state)
        if update is None:
            raise UserError(
                f"the update of {type(restored.tuner).__name__} is not of low rank, so it is no peft "
                "adapter. Export the whole model: leave --adapter out."
            )
        base = restored.config["model"]["name"]
        pretrained.export_adapter(update, model, output, base)
        rank = max(each.down.shape[0] for each in update.values())
        note = f"stage {restored.stage}, rank {rank}, for base {base}"
        if grown:
            note += "; its growing head loads through lifelong.load"
        return {"kind": "adapter", "folder": str(output), "stage": restored.stage, "note": note}
    restored.tuner.fold(model, restored.tuner_state)
    pretrained.export_checkpoint(model, output)
    note = f"stage {restored.stage}; " + (
        "its growing head loads through lifelong.load; the body is plain transformers"
        if grown
        else "plain transformers"
    )
    return {"kind": "checkpoint", "folder": str(output), "stage": restored.stage, "note": note}
