"""A drafter around a network: from a checkpoint directory, or with random weights."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from dspark.calibration import FILE as CALIBRATION
from dspark.calibration import Calibration
from dspark.checkpoints import DrafterNetwork, load_network, weights_sha256
from dspark.drafters.dspark import DSparkDrafter
from dspark.drafters.eagle3 import Eagle3Drafter
from dspark.networks.config import DrafterConfig
from dspark.networks.dspark import DSparkNetwork
from dspark.networks.eagle3 import Eagle3Network
from dspark.networks.packing import pack
from dspark.networks.warm_start import warm_start

Kind = Literal["dspark", "dflash", "eagle3"]


def load_drafter(
    directory: Path,
    *,
    target: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
    greedy: bool = False,
    calibrated: bool = True,
    temperature: float | None = None,
) -> DSparkDrafter | Eagle3Drafter:
    """The drafter of a checkpoint for its target; raises ValueError as `load_network`.

    With `calibrated` its confidences are corrected by the checkpoint's `calibration.json`, where it has one: ValueError where
    that is of other weights, a warning where it is not for the `temperature` of decoding.
    """
    network = load_network(directory, target=target, device=device, dtype=dtype)
    pack(network)
    calibration = None
    if calibrated and (directory / CALIBRATION).is_file():
        calibration = Calibration.load(directory)
        calibration.require(weights_sha256=weights_sha256(directory), temperature=temperature)
    return drafter_of(network, greedy=greedy, calibration=calibration)


def drafter_of(
    network: DrafterNetwork, *, greedy: bool = False, calibration: Calibration | None = None
) -> DSparkDrafter | Eagle3Drafter:
    """The drafter that runs a network."""
    if isinstance(network, Eagle3Network):
        return Eagle3Drafter(network, greedy=greedy)
    if calibration is None:
        return DSparkDrafter(network, greedy=greedy)
    return DSparkDrafter(network, greedy=greedy, calibrate=calibration.apply)


def new_network(target: PreTrainedModel, *, kind: Kind, **choices: Any) -> DrafterNetwork:
    """An untrained network on the target's device, in float32; `choices` are fields of its configuration.

    `mask_token_id` is one of them, but for EAGLE-3, which drafts without masks.
    It has the target's embeddings and begins as the target's last layers where they fit (`warm_start`); the rest comes from
    torch's global generator. The sequential head begins at no bias, with embeddings of unit size so that it learns at once.
    """
    if kind != "dspark":
        choices |= {"markov_rank": 0, "enable_confidence_head": False}
    if kind == "eagle3":
        choices = {"mask_token_id": 0} | choices
    config = DrafterConfig.for_target(target.config, **choices)
    network = Eagle3Network(config) if kind == "eagle3" else DSparkNetwork(config)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    embeddings: Any = target.get_input_embeddings()
    head: Any = target.get_output_embeddings()
    with torch.no_grad():
        network.embed_tokens.weight.copy_(embeddings.weight)
        network.lm_head.weight.copy_(head.weight)
        if isinstance(network, DSparkNetwork) and network.markov_head is not None:
            nn.init.normal_(network.markov_head.markov_w1.weight, std=config.markov_rank**-0.5)
            nn.init.zeros_(network.markov_head.markov_w2.weight)
    warm_start(network, target)
    return network.to(target.device)


def random_drafter(
    target: PreTrainedModel, *, kind: Kind, dtype: torch.dtype, seed: int = 0, **choices: Any
) -> DSparkDrafter | Eagle3Drafter:
    """A small drafter of random weights, for judging the method on a target that has no trained one.

    All weights are random and large, embeddings too, so that its laws are far from flat and depend on everything that it
    reads; works for any target that gives hidden states. The global generator is left as it was.
    """
    if kind != "dspark":
        choices |= {"markov_rank": 0, "enable_confidence_head": False}
    shape: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 16,
        "markov_rank": 4,
        "block_size": 7,
        "mask_token_id": 0,
    }
    config = DrafterConfig.for_target(target.config, **(shape | choices))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Eagle3Network(config) if kind == "eagle3" else DSparkNetwork(config)
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    nn.Module.to(network, device=target.device, dtype=dtype)
    return drafter_of(network)
