"""Tiny random models of five architectures, and a byte tokenizer, all made without the network."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.utils import logging

from lifelong.core.model import Model, kind_of

ARCHITECTURES = ("llama", "gpt2", "bert", "t5", "vit")
TEXT = ("llama", "gpt2", "t5")  # generative


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus <pad>, <eos> and [CLS]; 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "[CLS]", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", cls_token="[CLS]", model_max_length=128
    )


def network(architecture: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    size = len(tokenizer())
    common = dict(pad_token_id=0, eos_token_id=1)
    if architecture == "llama":
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                bos_token_id=None, **common,
            )
        )  # fmt: skip
    elif architecture == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=None, **common
            )
        )
    elif architecture == "bert":
        made = BertModel(
            BertConfig(
                vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=64, max_position_embeddings=128, pad_token_id=0,
            )
        )  # fmt: skip
    elif architecture == "t5":
        made = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                decoder_start_token_id=0, **common,
            )
        )  # fmt: skip
    else:
        made = ViTModel(
            ViTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                image_size=16, patch_size=8, num_channels=3,
            )
        )  # fmt: skip
    return made.eval()


def model(architecture: str, seed: int = 0) -> Model:
    made = network(architecture, seed)
    kind = kind_of(made)
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}) if kind == "vision" else tokenizer()
    return Model(network=made, processor=processor, kind=kind, window=128, name=f"tiny-{architecture}")


def save(model, folder):
    """A folder as a user has it."""
    logging.disable_progress_bar()
    model.network.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return folder
