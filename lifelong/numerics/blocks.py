"""The repeated blocks of a network and the modules in them that own parameters."""

from torch import nn

from lifelong.numerics.positions import outermost_lists

Unit = list[str]  # names of the parameters of one module


def blocks(network: nn.Module) -> dict[str, list[dict[str, list[Unit]]]]:
    """{stack: [{category: units} of each block]}. Stacks are the outermost lists of modules.

    A category holds modules of equal size in one block: those of one attention (a module whose class
    has it in its name), of the rest ("feed-forward"), or norms (vectors only). Embeddings are left out.
    """
    return {
        stack: [
            _units(f"{stack}.{number}", block)
            for number, block in network.get_submodule(stack).named_children()
        ]
        for stack in outermost_lists(network)
    }


def _units(prefix: str, block: nn.Module) -> dict[str, list[Unit]]:
    found: dict[str, list[Unit]] = {}
    attention = [path for path, m in block.named_modules() if "attention" in type(m).__name__.lower()]
    for path, module in block.named_modules():
        own = {name: p for name, p in module.named_parameters(recurse=False) if p.is_floating_point()}
        if not own or isinstance(module, nn.Embedding):
            continue
        size = max(p.numel() for p in own.values())
        kind = next((at for at in attention if path == at or path.startswith(f"{at}.")), "feed-forward")
        kind = kind if any(p.dim() > 1 for p in own.values()) else "norm"
        where = f"{prefix}.{path}" if path else prefix
        found.setdefault(f"{kind}/{size}", []).append([f"{where}.{name}" for name in own])
    return found
