"""`dspark train`: train a drafter for a frozen target on text that the target regenerates."""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from dspark.causal_model import CausalModel
from dspark.checkpoints import save_network
from dspark.cli.options import add_target, device_named
from dspark.drafters.factory import new_network
from dspark.loading import DTYPES, load_pair
from dspark.training.corpus import regenerate
from dspark.training.documents import cut_prompts, read_documents
from dspark.training.evaluation import estimate_acceptance
from dspark.training.losses import LossWeights
from dspark.training.settings import TrainingSettings
from dspark.training.trainer import Trainer

VALIDATION_SHARE = 0.05
LARGEST_VALIDATION = 256


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    command = commands.add_parser("train", help="train a drafter for a target")
    command.set_defaults(run=run)
    command.add_argument(
        "--text", type=Path, nargs="+", required=True, help="UTF-8 text, or .jsonl with prompt/messages/text"
    )
    command.add_argument("--out", type=Path, required=True, help="the drafter's checkpoint directory")
    command.add_argument("--work", type=Path, help="regenerated text, states, metrics; default: OUT.training")
    add_target(command)
    network = command.add_argument_group("network")
    network.add_argument("--kind", choices=("dspark", "dflash", "eagle3"), default="dspark")
    network.add_argument("--head", choices=("vanilla", "gated", "rnn"), default="vanilla")
    network.add_argument("--markov-rank", type=int, default=256)
    network.add_argument("--layers", type=int, default=5, help="of the parallel backbone; eagle3 has one")
    network.add_argument("--block-size", type=int, default=7)
    network.add_argument("--target-layer-ids", type=int, nargs="+", help="default: five, evenly spaced")
    network.add_argument("--mask-token-id", type=int, help="default: the padding token")
    text = command.add_argument_group("text")
    text.add_argument("--num-prompts", type=int, default=100_000, help="at most")
    text.add_argument("--prompt-tokens", type=int, default=64, help="where documents are cut into prompts")
    text.add_argument("--max-new-tokens", type=int, default=448, help="what the target adds to each")
    text.add_argument("--text-batch-size", type=int, default=128)
    training = command.add_argument_group("training")
    training.add_argument("--steps", type=int, default=10_000)
    training.add_argument("--batch-size", type=int, default=8)
    training.add_argument("--num-anchors", type=int, default=128)
    training.add_argument("--learning-rate", type=float, default=6e-4)
    training.add_argument("--decay", type=float, default=4.0, help="of the position weights")
    training.add_argument("--checkpoint-every", type=int, default=500)
    training.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> int:
    """Regenerate, train, save; each part goes on where an earlier call was stopped."""
    logging.disable_progress_bar()
    work = options.work or options.out.with_name(options.out.name + ".training")
    settings = TrainingSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        num_anchors=options.num_anchors,
        learning_rate=options.learning_rate,
        checkpoint_every=options.checkpoint_every,
        seed=options.seed,
        weights=LossWeights(decay=options.decay),
    )
    device = device_named(options.device)
    target = load_pair(target_dir=options.target, draft_dir=None, device=device, dtype=DTYPES[options.dtype]).target
    network = new_network(target, kind=options.kind, **_choices(options))  # a wrong shape shows before the long work
    tokenizer: Any = AutoTokenizer.from_pretrained(options.target, local_files_only=True)
    prompts = cut_prompts(
        read_documents(options.text, tokenizer),
        tokenizer,
        prompt_tokens=options.prompt_tokens,
        num_prompts=options.num_prompts,
        seed=options.seed,
    )
    stop = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    text = regenerate(
        CausalModel.of(target),
        prompts,
        work / "text",
        max_new_tokens=options.max_new_tokens,
        stop_token_ids=stop,
        batch_size=options.text_batch_size,
        seed=options.seed,
    )
    num_validation = min(LARGEST_VALIDATION, max(1, round(VALIDATION_SHARE * len(text.lengths))))
    num_train = len(text.lengths) - num_validation
    if num_train < settings.batch_size:
        raise ValueError(
            f"the text gives {len(text.lengths)} sequences, {num_validation} of them for validation; a batch needs "
            f"{settings.batch_size}. Give more text, or lower --batch-size."
        )
    trainer = Trainer(
        target,
        network,
        text.select(range(num_train)),
        settings=settings,
        folder=work,
        autocast=device.type == "cuda" or options.dtype == "bfloat16",
    )
    trainer.run()
    held_back = text.select(range(num_train, len(text.lengths)))
    acceptance = estimate_acceptance(CausalModel.of(target), network, held_back, seed=options.seed)
    save_network(network, options.out, target=target.config)
    print(f"accepted length at temperature 1, final token included: {acceptance.length:.3f}")
    print("conditional acceptance by position:", " ".join(f"{value:.3f}" for value in acceptance.conditional))
    print(f"drafter: {options.out}\nmetrics: {work / 'metrics.jsonl'}, {work / 'metrics.png'}")
    return 0


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    choices: dict[str, Any] = {"block_size": options.block_size, "num_anchors": options.num_anchors}
    if options.kind != "eagle3":
        choices["num_hidden_layers"] = options.layers
    if options.kind == "dspark":
        choices |= {"markov_rank": options.markov_rank, "markov_head_type": options.head}
    if options.target_layer_ids:
        choices["target_layer_ids"] = tuple(options.target_layer_ids)
    if options.mask_token_id is not None:
        choices["mask_token_id"] = options.mask_token_id
    return choices
