"""Drafter checkpoints in the released format: what is written is what is read, and what does not fit is named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from dspark.calibration import Calibration
from dspark.checkpoints import DrafterNetwork, load_network, save_network, weights_sha256
from dspark.drafters.factory import Kind, load_drafter, new_network

Tiny = Callable[..., PreTrainedModel]
CPU = torch.device("cpu")


def build(target: PreTrainedModel, kind: Kind = "dspark", **choices: Any) -> DrafterNetwork:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "block_size": 5, "target_layer_ids": (-1, 0), "mask_token_id": 0}
    rank = {"markov_rank": 4} if kind == "dspark" else {}
    network = new_network(target, kind=kind, **{**shape, **rank, **choices})
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter)
    return network


def load(directory: Path, target: PreTrainedModel, dtype: torch.dtype = torch.float32) -> DrafterNetwork:
    return load_network(directory, target=target, device=CPU, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "choices"),
    [
        ("dspark", {}),
        ("dspark", {"markov_head_type": "gated"}),
        ("dspark", {"markov_head_type": "rnn", "confidence_head_with_markov": False}),
        ("dspark", {"enable_confidence_head": False}),
        ("dflash", {}),
        ("eagle3", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [10**9, 2000])
def test_round_trip(
    tiny: Tiny, tmp_path: Path, kind: Kind, choices: dict[str, Any], dtype: torch.dtype, shard_bytes: int
) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    network = build(target, kind, **choices)
    save_network(network, tmp_path, target=target.config, dtype=dtype, shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_bytes == 2000)
    again = load(tmp_path, target)
    assert again.config == network.config
    wanted, found = network.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], tensor.to(dtype).float()) for name, tensor in wanted.items())
    assert load_drafter(tmp_path, target=target, device=CPU, dtype=torch.float32).feature_layers == (-1, 0)


def test_released_names(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    save_network(build(target, markov_head_type="rnn"), tmp_path, target=target.config)
    layer = [
        *(f"self_attn.{each}" for each in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
        *(f"mlp.{each}" for each in ("gate_proj", "up_proj", "down_proj")),
        "input_layernorm",
        "post_attention_layernorm",
    ]
    assert set(load_file(tmp_path / "model.safetensors")) == {
        *(f"{each}.weight" for each in ("embed_tokens", "lm_head", "fc", "hidden_norm", "norm")),
        *(f"layers.{number}.{each}.weight" for number in (0, 1) for each in layer),
        *(f"markov_head.{each}" for each in ("markov_w1.weight", "markov_w2.weight")),
        *(f"markov_head.joint_proj.{each}" for each in ("weight", "bias")),
        *(f"confidence_head.proj.{each}" for each in ("weight", "bias")),
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen3DSparkModel"]
    assert config["model_type"] == "qwen3"  # the target's fields are kept
    assert config["target_layer_ids"] == [-1, 0]
    assert not config["tie_word_embeddings"]
    assert config["layer_types"] == ["full_attention"] * 2
    assert config["num_anchors"] == 512


def spoil_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"markov_head_type": "lstm"}, "markov_head_type is 'lstm'; it must be one of vanilla, gated, rnn"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "is 'Qwen3ForCausalLM'; drafters are Qwen3DSparkModel"),
        ({"block_size": None, "markov_rank": None}, "lacks block_size, markov_rank"),
        ({"target_layer_ids": [0, 1]}, r"target_layer_ids is \[0, 1\]; each must be from -1"),
        ({"hidden_size": 32}, "hidden_size of the drafter is 32 and the target has 16"),
        ({"vocab_size": 99}, "vocab_size of the drafter is 99 and the target has 23"),
        ({"num_target_layers": 3}, "num_target_layers of the drafter is 3 and the target has 2"),
        ({"num_hidden_layers": 1}, r"not known: layers.1.input_layernorm.weight, "),
        ({"markov_head_type": "gated"}, "missing: markov_head.gate_proj.bias, markov_head.gate_proj.weight"),
        ({"markov_rank": 3}, r"markov_head.markov_w1.weight has shape \[23, 4\] where \[23, 3\] is needed"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"hidden_act": "gelu", "attention_bias": True}, "hidden_act is 'gelu'; attention_bias is True in "),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is .*; a drafter has silu, no biases, full",
        ),
        ({"draft_vocab_size": 11}, "draft_vocab_size is 11 in .* the target's whole vocabulary"),
        ({"target_layer_ids": 3}, "target_layer_ids of .* is 3; it is a list of integers"),
        ({"mask_token_id": "mask"}, "mask_token_id is 'mask'; it must be an integer"),
        ({"mask_token_id": 23}, r"mask_token_id is 23; it must be in \[0, 23\)"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be a positive number"),
    ],
)
def test_a_wrong_configuration_is_named(tiny: Tiny, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    save_network(build(target), tmp_path, target=target.config)
    spoil_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, target)


def test_missing_tensors_are_all_named(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    save_network(build(target), tmp_path, target=target.config)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["fc.weight"], tensors["norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: fc\.weight, norm\.weight\."):
        load(tmp_path, target)


def test_broken_files(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path, target)
    save_network(build(target), tmp_path, target=target.config)
    for wrong in ("{", "[]", "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(wrong)
        with pytest.raises(ValueError, match="is no index of shards"):
            load(tmp_path, target)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"fc.weight": "lost.safetensors"}}')
    with pytest.raises(ValueError, match=r"lost\.safetensors' cannot be read"):
        load(tmp_path, target)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path, target)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has neither"):
        load(tmp_path, target)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON object"):
        load(tmp_path, target)


def test_a_target_that_is_built_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    """The target's biases, activation and scaled positions are its own; the drafter's are written and read as they are."""
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    target = tiny("llama", dtype=torch.float32, attention_bias=True, hidden_act="gelu", rope_parameters=scaled)
    network = build(target)
    assert network.config.rope_theta == 5e5
    save_network(network, tmp_path, target=target.config, dtype=torch.float32)
    assert load(tmp_path, target).config == network.config


def test_a_checkpoint_over_an_older_one(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    network = build(target)
    save_network(network, tmp_path, target=target.config, dtype=torch.float32, shard_bytes=2000)
    network.fc.weight.data += 1
    save_network(network, tmp_path, target=target.config, dtype=torch.float32)
    assert torch.equal(load(tmp_path, target).fc.weight, network.fc.weight)


def test_reading_draws_nothing_and_leaves_the_copies_frozen(tiny: Tiny, tmp_path: Path) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    network = build(target)
    save_network(network, tmp_path, target=target.config)
    state = torch.random.get_rng_state()
    again = load(tmp_path, target, torch.bfloat16)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    frozen = {name for name, parameter in again.named_parameters() if not parameter.requires_grad}
    assert frozen == {"embed_tokens.weight", "lm_head.weight"}


def test_a_calibration_stays_with_its_weights_only(tiny: Tiny, tmp_path: Path) -> None:
    network = build(tiny("qwen3"))
    target = tiny("qwen3").config
    save_network(network, tmp_path, target=target)
    Calibration((1.0, 2.0, 0.5), 1.0, weights_sha256(tmp_path)).save(tmp_path)
    save_network(network, tmp_path, target=target)
    assert (tmp_path / "calibration.json").is_file(), "the same weights"
    with torch.no_grad():
        network.fc.weight += 1
    save_network(network, tmp_path, target=target)
    assert not (tmp_path / "calibration.json").exists()


def test_shards_leave_no_whole_file(tiny: Tiny, tmp_path: Path) -> None:
    network = build(tiny("qwen3"))
    save_network(network, tmp_path, target=tiny("qwen3").config)
    save_network(network, tmp_path, target=tiny("qwen3").config, shard_bytes=1)
    assert not (tmp_path / "model.safetensors").exists()
