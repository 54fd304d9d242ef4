"""What enters a race: the pair of models, the decoder, and what it has to beat."""

import subprocess
import sys
from pathlib import Path

import torch

from fixtures.expansion.checkpoints import STATEMENT, is_current, write_copies, write_expanded
from verify.bench.contestant import PLAIN, Contestant, PlainGeneration, plain_of
from verify.bench.limit import bytes_per_forward
from verify.bench.options import BenchOptions
from verify.bench.schema import Models
from verify.models.pairs import checkpoint_pair
from verify.protocol import ModelPair
from verify.registry import find_decoder

PROFILE = "speed-profile.json"
PROFILED = (
    "--token-counts",
    *map(str, (*range(1, 9), 16, 32, 64)),
    "--context-length",
    "96",
    "--repeats",
    "10",
)
OWN_COST = "The suite's own pair: 4.7 and 0.5 million parameters, so small that Python, not the models, takes most of the time."


def open_models(options: BenchOptions) -> ModelPair:
    """Load the pair. The suite's own is written below the folder of reports first, with its speed as measured now beside it."""
    common, cost = options.common, options.cost
    models = common.report_dir / "bench" / "models"
    device, dtype = torch.device(common.device), getattr(torch, common.dtype)
    if common.target:
        return checkpoint_pair(
            common.target, common.draft, device=device, dtype=dtype, folder=models, name=common.target.name
        )
    folder, name = (models / cost, f"fixture at the cost of {cost}") if cost else (models / "fixture", "fixture")
    if not cost:
        write_copies(folder)
    elif not is_current(cost, folder):
        write_expanded(cost, folder, device=device)
    _write_profile(folder, device=common.device, dtype=common.dtype)
    return checkpoint_pair(folder / "target", folder / "draft", device=device, dtype=dtype, folder=models, name=name)


def _write_profile(folder: Path, *, device: str, dtype: str) -> None:
    """Measure the target as its scheduler needs it; in a process of its own, for the suite does not import the decoder."""
    command = [sys.executable, "-m", "dspark", "profile", "--target", str(folder / "target"), *PROFILED]
    command += ["--device", device, "--dtype", dtype, "--out", str(folder / PROFILE)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


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
