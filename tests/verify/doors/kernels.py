"""Rejection steps: one that is correct, in several styles, and one planted bug each."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dspark.block_verification import verify_jointly
from dspark.sampling import draw
from dspark.verification import residual, verify_block


def _emit(draft_token_ids: Tensor, num_accepted: Tensor, final: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.arange(draft_token_ids.shape[1] + 1)
    padded = torch.cat([draft_token_ids, torch.zeros_like(final)[:, None]], 1)
    emitted = torch.where(places < num_accepted[:, None], padded, -1)
    return torch.where(places == num_accepted[:, None], final[:, None], emitted), num_accepted


def reference(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """`dspark.verification.verify_block` with uniforms of its own."""
    if draft_probs is None:
        draft_probs = torch.nn.functional.one_hot(draft_token_ids, target_probs.shape[-1]).to(target_probs.dtype)
    done = verify_block(
        draft_token_ids=draft_token_ids,
        draft_probs=draft_probs,
        target_probs=target_probs,
        draft_lengths=draft_lengths,
        accept_uniforms=torch.rand(draft_token_ids.shape, dtype=torch.float64),
        final_uniforms=torch.rand(len(draft_token_ids), dtype=torch.float64),
    )
    return _emit(draft_token_ids, done.num_accepted, done.final_token_ids)


def jointly(
    draft_token_ids: Tensor, draft_probs: Tensor, target_probs: Tensor, draft_lengths: Tensor, *, scaled: bool = True
) -> tuple[Tensor, Tensor]:
    """Correct with another acceptance: block verification. Not `scaled`: RES-7, the recovered token is the standard rule's."""
    done = verify_jointly(
        draft_token_ids=draft_token_ids,
        draft_probs=draft_probs,
        target_probs=target_probs,
        draft_lengths=draft_lengths,
        accept_uniforms=torch.rand(draft_token_ids.shape, dtype=torch.float64),
        final_uniforms=torch.rand(len(draft_token_ids), dtype=torch.float64),
    )
    count, final = done.num_accepted, done.final_token_ids
    if not scaled:
        rows, rejected = torch.arange(len(count)), count < draft_lengths
        draft_row = draft_probs[rows, count.clamp(max=draft_probs.shape[1] - 1)].where(rejected[:, None], 0.0)
        final = draw(residual(target_probs[rows, count], draft_row), torch.rand(len(count), dtype=torch.float64))
    return _emit(draft_token_ids, count, final)


reference.capabilities = {"standard_acceptance": True, "arithmetic": "float64"}  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Numpy, whole batches at once, with coins from `uniforms(shape)`."""

    uniforms: Callable[[tuple[int, ...]], Any]

    def __call__(self, draft_token_ids: Any, draft_probs: Any, target_probs: Any, draft_lengths: Any) -> Any:
        ids, lengths = np.asarray(draft_token_ids), np.asarray(draft_lengths)
        target = np.asarray(target_probs).astype(np.float64)
        draft = np.eye(target.shape[2])[ids] if draft_probs is None else np.asarray(draft_probs).astype(np.float64)
        at = ids[..., None]
        t_at, d_at = np.take_along_axis(target[:, :-1], at, 2)[..., 0], np.take_along_axis(draft, at, 2)[..., 0]
        sound = np.isfinite(draft).all(2) & (draft >= 0).all(2) & (d_at > 0)
        stands = sound & (self.uniforms(ids.shape) * np.where(sound, d_at, 1) < t_at)
        stands &= np.arange(ids.shape[1])[None] < lengths[:, None]
        count = np.cumprod(stands, 1).sum(1)
        rows = np.arange(len(ids))
        final = target[rows, count]
        last = np.minimum(count, ids.shape[1] - 1)
        rejected = (count < lengths) & sound[rows, last]
        excess = np.maximum(final - np.where(rejected[:, None], draft[rows, last], 0), 0)
        final = np.where(excess.sum(1, keepdims=True) > 0, excess, final)
        ends = final.cumsum(1)
        drawn = (ends <= self.uniforms((len(ids), 1)) * ends[:, -1:]).sum(1)
        out = np.full((len(ids), ids.shape[1] + 1), -1)
        places = np.arange(ids.shape[1] + 1)[None]
        out[:, :-1] = np.where(places[:, :-1] < count[:, None], ids, -1)
        out[rows, count] = np.minimum(drawn, np.where(final > 0, np.arange(final.shape[1]), 0).max(1))
        return out, count


def _system(shape: tuple[int, ...]) -> Any:
    bits = np.frombuffer(os.urandom(8 * int(np.prod(shape))), dtype=np.uint64) >> np.uint64(11)
    return (bits.astype(np.float64) / 2**53).reshape(shape)


def _python(shape: tuple[int, ...]) -> Any:
    return np.array([random.random() for _ in range(int(np.prod(shape)))]).reshape(shape)


_GENERATOR = np.random.default_rng(5)
in_numpy = Plain(uniforms=_GENERATOR.random)
in_python = Plain(uniforms=_python)
opaque = Plain(uniforms=_system)


def sample_match(
    draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Correct with another acceptance: draw from the target, go on while the draft guessed it."""
    drawn = torch.distributions.Categorical(probs=target_probs.double()).sample()
    places = torch.arange(draft_token_ids.shape[1])
    hits = (drawn[:, :-1] == draft_token_ids) & (places < draft_lengths[:, None])
    count = hits.long().cumprod(1).sum(1)
    return _emit(draft_token_ids, count, drawn.gather(1, count[:, None])[:, 0])


class Planted:
    """The standard rule in torch with one mistake, named."""

    def __init__(self, bug: str = "") -> None:
        self.bug = bug
        self.num_calls = 0

    def __call__(
        self, draft_token_ids: Tensor, draft_probs: Tensor | None, target_probs: Tensor, draft_lengths: Tensor
    ) -> Any:
        bug, (num_rows, width) = self.bug, draft_token_ids.shape
        if draft_probs is None:
            draft_probs = torch.nn.functional.one_hot(draft_token_ids, target_probs.shape[-1])
        target, draft = target_probs.double(), draft_probs.double()
        if bug == "writes to its input":
            target_probs.clamp_(min=1e-3)
        if bug == "rows are mixed":
            draft = draft.roll(1, 0)
        index = draft_token_ids[..., None]
        t_at, d_at = target[:, :-1].gather(2, index)[..., 0], draft.gather(2, index)[..., 0]
        ratio = t_at / (d_at + 1e-10 if bug == "epsilon in the ratio" else d_at)
        shape = {"one coin for a block": (num_rows, 1), "one coin for the batch": (1, width)}
        coins = torch.rand(shape.get(bug, (num_rows, width)), dtype=torch.float64)
        if bug == "reseeded":
            coins = torch.rand(num_rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.num_calls += 1
        if bug == "every second call reseeded":
            seeded = torch.Generator().manual_seed((self.num_calls + 1) // 2)
            coins = torch.rand(num_rows, width, dtype=torch.float64, generator=seeded)
        if bug == "coins of half the batch":
            coins[num_rows // 2 : num_rows // 2 * 2] = coins[: num_rows // 2].clone()
        if bug == "coins of every second neighbour":
            coins[2::2] = coins[1:-1:2].clone()
        if bug == "coins of eight places":
            coins = coins[:, torch.arange(width) % 8]
        stands = coins <= ratio if bug == "ACC-3 <=" else coins < ratio
        if bug == "ACC-14 no coin":
            stands = ratio >= 1
        if bug == "NaN accepts":
            stands = ~(coins >= ratio)
        elif bug != "epsilon in the ratio":
            stands = stands & ratio.isfinite()
        stands = stands & (torch.arange(width) < draft_lengths[:, None])
        counting = stands.long() if bug == "mask not cumulative" else stands.long().cumprod(1)
        count = counting.sum(1)
        rows = torch.arange(num_rows)
        bonus = count == draft_lengths
        row = torch.where(bonus, (count - 1).clamp(min=0), count) if bug == "bonus from the row before" else count
        final = target[rows, row]
        last = count.clamp(max=width - 1)
        recovered = (final - draft[rows, last].nan_to_num(0, 0, 0)).clamp(min=0)
        if bug == "RES-8 not subtracted":
            recovered = final
        if bug != "epsilon in the ratio":
            recovered = torch.where(recovered.sum(1, keepdim=True) > 0, recovered, final)
        final = torch.where(bonus[:, None], final, recovered)
        if bug == "last tile lost":
            final = torch.where(torch.arange(final.shape[1]) < final.shape[1] // 1024 * 1024, final, 0.0)
        ends = (final / final.sum(1, keepdim=True)).cumsum(1)
        uniform = torch.rand(num_rows, 1, dtype=torch.float64)
        drawn = (ends < uniform if bug == "first entry of the cumulative law" else ends <= uniform).sum(1)
        if bug != "epsilon in the ratio":
            drawn = torch.minimum(drawn, torch.where(final > 0, torch.arange(final.shape[1]), 0).amax(1))
        return _emit(draft_token_ids, count, drawn)


def planted(bug: str) -> Planted:
    return Planted(bug)


def raises(*arguments: Any) -> Any:
    raise RuntimeError("no kernel image is available")


def spoiled(spoil: Callable[[Tensor, Tensor], Any]) -> Callable[..., Any]:
    """The correct step with its answer spoiled."""

    def kernel(*arguments: Any) -> Any:
        return spoil(*reference(*arguments))

    return kernel


SPOILED: dict[str, tuple[Callable[..., Any], str]] = {
    "one value": (spoiled(lambda ids, count: ids), "returned Tensor; it must return (token_ids, num_accepted)"),
    "float ids": (spoiled(lambda ids, count: (ids.float(), count)), "token_ids has dtype torch.float32"),
    "too narrow": (spoiled(lambda ids, count: (ids[:, :-1], count)), "token_ids has shape"),
    "column of counts": (spoiled(lambda ids, count: (ids, count[:, None])), "num_accepted has shape"),
    "foreign id": (spoiled(lambda ids, count: (ids.where(ids < 0, 99), count)), "must lie in the vocabulary"),
    "padding 0": (spoiled(lambda ids, count: (ids.clamp(min=0), count)), "must be -1"),
    "count of tokens": (spoiled(lambda ids, count: (ids, count + 1)), "it counts accepted drafts"),
    "count too low": (spoiled(lambda ids, count: (ids, (count - 1).clamp(min=0))), "must be -1"),
    "ragged list": (spoiled(lambda ids, count: ([r[r >= 0].tolist() for r in ids], count)), "token_ids is no array"),
    "text": (lambda *_: "tokens", "returned str; it must return (token_ids, num_accepted)"),
}
residual_not_subtracted = planted("RES-8 not subtracted")
jointly_not_scaled = partial(jointly, scaled=False)
