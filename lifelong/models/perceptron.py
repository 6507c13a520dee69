"""A perceptron on images, made with random weights and not loaded: the network of the references on MNIST.

    h_0 = pixels / 255, flattened;  h_i = relu(W_i h_{i-1} + b_i);  features = h_L

The label head reads the features, so that every objective, tuner and penalty sees a vision model. Weights
begin as PyTorch draws those of a linear layer (uniform within 1 / sqrt(inputs)), by a seed of their own.
Images stay bytes until the first layer: an encoded row of MNIST takes 784 bytes in a memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.modeling_outputs import BaseModelOutput

from lifelong.core.model import Model
from lifelong.errors import UserError
from lifelong.models.fingerprint import fingerprint

NAME = "perceptron"  # model type


class PerceptronConfig(PreTrainedConfig):
    model_type = NAME

    def __init__(
        self, hidden_sizes: Sequence[int] = (100, 100), num_inputs: int = 784, **common: Any
    ) -> None:
        self.hidden_sizes, self.num_inputs = list(hidden_sizes), num_inputs
        self.hidden_size = self.hidden_sizes[-1]  # width of the features
        super().__init__(**common)


class PerceptronModel(PreTrainedModel):
    config_class = PerceptronConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__(config)
        sizes = [config.num_inputs, *config.hidden_sizes]
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Linear layers draw their own weights when they are made."""

    def forward(self, pixel_values: Tensor, **unused: Any) -> BaseModelOutput:  # (B, inputs) uint8
        hidden = pixel_values.to(self.layers[0].weight.dtype) / 255
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return BaseModelOutput(last_hidden_state=hidden[:, None])  # (B, 1, H): one position


class PerceptronImageProcessor(BaseImageProcessor):
    """Flattens images to bytes; nothing is resized."""

    model_input_names = ["pixel_values"]

    def __init__(self, num_inputs: int = 784, **common: Any) -> None:
        super().__init__(**common)
        self.num_inputs = num_inputs

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt") -> BatchFeature:
        flat = [np.asarray(image).reshape(-1) for image in images]
        for image in flat:
            if len(image) != self.num_inputs or image.dtype != np.uint8:
                raise UserError(
                    f"the perceptron reads images of {self.num_inputs} bytes; got {len(image)} values of "
                    f"type {image.dtype}. Set num_inputs of the model (height * width * channels)."
                )
        return BatchFeature({"pixel_values": torch.from_numpy(np.stack(flat))})  # (B, inputs)


def register() -> None:
    """Let the Auto classes read a perceptron that was exported."""
    AutoConfig.register(NAME, PerceptronConfig, exist_ok=True)
    AutoModel.register(PerceptronConfig, PerceptronModel, exist_ok=True)
    AutoImageProcessor.register(
        PerceptronConfig, slow_image_processor_class=PerceptronImageProcessor, exist_ok=True
    )


def make(hidden_sizes: Sequence[int] | None, num_inputs: int | None, seed: int | None) -> Model:
    """A model with fresh weights. None: 2 x 100 units on 784 inputs, seed 0."""
    made = {"hidden_sizes": list(hidden_sizes or (100, 100)), "num_inputs": num_inputs or 784}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)
        network = PerceptronModel(PerceptronConfig(**made)).eval()
    processor = PerceptronImageProcessor(made["num_inputs"])
    return Model(
        network, processor, "vision", 1, NAME, fingerprint(network), {"made": made | {"seed": seed or 0}}
    )
