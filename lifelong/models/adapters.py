"""Adapters in peft's format: merged into their base on loading, written on export.

peft loads an adapter onto any base with modules of the right shape. Ours carry the fingerprint of
their base weights and are refused elsewhere. It stands in the header of adapter_model.safetensors,
since peft answers an unknown key in adapter_config.json with advice to upgrade peft.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import UserError
from lifelong.models.heads import write_head
from lifelong.models.sources import check_weights, plain_errors
from lifelong.store.files import whole_folder, write_json

if TYPE_CHECKING:
    from torch import nn

    from lifelong.core.axes import LowRank
    from lifelong.core.model import Model

KEY = "lifelong_base_fingerprint"
PREFIX = "base_model.model."
TASKS = {
    "decoder": "CAUSAL_LM",
    "encoder_decoder": "SEQ_2_SEQ_LM",
    "encoder": "FEATURE_EXTRACTION",
    "vision": None,
}


def local_adapter(adapter: str) -> Path:
    """The adapter's folder; a Hub name is downloaded."""
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        with plain_errors(adapter):
            folder = Path(snapshot_download(adapter, allow_patterns=["adapter_*"]))
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"adapter: {adapter} has no adapter_config.json, so it is no peft adapter.")
    return folder


def merge_adapter(
    network: "nn.Module", folder: Path, base: str, allow_pickle: bool
) -> tuple["nn.Module", str]:
    """(the network with the adapter summed in, in float32; what was checked). `base` is the
    fingerprint of the network's weights as stored.
    """
    check_weights(folder, "adapter_model.safetensors", allow_pickle, "adapter")
    recorded = recorded_base(folder)
    if recorded not in ("", base):
        raise UserError(
            f"adapter: {folder} was trained on other base weights (fingerprint {recorded[:12]}, here "
            f"{base[:12]}). Load it with the model and revision that it was trained on."
        )
    _check_modules(network, folder)

    from peft import PeftModel

    network.float()
    with plain_errors(str(folder), local=True):
        merged = PeftModel.from_pretrained(network, str(folder)).merge_and_unload(safe_merge=True)
    note = (
        "base weights verified"
        if recorded
        else "no fingerprint in the adapter: that its base is the right one was not checked"
    )
    return merged.eval(), f"merged {folder.name} in float32; {note}"


def recorded_base(folder: Path) -> str:
    """Fingerprint of the weights that the adapter was trained on; "" where it does not say."""
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return ""
    with plain_errors(str(file), local=True), safe_open(file, framework="pt") as tensors:
        return (tensors.metadata() or {}).get(KEY, "")


def _check_modules(network: "nn.Module", folder: Path) -> None:
    """Every low-rank pair has a module of its shape."""
    from safetensors import safe_open
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    modules = dict(network.named_modules())
    with plain_errors(str(file), local=True), safe_open(file, framework="pt") as tensors:
        for key in tensors.keys():
            match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
            if not match:
                continue
            module, shape = modules.get(match[1]), tensors.get_slice(key).get_shape()
            if module is None:
                raise UserError(
                    f"adapter: {folder} is for another architecture: there is no module `{match[1]}`."
                )
            if not isinstance(module, (nn.Linear, Conv1D)):
                continue
            rows, columns = module.weight.shape
            inside, outside = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
            if (shape[1] != inside) if match[2] == "A" else (shape[0] != outside):
                raise UserError(
                    f"adapter: {folder} is for a model of another size: `{match[1]}` maps {inside} to "
                    f"{outside}, the adapter's {match[2]} is {shape[0]} x {shape[1]}."
                )


def export_adapter(
    low_rank: Mapping[str, "LowRank"], model: "Model", folder: str | Path, base_name: str
) -> Path:
    """Write a low-rank update as a peft LoRA adapter that plain peft loads."""
    from safetensors.torch import save_file

    updates = {name: each for name, each in sorted(low_rank.items()) if each.down.shape[0]}
    if not updates:
        raise UserError("nothing to export: the update has rank 0, since no stage was trained yet.")
    tensors = {}
    for name, each in updates.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = each.down.detach().float().cpu().contiguous().clone()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = each.up.detach().float().cpu().contiguous().clone()
    metadata = {"format": "pt", KEY: model.fingerprint}
    with whole_folder(Path(folder)) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata=metadata)
        write_json(temporary / "adapter_config.json", _config(updates, model, base_name))
        write_head(model.network, temporary)
    return Path(folder)


def _config(updates: Mapping[str, "LowRank"], model: "Model", base_name: str) -> dict[str, Any]:
    """peft reads a module's update as alpha / r * B A; patterns hold what differs from the commonest."""
    from transformers.pytorch_utils import Conv1D

    ranks = {name: each.down.shape[0] for name, each in updates.items()}
    alphas = {name: each.scale * ranks[name] for name, each in updates.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    exact = {name: f"^{re.escape(name)}" for name in updates}  # patterns are regular expressions
    modules = [model.network.get_submodule(name) for name in updates]
    return {
        "peft_type": "LORA",
        "task_type": TASKS[model.kind],
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(updates),
        "rank_pattern": {exact[name]: each for name, each in ranks.items() if each != rank},
        "alpha_pattern": {exact[name]: each for name, each in alphas.items() if each != alpha},
        "fan_in_fan_out": all(isinstance(module, Conv1D) for module in modules),
        "bias": "none",
        "inference_mode": True,
    }
