"""Pretrained models: loaded from anywhere, exported to what every tool loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import UserError
from lifelong.models.adapters import export_adapter, local_adapter, merge_adapter
from lifelong.models.fingerprint import fingerprint
from lifelong.models.heads import NAME, read_head, write_head
from lifelong.models.routed import Learned, is_routed, write_learned
from lifelong.models.sources import locate, plain_errors
from lifelong.store.files import read_json, whole_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lifelong.core.model import Model

__all__ = ["export_adapter", "export_checkpoint", "fingerprint", "load"]

PERCEPTRON = "perceptron"  # is made, not loaded
UNBOUNDED = 1_000_000  # tokenizers state 1e30 where they know no limit
RELATIVE = 1024  # window where neither model nor tokenizer states one


def load(
    name: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    adapter: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    dtype: "torch.dtype | None" = None,
    attention: str = "auto",
    routed: bool = False,
    hidden_sizes: Sequence[int] | None = None,
    num_inputs: int | None = None,
    seed: int | None = None,
) -> "Model":
    """The model of an embedded name, a folder or a Hub name. `dtype` None keeps the stored type. The
    last three arguments are for `perceptron`, which is made and not loaded.

    The fingerprint is that of the weights as stored, whatever `dtype` is; with an adapter that of the
    sum, in float32. A base with a tuner beside it is refused unless `routed`: the caller puts it on.
    """
    _quiet()
    if name == PERCEPTRON and not Path(name).exists():
        return _perceptron().make(hidden_sizes, num_inputs, seed)
    place = locate(name, revision, gguf_file, allow_pickle)
    _look_at(Path(place.name) if place.local else None, routed)
    common = {"trust_remote_code": trust_remote_code} | ({} if place.local else {"revision": revision})
    with plain_errors(name, place.local):
        network = _network(place.name, allow_pickle, attention, common)
        processor = _processor(place.name, network, common)
    notes, folders = dict(place.notes), [Path(place.name)] if place.local else []
    stored, digest = network.dtype, fingerprint(network)
    if adapter is not None:
        folders.insert(0, local_adapter(adapter))
        network, notes["adapter"] = merge_adapter(network, folders[0], digest, allow_pickle)
        digest = fingerprint(network)
    _cast(network, dtype or stored)
    any(read_head(network, folder) for folder in folders)  # the first that has one
    return _ready(network, processor, name, digest, notes)


def _ready(network: "nn.Module", processor: Any, name: str, digest: str, notes: dict[str, Any]) -> "Model":
    from lifelong.core.model import Model, kind_of

    kind = kind_of(network)
    if kind == "vision":
        return Model(network, processor, kind, 1, name, digest, notes)
    notes |= ensure_pad(processor, name)
    return Model(network, processor, kind, window_of(network.config, processor), name, digest, notes)


def _perceptron() -> Any:
    from lifelong.models import perceptron  # here, since it imports transformers' image processors

    return perceptron


def _look_at(folder: Path | None, routed: bool) -> None:
    """Let transformers know an architecture of our own; refuse a base that is not alone, unless `routed`."""
    if folder is None:
        return
    if read_json(folder / "config.json").get("model_type") == PERCEPTRON:
        _perceptron().register()
    if is_routed(folder) and not routed:
        raise UserError(
            f"model: {folder} is a plain base with what a tuner learned beside it. `lifelong.load` and "
            "`lifelong eval` put both together; to teach it more, continue its run."
        )


def _quiet() -> None:
    """No progress bars, and no word on every retry of the Hub's client: our errors say what failed."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def _network(place: str, allow_pickle: bool, attention: str, common: dict[str, Any]) -> "nn.Module":
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(place, **common)
    if attention != "auto":
        common = common | {"attn_implementation": attention}
    network, report = _auto_class(config).from_pretrained(
        place,
        config=config,
        dtype="auto",
        use_safetensors=None if allow_pickle else True,
        output_loading_info=True,
        **common,
    )
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        network.pooler = None  # a checkpoint of another head: a random pooler would only mislead
    elif missing:
        raise UserError(
            f"model: {place} lacks {len(missing)} weights of its architecture, first `{missing[0]}`."
        )
    return network.eval()


def _auto_class(config: Any) -> Any:
    """The class that reads the checkpoint with the head it was trained with, if it generates text."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto as known

    names = config.architectures or []
    if config.is_encoder_decoder and config.model_type in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSeq2SeqLM
    if any(name in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in names):
        return AutoModelForCausalLM
    remote = getattr(config, "auto_map", {})  # only configurations with code of their own have one
    return AutoModelForCausalLM if "AutoModelForCausalLM" in remote else AutoModel


def _processor(place: str, network: "nn.Module", common: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor, AutoTokenizer

    from lifelong.core.model import kind_of

    return (AutoImageProcessor if kind_of(network) == "vision" else AutoTokenizer).from_pretrained(
        place, **common
    )


def ensure_pad(tokenizer: Any, name: str) -> dict[str, str]:
    """Give the tokenizer a pad token; the note says so."""
    if tokenizer.pad_token is not None:
        return {}
    if tokenizer.eos_token is None:
        raise UserError(
            f"model: the tokenizer of `{name}` has neither a pad token nor an end token; set one."
        )
    tokenizer.pad_token = tokenizer.eos_token
    return {"padding": f"no pad token: `{tokenizer.eos_token}` is used; pads are masked"}


def window_of(config: Any, tokenizer: Any) -> int:
    """Longest input in tokens: what both model and tokenizer allow."""
    text = config.get_text_config()
    stated = [text.to_dict().get(key) for key in ("max_position_embeddings", "n_positions")]
    if text.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions start after the pad id
        stated = [each and each - text.pad_token_id - 1 for each in stated]
    limits = [each for each in (*stated, tokenizer.model_max_length) if each and 1 < each < UNBOUNDED]
    return min(limits, default=RELATIVE)


def _cast(network: "nn.Module", dtype: "torch.dtype") -> None:
    """Parameters only: position tables and other buffers that transformers keeps in float32 stay."""
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    network.config.dtype = dtype


def export_checkpoint(model: "Model", folder: str | Path, learned: Learned | None = None) -> Path:
    """A plain transformers folder with safetensors; the label head and what a tuner learned beside it,
    where there are any.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise UserError(f"export: {folder} is not empty and holds no model; choose another folder.")
    _quiet()
    network = model.network
    state = {key: each for key, each in network.state_dict().items() if not key.startswith(f"{NAME}.")}
    assert not any(".lora_A." in key for key in state), "fold the tuner before the export"
    with whole_folder(folder) as temporary:
        network.save_pretrained(temporary, state_dict=state)
        model.processor.save_pretrained(temporary)
        write_head(network, temporary)
        if learned is not None:
            write_learned(learned, temporary)
    return folder
