"""Shape of the network that is trained: its sizes and its configuration for transformers."""

from dataclasses import dataclass

from transformers import Qwen3Config


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 768
    vocabulary: int = 8192
    positions: int = 1024

    def config(self) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=64,
            max_position_embeddings=self.positions,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=2,
        )
