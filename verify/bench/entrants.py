"""What enters a race: the pair of models, the decoder, and what it has to beat."""

from pathlib import Path

import torch

from fixtures.expansion.checkpoints import STATEMENT, is_current, write_expanded
from verify.bench.contestant import PLAIN, Contestant, PlainGeneration, plain_of
from verify.bench.limit import bytes_per_forward
from verify.bench.options import BenchOptions
from verify.bench.schema import Models
from verify.declared import CHECKOUT
from verify.models.pairs import checkpoint_pair
from verify.protocol import ModelPair
from verify.registry import find_decoder

FIXTURES = CHECKOUT / "fixtures"
OWN_COST = "The suite's own pair: 4.7 and 0.5 million parameters, so small that Python, not the models, takes most of the time."


def open_models(options: BenchOptions) -> ModelPair:
    """Load the pair; at a cost, write it first below the folder of reports, where later races find it."""
    common, cost = options.common, options.cost
    folder = common.report_dir / "bench" / "models"
    if common.target:
        target, draft, name = common.target, common.draft, common.target.name
    elif cost:
        if not is_current(cost, folder / cost):
            write_expanded(cost, folder / cost, device=torch.device(common.device))
        target, draft, name = folder / cost / "target", folder / cost / "draft", f"fixture at the cost of {cost}"
    else:
        target, draft, name = FIXTURES / "target", FIXTURES / "draft", "fixture"
    device, dtype = torch.device(common.device), getattr(torch, common.dtype)
    return checkpoint_pair(target, draft, device=device, dtype=dtype, folder=folder, name=name)


def describe_models(options: BenchOptions, models: ModelPair) -> Models:
    """The pair for the report."""
    statement = "" if options.common.target else STATEMENT if options.cost else OWN_COST
    return Models(
        name=models.name,
        statement=statement,
        target_parameters=sum(each.numel() for each in models.target.parameters()),
        draft_parameters=sum(each.numel() for each in models.draft.parameters()),
        target_bytes_per_forward=bytes_per_forward(models.target),
        vocab_size=models.vocab_size,
        device=options.common.device,
        dtype=options.common.dtype,
    )


def enter(options: BenchOptions, models: ModelPair, *, working_dir: Path) -> list[Contestant]:
    """The decoder, then what it has to beat: its baseline, or both ways of decoding without drafts that there are."""

    def contestant(name: str, num_draft_tokens: int, *, suffix: str = "") -> Contestant:
        decoder = find_decoder(name, working_dir=working_dir)(models)
        return Contestant(name=name + suffix, decoder=decoder, num_draft_tokens=num_draft_tokens)

    decoder = contestant(options.common.decoder, options.num_draft_tokens)
    if options.baseline != PLAIN:
        suffix = " (again)" if options.baseline == decoder.name else ""
        return [decoder, contestant(options.baseline, options.baseline_num_draft_tokens, suffix=suffix)]
    library = Contestant(name=f"{PLAIN} (transformers)", decoder=PlainGeneration(models), num_draft_tokens=0)
    own = plain_of(decoder)
    return [decoder, library, *([own] if own else [])]
