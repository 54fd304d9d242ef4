"""A checkpoint directory as a GGUF file in float32: Qwen3 and Llama weights, with the vocabulary of tokenizer.json.

The engine's own converter wants torch and transformers in the environment; this one wants numpy and the gguf package.
"""

import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARCHITECTURES: Mapping[str, str] = {"Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}
OUTSIDE: Mapping[str, str] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_BLOCK: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
NORMAL, CONTROL = 1, 3  # token types of the format


def gguf_name(name: str) -> str:
    """The name of a tensor in the file; raises ValueError for one that neither architecture has."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    found = BLOCK.fullmatch(name)
    if found is None or found[2] not in IN_BLOCK:
        raise ValueError(
            f"tensor {name!r} is none of a Qwen3 or Llama model; convert the checkpoint with llama.cpp's own script"
        )
    return f"blk.{found[1]}.{IN_BLOCK[found[2]]}.{found[3]}"


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a Llama query or key projection in the order of llama.cpp, whose rotary pairs are neighbours."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and float32 values of all weights in a directory's safetensors files."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                yield name, _floats(data[begin:end], entry["dtype"]).reshape(entry["shape"])


def vocabulary(tokenizer: Mapping[str, Any], size: int) -> tuple[list[str], list[int], list[str]]:
    """Pieces, types and merges of a byte-level BPE; ids without a piece get one that no text holds."""
    model = tokenizer["model"]
    added = {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    pieces = {index: piece for piece, index in model["vocab"].items()} | added
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return (
        [pieces.get(index, f"<unused{index}>") for index in range(size)],
        [CONTROL if index in added or index not in pieces else NORMAL for index in range(size)],
        merges,
    )


def write_gguf(checkpoint: Path, file: Path) -> None:
    """Write the checkpoint; raises ValueError for an architecture or a rotary scaling that is not converted."""
    gguf: Any = import_module("gguf")
    config = json.loads((checkpoint / "config.json").read_text())
    (architecture,) = config["architectures"]
    rope = config.get("rope_parameters") or config
    if architecture not in ARCHITECTURES or rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"{architecture} with these rotary positions is not converted; use Qwen3 or Llama with plain ones"
        )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads

    writer = gguf.GGUFWriter(file, ARCHITECTURES[architecture])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])

    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    pieces, types, merges = vocabulary(tokenizer, config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    if isinstance(config.get("eos_token_id"), int):
        writer.add_eos_token_id(config["eos_token_id"])

    for name, weight in tensors(checkpoint):
        if ARCHITECTURES[architecture] == "llama" and re.search(r"\.[qk]_proj\.", name):
            weight = interleaved(weight, heads if ".q_proj." in name else kv_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _floats(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)
