"""Nothing is trapped: a stage of a run as a plain transformers checkpoint or a peft adapter.

What neither can express (routed experts) becomes a plain base with the experts in files beside it,
which `lifelong.load` puts on.
"""

from pathlib import Path
from typing import Any

from lifelong.core.composition import snake
from lifelong.errors import UserError
from lifelong.models import pretrained, restore


def export_run(source: Path, output: Path, stage: str | None = None, adapter: bool = False) -> dict[str, Any]:
    """Write the model of one stage (default: the last finished one) to `output`.

    Returns {"kind", "folder", "stage", "note"}; the kind is "checkpoint", "adapter" or "routed". Raises
    UserError where `output` exists, or where an adapter is asked for and the update is not one of low
    rank.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output} exists and is no empty folder; name another one.")
    saved = restore.read_run(source, stage)
    if not saved.tuner.folds:
        return _export_routed(saved, output, adapter)
    restored = restore.put_on(saved)
    model = restored.model
    grown = "lifelong_head" in dict(model.network.named_children())
    if adapter:
        update = restored.tuner.low_rank(model, restored.tuner_state)
        if update is None:
            raise _no_adapter(saved)
        base = restored.config["model"]["name"]
        pretrained.export_adapter(update, model, output, base)
        rank = max(each.down.shape[0] for each in update.values())
        note = f"stage {restored.stage}, rank {rank}, for base {base}"
        if grown:
            note += "; its growing head loads through lifelong.load"
        return {"kind": "adapter", "folder": str(output), "stage": restored.stage, "note": note}
    restored.tuner.fold(model, restored.tuner_state)
    pretrained.export_checkpoint(model, output)
    body = "an architecture of lifelong's own" if "made" in model.notes else "plain transformers"
    head = "its growing head loads through lifelong.load; the body is " if grown else ""
    note = f"stage {restored.stage}; {head}{body}"
    return {"kind": "checkpoint", "folder": str(output), "stage": restored.stage, "note": note}


def _export_routed(saved: restore.Saved, output: Path, adapter: bool) -> dict[str, Any]:
    """The base as it was before the first stage, the head, and the tuner with all that it learned."""
    if adapter:
        raise _no_adapter(saved)
    model = restore.base_of(saved)
    base = pretrained.fingerprint(model.network)
    restore.add_heads(model, saved)
    pretrained.export_checkpoint(model, output, restore.learned(saved, base))
    name = snake(saved.tuner)
    note = (
        f"stage {saved.stage}; what {name} learned stands beside a plain base and loads through "
        "lifelong.load; plain transformers sees the base alone"
    )
    return {"kind": "routed", "folder": str(output), "stage": saved.stage, "note": note}


def _no_adapter(saved: restore.Saved) -> UserError:
    return UserError(
        f"the update of {type(saved.tuner).__name__} is not of low rank, so it is no peft adapter. Export "
        "the whole model: leave --adapter out."
    )
