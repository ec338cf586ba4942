"""A tiny random coder for the tests of training on packed texts."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM


def small_coder(vocabulary):
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.mul_(30)  # laws that are far from uniform
    return model
