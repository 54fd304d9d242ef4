"""Read and write drafter checkpoints in the released directory format.

A directory holds `config.json` (the target's configuration with the drafter's fields over it) and safetensors, whole or in
shards with an index. `architectures` tells the kind: Qwen3DSparkModel; Qwen3DFlashModel, the same without heads;
Qwen3Eagle3Model, a layout of our own with the tensor names of `Eagle3Network`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from dspark.calibration import FILE as CALIBRATION
from dspark.calibration import Calibration
from dspark.networks.config import DrafterConfig, rope_theta
from dspark.networks.dspark import DSparkNetwork
from dspark.networks.eagle3 import Eagle3Network

DrafterNetwork = DSparkNetwork | Eagle3Network
ARCHITECTURES: Mapping[str, type[DSparkNetwork] | type[Eagle3Network]] = {
    "Qwen3DSparkModel": DSparkNetwork,
    "Qwen3DFlashModel": DSparkNetwork,
    "Qwen3Eagle3Model": Eagle3Network,
}
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 1000**3
# Fields that some configurations leave out, with what they then mean.
DEFAULTS: Mapping[str, Any] = {
    "markov_head_type": "vanilla",
    "confidence_head_with_markov": True,
    "rms_norm_eps": 1e-6,
    "num_anchors": 512,
}
# Fields that a target may have otherwise, but no drafter: the tensors would not show it, only the numbers.
REQUIRED: Mapping[str, Any] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def save_network(
    network: DrafterNetwork,
    directory: Path,
    *,
    target: PreTrainedConfig,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint; each shard holds at most `shard_bytes` bytes, or one tensor.

    A calibration that lies there is deleted where it was fitted to other weights.
    """
    config = network.config
    written = {field.name: getattr(config, field.name) for field in fields(config)}
    own = {
        "architectures": [_architecture(network)],
        "tie_word_embeddings": False,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": str(dtype).removeprefix("torch."),
        **REQUIRED,
    }
    directory.mkdir(parents=True, exist_ok=True)
    merged = json.loads(target.get_text_config().to_json_string(use_diff=False)) | written | own
    merged.pop("_name_or_path", None)  # where the target lay on this machine
    (directory / CONFIG).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n")
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
    shards = _shards(tensors, shard_bytes)
    (directory / INDEX).unlink(missing_ok=True)  # of an earlier checkpoint here; a reader would follow it
    if len(shards) == 1:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    else:
        _save_shards(directory, tensors, shards)
    _drop_stale_calibration(directory)


def load_network(
    directory: Path, *, target: PreTrainedModel, device: torch.device, dtype: torch.dtype
) -> DrafterNetwork:
    """Read a checkpoint for a target; raises ValueError (value, rule, remedy) where they do not fit or it is not one."""
    architecture, config = read_config(directory)
    require_target(config, target.config)
    tensors = _read_tensors(directory)
    with torch.device("meta"):  # no memory, no random numbers: every tensor is replaced
        network = ARCHITECTURES[architecture](config)
    _require_tensors(directory, tensors, network)
    network.load_state_dict(
        {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}, assign=True
    )
    return network.eval()


def weights_sha256(directory: Path) -> str:
    """SHA-256 of the weights' files, one after the other, in hexadecimal; ValueError where there are none."""
    digest = hashlib.sha256()
    for file in _weight_files(directory):
        with (directory / file).open("rb") as opened:
            while block := opened.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def read_config(directory: Path) -> tuple[str, DrafterConfig]:
    """The architecture and the drafter's configuration."""
    path = directory / CONFIG
    if not path.is_file():
        raise ValueError(
            f"{str(directory)!r} has no {CONFIG}; a drafter checkpoint has one. Give the folder that holds it."
        )
    try:
        stored: dict[str, Any] = DEFAULTS | json.loads(path.read_text())
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a JSON object ({error}); a configuration is one. Restore the file."
        ) from error
    architecture = next(iter(stored.get("architectures") or ["none"]))
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architectures of {str(path)!r} is {architecture!r}; drafters are {', '.join(ARCHITECTURES)}. Give a drafter's "
            "checkpoint (a causal LM goes to --draft)."
        )
    _require_network(path, stored)
    if architecture != "Qwen3DSparkModel":
        stored |= {"markov_rank": 0, "enable_confidence_head": False}
    stored["rope_theta"] = rope_theta(stored)
    names = [field.name for field in fields(DrafterConfig)]
    missing = [name for name in names if name not in stored]
    if missing:
        raise ValueError(f"{str(path)!r} lacks {', '.join(missing)}; a drafter's configuration has them. Add them.")
    layers = stored["target_layer_ids"]
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"target_layer_ids of {str(path)!r} is {layers!r}; it is a list of integers. Correct it.")
    stored["target_layer_ids"] = tuple(layers)
    return architecture, DrafterConfig(**{name: stored[name] for name in names})


def require_target(config: DrafterConfig, target: PreTrainedConfig) -> None:
    """Raise ValueError where a drafter was made for another target."""
    text: Any = target.get_text_config()
    for name, ours, theirs in (
        ("hidden_size", config.hidden_size, text.hidden_size),
        ("vocab_size", config.vocab_size, text.vocab_size),
        ("num_target_layers", config.num_target_layers, text.num_hidden_layers),
    ):
        if ours != theirs:
            raise ValueError(
                f"{name} of the drafter is {ours} and the target has {theirs}; a drafter reads the hidden states of the "
                "target that it was trained on. Give that target."
            )


def _require_network(path: Path, stored: Mapping[str, Any]) -> None:
    """Raise ValueError where a configuration describes another network than these, over the same tensors."""
    found = {name: stored.get(name, wanted) for name, wanted in REQUIRED.items()}
    wrong = [f"{name} is {value!r}" for name, value in found.items() if value != REQUIRED[name]]
    if any(each != "full_attention" for each in stored.get("layer_types") or []):
        wrong.append(f"layer_types is {stored['layer_types']!r}")
    if stored.get("draft_vocab_size") not in (None, stored.get("vocab_size")):
        wrong.append(f"draft_vocab_size is {stored['draft_vocab_size']!r}")
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)} in {str(path)!r}; a drafter has silu, no biases, full attention and the target's whole "
            "vocabulary. Use a checkpoint that does."
        )


def _architecture(network: DrafterNetwork) -> str:
    if isinstance(network, Eagle3Network):
        return "Qwen3Eagle3Model"
    bare = network.markov_head is None and network.confidence_head is None
    return "Qwen3DFlashModel" if bare else "Qwen3DSparkModel"


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _save_shards(directory: Path, tensors: Mapping[str, Tensor], shards: Sequence[Sequence[str]]) -> None:
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (directory / WEIGHTS).unlink(missing_ok=True)


def _drop_stale_calibration(directory: Path) -> None:
    try:
        fits = Calibration.load(directory).weights_sha256 == weights_sha256(directory)
    except ValueError:
        fits = False
    if not fits:
        (directory / CALIBRATION).unlink(missing_ok=True)


def _weight_files(directory: Path) -> list[str]:
    index = directory / INDEX
    if index.is_file():
        try:
            return sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{str(index)!r} is no index of shards ({error!r}); it is a JSON object with a weight_map. Download it again."
            ) from error
    if (directory / WEIGHTS).is_file():
        return [WEIGHTS]
    raise ValueError(f"{str(directory)!r} has neither {WEIGHTS} nor {INDEX}; a checkpoint has one. Download it whole.")


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        try:
            tensors |= load_file(directory / file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(directory / file)!r} cannot be read ({error}). Download it again.") from error
    return tensors


def _require_tensors(directory: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    """One error that names every tensor that is missing, not known, or of another shape."""
    wanted = network.state_dict()
    wrong = [
        f"{name} has shape {list(tensors[name].shape)} where {list(wanted[name].shape)} is needed"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]
    complaints = [
        _listed("missing", wanted.keys() - tensors.keys()),
        _listed("not known", tensors.keys() - wanted.keys()),
        "; ".join(wrong),
    ]
    if any(complaints):
        raise ValueError(
            f"the tensors of {str(directory)!r} do not fit its configuration: {'; '.join(filter(None, complaints))}. "
            "Check head type, rank and number of layers in config.json, and that the download is whole."
        )


def _listed(label: str, names: Iterable[str]) -> str:
    found = sorted(names)
    return f"{label}: {', '.join(found)}" if found else ""
