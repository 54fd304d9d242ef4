"""What chapter 18 shares: the open engine, its prompts, and the campaign that its checks ask step by step."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from verify.engines.campaign import Campaign, Group, plan, plan_twins, settings_of
from verify.engines.protocol import Engine, EngineSettings, NoControl
from verify.entrance import ENGINE, ENGINE_FACTORY
from verify.judge import ContractViolation, Judge, NotApplicable
from verify.models.compat import forward_logits
from verify.options import Options
from verify.protocol import Generation, ModelPair, Request
from verify.results import Finding
from verify.suite.support import prompts, scaled, trained_pair, trained_prompts

CAMPAIGN = "campaign"
SETTINGS = tuple(settings_of(range(8)))
NUM_PROMPTS = 56
TEXT_TOKENS = 22
NUM_FREQUENT = 48
MODEST_VOCABULARY = 256  # ids that every vocabulary has


def open_engine(options: Options, models: ModelPair, shared: dict[str, Any]) -> Engine:
    """Open the engine under test on the pair's checkpoints; raises `EngineError`."""
    make: Callable[[EngineSettings], Engine] = shared[ENGINE_FACTORY]
    engine = shared[ENGINE] = make(
        EngineSettings(
            target=models.target_dir if has_target(options) else None,
            draft=models.draft_dir if has_draft(options) else None,
            folder=options.report_dir / "engines" / "".join(c if c.isalnum() else "-" for c in options.decoder),
            device=options.device,
            dtype=options.dtype,
            options=options.engine,
            python=options.engine_python,
            base_url=options.base_url,
            baseline_url=options.baseline_url,
            model=options.model,
        )
    )
    return engine


def has_target(options: Options) -> bool:
    """Whether the engine's model is at hand; a server runs a model of its own, so it has to be given."""
    return options.base_url is None or options.target is not None


def has_draft(options: Options) -> bool:
    """Whether there is a checkpoint to draft with; the target is none, because it is never rejected."""
    return has_target(options) and (options.target is None or options.draft is not None)


def campaign_of(judge: Judge) -> Campaign:
    """The campaign of this run; its answers are logged under the check that asks."""
    if CAMPAIGN not in judge.shared:
        engine: Engine = judge.shared[ENGINE]
        make_groups = _groups if has_target(judge.options) else _twins
        judge.shared[CAMPAIGN] = Campaign(engine, make_groups(judge, engine))
    campaign: Campaign = judge.shared[CAMPAIGN]
    campaign.keep = partial(_keep, judge)
    campaign.progress = judge.progress
    return campaign


def texts_of(models: ModelPair, starts: Sequence[Sequence[int]], *, seed: int) -> list[tuple[int, ...]]:
    """Text as the target writes it, so that drafts are accepted: `TEXT_TOKENS` sampled after two tokens of each start."""
    generator = torch.Generator().manual_seed(seed)
    stops = list(end_of_text(models))
    length = min(2, *(len(start) for start in starts))
    token_ids = torch.tensor([list(start[:length]) for start in starts], device=models.device)  # [B, T]
    for _ in range(TEXT_TOKENS):
        logits = forward_logits(models.target, token_ids)[:, -1].double().cpu()  # [B, V]
        logits[:, stops] = -torch.inf
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        token_ids = torch.cat([token_ids, drawn.to(models.device)], dim=1)
    return [tuple(text) for text in token_ids.tolist()]


def repetitive(texts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each text and the beginning of its repetition, in many lengths: a lookup in the prompt finds what to draft."""
    return [(text + text)[: len(text) + 2 + index % 15] for index, text in enumerate(texts)]


def end_of_text(models: ModelPair) -> tuple[int, ...]:
    """Tokens at which an engine stops because the target's checkpoint says so."""
    config = models.target.generation_config.eos_token_id
    found = models.target.config.get_text_config().eos_token_id if config is None else config
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


def with_lines(finding: Finding, campaign: Campaign) -> Finding:
    """The finding with what the engine says of itself."""
    engine = {"name": campaign.engine.name, "requests_at_once": list(campaign.engine.concurrency)}
    engine["notes"] = list(getattr(campaign.engine, "notes", ()))  # what it could not be asked
    return replace(finding, details=finding.details | {"engine": engine})


def _groups(judge: Judge, engine: Engine) -> list[Group]:
    """What is asked where the target is at hand."""
    models = trained_pair(judge)
    texts = texts_of(models, trained_prompts(judge, scaled(judge, NUM_PROMPTS)), seed=judge.options.seed % 2**31)
    stops = end_of_text(models)
    counts = Counter(token_id for text in texts for token_id in text if token_id not in stops)
    return plan(
        repetitive(texts),
        engine,
        stop_token_ids=stops,
        frequent=[token_id for token_id, _ in counts.most_common(NUM_FREQUENT)],
        seed=judge.options.seed % 2**31,
    )


def _twins(judge: Judge, engine: Engine) -> list[Group]:
    """Without a target: prompts in the words of the server without speculation, begun by random tokens.

    Raises `NotApplicable` where there is no such server either.
    """
    starts = prompts(judge, scaled(judge, NUM_PROMPTS), vocab_size=MODEST_VOCABULARY, lengths=(2,))
    asked = [Request(prompt_token_ids=start, max_new_tokens=TEXT_TOKENS) for start in starts]
    try:
        answers = dict(engine.answer(asked, speculative=False, concurrency=max(engine.concurrency)))
    except NoControl as reason:
        raise NotApplicable(f"neither --target nor a control: {reason}") from reason
    texts = [
        start + tuple(answer.token_ids)
        for index, start in enumerate(starts)
        if isinstance(answer := answers.get(index), Generation) and answer.token_ids
    ]
    if not texts:
        raise ContractViolation("the server without speculation answered none of the first requests")
    return plan_twins(repetitive(texts), engine, seed=1)


def _keep(judge: Judge, request: Request, generation: Generation) -> None:
    judge.log_generation(request=request, generation=generation, models_name=trained_pair(judge).name)
