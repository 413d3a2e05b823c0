"""A GGUF file of a tiny model of the Llama family with a byte-level tokenizer."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

WIDTH, HEADS, KV_HEADS, MLP_WIDTH = 32, 4, 2, 64
CONTROL_TOKENS = ["<|endoftext|>", "<|end|>", "<|turn|>"]


def write_tiny_gguf(file: Path, *, split: str, eot: int | None = None) -> None:
    """Write the file.

    Args:
        split: Its `tokenizer.ggml.pre`.
        eot: Its token that ends a turn; the one that ends a text is 1.
    """
    writer = gguf.GGUFWriter(file, "llama")
    tokens = [*CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL_TOKENS) + [1] * (len(tokens) - len(CONTROL_TOKENS)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(1)
    if eot is not None:
        writer.add_eot_token_id(eot)
    for name, shape in _shapes(len(tokens)).items():
        writer.add_tensor(name, np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    shared = WIDTH // HEADS * KV_HEADS
    block = {
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (shared, WIDTH),
        "attn_v": (shared, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (MLP_WIDTH, WIDTH),
        "ffn_up": (MLP_WIDTH, WIDTH),
        "ffn_down": (WIDTH, MLP_WIDTH),
    }
    return {
        "token_embd.weight": (vocab_size, WIDTH),
        "output_norm.weight": (WIDTH,),
        **{f"blk.0.{name}.weight": shape for name, shape in block.items()},
    }
