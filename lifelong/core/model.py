"""A pretrained network with what is needed to speak to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from lifelong.core.kept import Kept

Kind = Literal["decoder", "encoder_decoder", "encoder", "vision"]


@dataclass
class Model:
    """`kind` follows from what the network offers, never from its name."""

    network: nn.Module
    processor: Any  # tokenizer, or image processor for vision
    kind: Kind
    window: int  # longest input in tokens (patches do not count for vision)
    name: str = ""  # as the user gave it
    fingerprint: str = ""  # of the base weights, see store.fingerprint
    notes: dict[str, Any] = field(default_factory=dict)
    answering: Callable[[Any, Sequence[Any], Sequence[str]], list[Any]] | None = None  # set by a tuner that
    # looks at rows before they are answered: (objective, rows, labels) -> answers
    still: bool = False  # while it answers by a body that no method moves: features are looked up in `kept`
    kept: Kept = field(default_factory=Kept)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def hidden_size(self) -> int:
        config = self.network.config
        return config.get_text_config().hidden_size if self.kind != "vision" else config.hidden_size

    def body(self) -> nn.Module:
        """The network without its output head."""
        return self.network.base_model

    def answers(self, objective: Any, rows: Sequence[Any], labels: Sequence[str]) -> list[Any]:
        """Answers to `rows` by the objective, in their order."""
        if self.answering is None:
            return objective.answer(rows, self, labels)
        return self.answering(objective, rows, labels)

    def params(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        return {n: p for n, p in self.network.named_parameters() if p.requires_grad}


def kind_of(network: nn.Module) -> Kind:
    """What the network takes and gives."""
    if network.main_input_name == "pixel_values":
        return "vision"
    if network.config.is_encoder_decoder:
        return "encoder_decoder"
    return "decoder" if network.can_generate() else "encoder"
