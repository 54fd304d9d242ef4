"""Chapter 16: the rejection step alone (`--verifier`): what can only be asked of it, on millions of blocks.

Drafts are drawn from known laws, blocks are completed with draws from the target, and complete blocks must follow the product of
the target's laws: true of every lossless rule, block verification included. A law is asked for some seconds; a step that has
shown too little by then gets up to a hundred times as long (`Experiment.run`), and what it has shown is judged.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from verify.adapters.kernel import own_claims
from verify.checks.kernel_contract import judge_edges, judge_inputs, judge_one_hot, one_hot_block
from verify.checks.kernel_law import judge_block_law
from verify.entrance import KERNEL
from verify.judge import Judge, NotApplicable, check
from verify.kernel.block import Kernel
from verify.kernel.experiment import Experiment, Pairs, Setting
from verify.kernel.probe import DTYPES, accepts_dtype, preferred_dtype
from verify.kernel.rules import Rows
from verify.kernel.zoo import by_ranges, contested, half_left, on_grid, one_hot, rows_of
from verify.results import Evidence, Finding
from verify.suite.support import scaled

CASES = {
    "close": rows_of("close", vocab_size=3, num_drafts=2, seed=1601),
    "opposed": rows_of("opposed", vocab_size=3, num_drafts=2, seed=1602),
    "disjoint": rows_of("disjoint", vocab_size=4, num_drafts=2, seed=1603),
    "peaked": rows_of("peaked", vocab_size=4, num_drafts=2, seed=1604),
    "zeros under draft mass": rows_of("close", vocab_size=5, num_drafts=2, seed=1605, zeros=0.4),
    "five drafts": rows_of("close", vocab_size=2, num_drafts=5, seed=1606),
    "draft is the target": rows_of("same", vocab_size=3, num_drafts=2, seed=1607),
    "draft is the target, with zeros": rows_of("same", vocab_size=5, num_drafts=2, seed=1612, zeros=0.4),
    "one ulp apart": rows_of("one ulp", vocab_size=3, num_drafts=2, seed=1608),
    "denormal": rows_of("denormal", vocab_size=4, num_drafts=2, seed=1609),
}
VOCABULARIES = (2, 16, 513, 4_096, 32_000, 151_936)
LONG_BLOCKS = (9, 17, 32)
BATCH_SIZES = (1, 2, 3, 7, 33)
CORRUPT = {"nan": np.nan, "inf": np.inf, "negative": -0.5}
ROWS = 4_096
MOST_ELEMENTS = 2**20  # of target_probs in one call


def judged(judge: Judge, experiment: Experiment, *, may_refuse: bool = False) -> Finding:
    """Judge an experiment; with `may_refuse` a step that raises has given an answer."""
    return judge_block_law(
        judge.shared[KERNEL],
        experiment,
        alpha=judge.alpha,
        num_outcomes=scaled(judge, 1_000_000),
        seconds=scaled(judge, 4),
        progress=judge.progress,
        may_refuse=may_refuse,
    )


def conclude(judge: Judge, experiment: Experiment, *, may_refuse: bool = False) -> None:
    """Judge an experiment; that is the check's verdict."""
    judge.conclude(judged(judge, experiment, may_refuse=may_refuse))


def conclude_unless_refused(judge: Judge, experiment: Experiment, *, what: str) -> None:
    """The same, but a step that raises on `what` is not verified there."""
    finding = judged(judge, experiment, may_refuse=True)
    if finding.unit == "refusals":
        raise NotApplicable(f"{what} is {finding.reason}")
    judge.conclude(finding)


def experiment(
    judge: Judge,
    *rows: Rows,
    num_rows: int = ROWS,
    dtype: torch.dtype | None = None,
    ragged: bool = True,
    joint: bool = False,
    pairs: Pairs = "",
    one_hot_drafts: bool = False,
) -> Experiment:
    """An experiment on the run's device, in the best dtype that the step takes."""
    device = torch.device(judge.options.device)
    kernel: Kernel = judge.shared[KERNEL]
    return Experiment(
        settings=tuple(Setting(rows=each) for each in rows),
        num_rows=num_rows,
        lengths=tuple(range(rows[0].num_drafts, -1, -1)) if ragged else (rows[0].num_drafts,),
        dtype=dtype or preferred_dtype(kernel, device),
        device=device,
        joint=joint,
        pairs=pairs,
        one_hot=one_hot_drafts,
        seed=judge.seed,
    )


@check(chapter=16, property="law of blocks", evidence=Evidence.BETTING)
@pytest.mark.parametrize("name", CASES)
def test_blocks(judge: Judge, name: str) -> None:
    """Ragged blocks in one call: every relation of draft and target, zeros, ties and values at the end of the range."""
    conclude(judge, experiment(judge, CASES[name]))


@check(chapter=16, property="law of blocks", evidence=Evidence.BETTING)
def test_joint_residual(judge: Judge) -> None:
    """Rules that judge the block as a whole: the residual knows how much of the block its accepted drafts have left."""
    conclude(judge, experiment(judge, half_left(), ragged=False))


@check(chapter=16, property="acceptance of the standard rule", evidence=Evidence.BETTING)
@pytest.mark.parametrize("name", ["close", "opposed"])
def test_acceptance(judge: Judge, name: str) -> None:
    """Accepted counts and blocks together, where the step claims `standard_acceptance`."""
    if not own_claims(judge.shared[KERNEL]).standard_acceptance:
        raise NotApplicable("not claimed: standard_acceptance (an attribute `capabilities` of the function)")
    conclude(judge, experiment(judge, CASES[name], joint=True))


@check(chapter=16, property="law of blocks by vocabulary", evidence=Evidence.BETTING)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_vocabularies(judge: Judge, vocab_size: int) -> None:
    """From 2 tokens to 151,936, a fifth of which the target never emits; tokens are counted in eight classes."""
    # Opposed laws: where rows are dear, few of them must tell much.
    rows = rows_of("opposed", vocab_size=vocab_size, num_drafts=1, seed=1610, zeros=0.2, num_classes=9)
    num_rows = max(4, min(ROWS, MOST_ELEMENTS // (2 * vocab_size)))
    conclude(judge, experiment(judge, rows, num_rows=num_rows, ragged=False))


@check(chapter=16, property="law of blocks by range of ids", evidence=Evidence.BETTING)
@pytest.mark.parametrize("vocab_size", VOCABULARIES[2:])
def test_ranges_of_ids(judge: Judge, vocab_size: int) -> None:
    """The last tiles of a vocabulary, ids that need another bit, the first and the last: none is lost, drafted or not."""
    num_rows = max(4, min(ROWS, MOST_ELEMENTS // (2 * vocab_size)))
    conclude(judge, experiment(judge, by_ranges(vocab_size=vocab_size, seed=1613), num_rows=num_rows))


@check(chapter=16, property="law of blocks by dtype", evidence=Evidence.BETTING)
@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(judge: Judge, name: str) -> None:
    """Laws on a grid that every dtype holds exactly; a dtype that the step refuses with an exception is not verified."""
    kernel: Kernel = judge.shared[KERNEL]
    if not accepts_dtype(kernel, DTYPES[name], torch.device(judge.options.device)):
        raise NotApplicable(f"the step raises on probabilities in {name}")
    conclude(judge, experiment(judge, on_grid(CASES["close"]), dtype=DTYPES[name]))


@check(chapter=16, property="one-hot drafts without a law", evidence=Evidence.BETTING)
def test_without_draft_probs(judge: Judge) -> None:
    """`draft_probs` None: the draft is certain, as from prompt lookup; a step that raises on it is not verified."""
    rows = CASES["close"]
    certain = replace(rows, draft=np.stack([one_hot(k % 3, 3) for k in range(rows.num_drafts)]))
    conclude_unless_refused(judge, experiment(judge, certain, one_hot_drafts=True), what="draft_probs None")


@check(chapter=16, property="corrupt draft law", evidence=Evidence.BETTING)
@pytest.mark.parametrize("where", ["at the draft", "everywhere"])
@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt_draft(judge: Judge, name: str, where: str) -> None:
    """A law with NaN, infinity or a negative cannot accept: the step raises, or every row still follows its target.

    Sound rows stand beside the corrupt ones. The draft under the corrupt law is the target's least likely token.
    """
    rows = CASES["close"]
    certain = replace(rows, draft=np.stack([one_hot(int(law.argmin()), 3) for law in rows.target[:-1]]))
    given = rows.draft.copy()
    if where == "everywhere":
        given[:] = CORRUPT[name]
    else:
        given[certain.draft > 0] = CORRUPT[name]
    asked = experiment(judge, certain, rows)
    conclude(
        judge,
        replace_settings(asked, Setting(rows=certain, given=given), Setting(rows=rows)),
        may_refuse=True,
    )


@check(chapter=16, property="uniforms at the edges", evidence=Evidence.CONTRACT)
def test_edges(judge: Judge) -> None:
    """Uniforms of 0, and one step from 0 and 1: a test with `<=` accepts what the target excludes."""
    chosen = ("zeros under draft mass", "draft is the target, with zeros", "disjoint", "one ulp apart", "denormal")
    experiments = [experiment(judge, CASES[name], num_rows=256) for name in chosen]
    wide = rows_of("close", vocab_size=513, num_drafts=2, seed=1611, zeros=0.5)
    judge.conclude(judge_edges(judge.shared[KERNEL], [*experiments, experiment(judge, wide, num_rows=256)]))


@check(chapter=16, property="rows have their own laws", evidence=Evidence.BETTING)
def test_mixed_rows(judge: Judge) -> None:
    """Four laws take turns along the batch: a row that reads its neighbour's law follows another one."""
    conclude(
        judge,
        experiment(judge, *(rows_of("close", vocab_size=3, num_drafts=2, seed=1620 + each) for each in range(4))),
    )


@check(chapter=16, property="batch sizes", evidence=Evidence.BETTING)
@pytest.mark.parametrize("num_rows", BATCH_SIZES)
def test_batch_sizes(judge: Judge, num_rows: int) -> None:
    """Small and odd batches, every row of them counted by its place: the order in the batch does not matter."""
    kinds = [CASES["close"], CASES["opposed"], rows_of("peaked", vocab_size=3, num_drafts=2, seed=1630)]
    asked = experiment(judge, *(kinds[index % 3] for index in range(num_rows)), num_rows=num_rows, ragged=False)
    conclude(judge, asked)


@check(chapter=16, property="rows and calls are independent", evidence=Evidence.BETTING)
@pytest.mark.parametrize("pairs", ["rows", "calls"])
def test_independence(judge: Judge, pairs: Pairs) -> None:
    """Two rows, near and far, and one row in two calls: their outcomes together follow the product of their laws."""
    rows = rows_of("opposed", vocab_size=2, num_drafts=2, seed=1640)
    conclude(judge, experiment(judge, rows, num_rows=1_024, ragged=False, pairs=pairs))


@check(chapter=16, property="tokens of a block are independent", evidence=Evidence.BETTING)
@pytest.mark.parametrize("num_drafts", LONG_BLOCKS)
def test_long_blocks(judge: Judge, num_drafts: int) -> None:
    """The first draft's coin decides about no other, however long the block; a step may refuse the length."""
    rows = [contested(num_drafts, place) for place in range(1, num_drafts)]
    asked = experiment(judge, *rows, num_rows=1_024, ragged=False, pairs="places")
    conclude_unless_refused(judge, asked, what=f"a block of {num_drafts} drafts")


@check(chapter=16, property="one-hot rows", evidence=Evidence.GREEDY)
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_one_hot(judge: Judge, vocab_size: int) -> None:
    """Greedy rows: each of many different rows has one possible answer."""
    kernel: Kernel = judge.shared[KERNEL]
    device = torch.device(judge.options.device)
    blocks = [
        one_hot_block(
            num_rows=max(5, min(512, MOST_ELEMENTS // ((num_drafts + 1) * vocab_size))),
            num_drafts=num_drafts,
            vocab_size=vocab_size,
            dtype=preferred_dtype(kernel, device),
            device=device,
            seed=judge.seed % 2**31 + num_drafts,
        )
        for num_drafts in (1, 3, 7)
    ]
    judge.conclude(judge_one_hot(kernel, blocks))


@check(chapter=16, property="arguments are left alone", evidence=Evidence.CONTRACT)
def test_inputs(judge: Judge) -> None:
    """Callers reuse their tensors: the step writes to none of them."""
    blocks = [experiment(judge, rows, num_rows=64).draw() for rows in CASES.values()]
    judge.conclude(judge_inputs(judge.shared[KERNEL], blocks))


def replace_settings(asked: Experiment, *settings: Setting) -> Experiment:
    """The same experiment on other settings."""
    return replace(asked, settings=settings)
