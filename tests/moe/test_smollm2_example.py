"""`examples/smollm2/make_base.py` on a GGUF file like the real one: Llama, tied embeddings, its tokenizer inside.

The real file has 93 MB. This one is written here, and Transformers, which reads both, says what its model computes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe.attention import Documents
from moe.hf import load_checkpoint, read_config
from moe.model import HybridModel, PackedBatch
from tests.moe.test_upcycle import TOLERANCE

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 24, 40, 2, 6, 2
PIECES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "ab", "cd"]
MERGES = ["a b", "c d"]
SCRIPT = Path(__file__).parents[2] / "examples" / "smollm2" / "make_base.py"


def write_gguf(path: Path) -> None:
    """Without an output head, as tied embeddings are written."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(PIECES))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(PIECES)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(PIECES) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ 'You are SmolLM.' }}")
    generator, kv = np.random.default_rng(0), KV_HEADS * HIDDEN // HEADS
    sizes: dict[str, tuple[int, ...]] = {"token_embd": (len(PIECES), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        of_layer = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
            "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INTERMEDIATE, HIDDEN),
            "ffn_up": (INTERMEDIATE, HIDDEN),
            "ffn_down": (HIDDEN, INTERMEDIATE),
        }
        sizes |= {f"blk.{layer}.{name}": size for name, size in of_layer.items()}
    for name, size in sizes.items():
        values = generator.standard_normal(size) * 0.3 + (len(size) == 1)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def test_a_gguf_file_with_tied_embeddings_becomes_a_hybrid_of_the_same_function(tmp_path: Path) -> None:
    write_gguf(tmp_path / "small.gguf")
    base = tmp_path / "base"
    command = [sys.executable, str(SCRIPT), str(tmp_path / "small.gguf"), str(base)]
    sizes = ["--num-experts", "4", "--expert-intermediate-size", "8"]
    done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=True)
    config = read_config(base)
    assert done.stdout == f"{config.num_params():,} parameters, {config.num_active_params():,} active\n"
    assert (config.num_experts, config.residual_size, config.rope_theta) == (4, INTERMEDIATE, 5000.0)

    dense = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    assert dense.config.tie_word_embeddings
    hybrid = HybridModel(config)
    load_checkpoint(hybrid, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.chat_template is None, "its own would say who it is"
    tokens = tokenizer("abcdabhgfe").input_ids
    assert tokens == [PIECES.index(piece) for piece in ("ab", "cd", "ab", *"hgfe")]
    expected_TV = dense(torch.tensor([tokens])).logits[0]
    batch = PackedBatch(torch.tensor(tokens), Documents.from_lengths([len(tokens)]), (len(tokens),))
    logits_TV = hybrid.lm_head(hybrid(batch)[0])
    bound = TOLERANCE * float(expected_TV.abs().max())
    torch.testing.assert_close(logits_TV, expected_TV, rtol=0, atol=bound)
    hybrid.lm_head.weight.copy_(hybrid.lm_head.weight.roll(1, 0))
    assert (hybrid.lm_head(hybrid(batch)[0]) - expected_TV).abs().max() > 100 * bound
