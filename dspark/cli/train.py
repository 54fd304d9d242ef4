"""`dspark train`: train a drafter for a frozen target on text that the target regenerates."""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from dspark.causal_model import CausalModel
from dspark.chat import stop_token_ids
from dspark.checkpoints import save_network
from dspark.cli.options import HelpWithDefaults, add_target, at_least, device_named, require_place
from dspark.drafters.factory import new_network
from dspark.loading import DTYPES, load_pair, load_tokenizer
from dspark.networks.config import first_unused
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
    command = commands.add_parser("train", help="train a drafter for a target", formatter_class=HelpWithDefaults)
    command.set_defaults(run=run)
    command.add_argument(
        "--text",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="UTF-8 text, or .jsonl with prompt/messages/text",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the drafter's checkpoint directory")
    command.add_argument(
        "--work", type=Path, metavar="DIR", help="regenerated text, states, metrics (default: OUT.training)"
    )
    add_target(command)
    network = command.add_argument_group("network")
    network.add_argument("--kind", choices=("dspark", "dflash", "eagle3"), default="dspark", help="the method")
    network.add_argument(
        "--head", choices=("vanilla", "gated", "rnn"), default="vanilla", help="the sequential head of dspark"
    )
    network.add_argument(
        "--markov-rank", type=at_least(0), default=256, metavar="R", help="of the sequential head; 0 is none"
    )
    network.add_argument(
        "--layers", type=at_least(1), default=5, metavar="N", help="of the parallel backbone; eagle3 has one"
    )
    network.add_argument("--block-size", type=at_least(1), default=7, metavar="N", help="drafts a round at most")
    network.add_argument(
        "--target-layer-ids",
        type=int,
        nargs="+",
        metavar="ID",
        help="layers whose outputs are read (default: five, evenly spaced)",
    )
    network.add_argument(
        "--mask-token-id",
        type=int,
        metavar="ID",
        help="what stands for a draft (default: the first id that the tokenizer does not use)",
    )
    text = command.add_argument_group("text")
    text.add_argument("--num-prompts", type=at_least(1), default=100_000, metavar="N", help="prompts at most")
    text.add_argument(
        "--prompt-tokens",
        type=at_least(1),
        default=64,
        metavar="N",
        help="where documents are cut; prompts and messages are not",
    )
    text.add_argument(
        "--max-new-tokens", type=at_least(1), default=448, metavar="N", help="what the target adds to each"
    )
    text.add_argument("--text-batch-size", type=at_least(1), default=128, metavar="N", help="prompts continued at once")
    training = command.add_argument_group("training")
    training.add_argument("--steps", type=at_least(1), default=10_000, metavar="N", help="updates")
    training.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="sequences an update")
    training.add_argument(
        "--accumulate",
        type=at_least(1),
        default=1,
        metavar="N",
        help="parts of a batch, read one by one to save memory",
    )
    training.add_argument(
        "--num-anchors",
        type=at_least(1),
        default=128,
        metavar="N",
        help="blocks a sequence; DSpark has 512, more than a response of 448 tokens has places for",
    )
    training.add_argument("--learning-rate", type=float, default=6e-4, help="the largest; it rises and falls")
    training.add_argument("--decay", type=float, default=4.0, help="of the position weights, in positions")
    training.add_argument("--checkpoint-every", type=at_least(1), default=500, metavar="N", help="updates")
    training.add_argument(
        "--compile", action="store_true", help="compile the drafter's layers (torch.compile); for long runs on a GPU"
    )
    training.add_argument("--seed", type=at_least(0), default=0, help="of text, weights, batches and anchors")


def run(options: argparse.Namespace) -> int:
    """Regenerate, train, save; each part goes on where an earlier call was stopped."""
    logging.disable_progress_bar()
    work = options.work or options.out.with_name(options.out.name + ".training")
    require_place(options.out, folder=True)
    require_place(work, folder=True)
    if options.max_new_tokens <= options.block_size:
        raise ValueError(
            f"--max-new-tokens is {options.max_new_tokens} and --block-size {options.block_size}; responses must be longer than "
            "a block. Raise the first."
        )
    settings = TrainingSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        num_anchors=options.num_anchors,
        learning_rate=options.learning_rate,
        checkpoint_every=options.checkpoint_every,
        seed=options.seed,
        weights=LossWeights(decay=options.decay),
    )
    device = device_named(options.device)
    target = load_pair(target_dir=options.target, draft_dir=None, device=device, dtype=DTYPES[options.dtype]).target
    reading, tokenizer = CausalModel.of(target), load_tokenizer(options.target)
    choices = _choices(options, reading.vocab_size, tokenizer)
    network = new_network(target, kind=options.kind, **choices)  # a wrong shape shows before the long work
    prompts = cut_prompts(
        read_documents(options.text, tokenizer),
        tokenizer,
        prompt_tokens=options.prompt_tokens,
        num_prompts=options.num_prompts,
        seed=options.seed,
        longest=reading.room_beside(options.max_new_tokens),
    )
    num_validation = min(LARGEST_VALIDATION, max(1, round(VALIDATION_SHARE * len(prompts))))
    num_train = len(prompts) - num_validation
    if num_train < settings.batch_size:
        raise ValueError(
            f"the text gives {len(prompts)} prompts, {num_validation} of them for validation; a batch needs "
            f"{settings.batch_size}. Give more text, or lower --batch-size."
        )
    text = regenerate(
        reading,
        prompts,
        work / "text",
        max_new_tokens=options.max_new_tokens,
        stop_token_ids=stop_token_ids(target, tokenizer),
        batch_size=options.text_batch_size,
        seed=options.seed,
    )
    trainer = Trainer(
        target,
        network,
        text.select(range(num_train)),
        settings=settings,
        folder=work,
        autocast=device.type == "cuda" or options.dtype == "bfloat16",
        compile_backend="inductor" if options.compile else None,
    )
    trainer.run()
    save_network(network, options.out, target=target.config)
    held_back = text.select(range(num_train, len(text.lengths)))
    acceptance = estimate_acceptance(reading, network, held_back, seed=options.seed)
    print(f"accepted length at temperature 1, final token included: {acceptance.length:.3f}")
    print("conditional acceptance by position:", " ".join(f"{value:.3f}" for value in acceptance.conditional))
    print(f"drafter: {options.out}\nmetrics: {work / 'metrics.jsonl'}, {work / 'metrics.png'}")
    return 0


def _choices(options: argparse.Namespace, vocab_size: int, tokenizer: Any) -> dict[str, Any]:
    torch.manual_seed(options.seed)
    choices: dict[str, Any] = {"block_size": options.block_size, "num_anchors": options.num_anchors}
    if options.kind != "eagle3":
        choices["num_hidden_layers"] = options.layers
    if options.kind == "dspark":
        rank = options.markov_rank
        choices |= {"markov_rank": rank, "markov_head_type": options.head, "confidence_head_with_markov": rank > 0}
    if options.target_layer_ids:
        choices["target_layer_ids"] = tuple(options.target_layer_ids)
    if options.mask_token_id is not None:
        choices["mask_token_id"] = options.mask_token_id
    elif options.kind != "eagle3":
        choices["mask_token_id"] = first_unused(vocab_size, tokenizer.get_vocab().values())
    return choices
