"""The training text: prompts that the target itself has continued, in shards on disk.

A drafter has to guess what the target says, not what the text says, so every response is sampled from the target at
temperature 1 (DSpark, section on training data).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dspark.cache import open_context
from dspark.causal_model import CausalModel
from dspark.digest import model_digest
from dspark.sampling import draw
from dspark.training.documents import Prompt
from dspark.transfer import padded

DESCRIPTION = "text.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Sequences, prompt and response: `token_ids` `[N, L]` padded with 0 after `lengths[n]` tokens.

    The response of row n begins at `prompt_lengths[n]`; `domains[n]` is its domain. All on the host.
    """

    token_ids: Tensor  # [N, L]
    lengths: Tensor  # [N]
    prompt_lengths: Tensor  # [N]
    domains: tuple[str, ...]

    @property
    def num_response_tokens(self) -> int:
        """Tokens that the target wrote."""
        return int((self.lengths - self.prompt_lengths).sum())

    def select(self, rows: Sequence[int]) -> "Text":
        """Some of the sequences, in that order, without padding that none of them needs."""
        index = torch.tensor(rows, dtype=torch.long)
        lengths = self.lengths[index]
        return Text(
            token_ids=self.token_ids[index, : int(lengths.max())],
            lengths=lengths,
            prompt_lengths=self.prompt_lengths[index],
            domains=tuple(self.domains[row] for row in rows),
        )


@torch.inference_mode()
def continue_prompts(
    target: CausalModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    generator: torch.Generator,
) -> list[list[int]]:
    """Sample one continuation of each prompt at temperature 1, as one batch; a stop token ends its row and is kept."""
    texts = [list(prompt) for prompt in prompts]
    running = list(range(len(texts)))
    context = open_context(target, len(texts))
    block = padded(texts, target.device)  # [B, T]
    counts = [len(text) for text in texts]
    for position in range(max_new_tokens):
        logits = context.extend(block, counts, last=True).logits  # [B, 1, V]
        context.commit(context.lengths)
        uniforms = torch.rand(len(running), generator=generator, dtype=torch.float64).to(target.device)
        drawn = draw(logits[:, 0].float().softmax(-1), uniforms)  # [B]
        token_ids: list[int] = drawn.tolist()
        for row, token_id in zip(running, token_ids, strict=True):
            texts[row].append(token_id)
        kept = [place for place, token_id in enumerate(token_ids) if token_id not in stop_token_ids]
        if not kept or position + 1 == max_new_tokens:
            break
        if len(kept) < len(running):
            running = [running[place] for place in kept]
            context.select(kept)
            drawn = drawn[torch.tensor(kept, device=drawn.device)]
        block, counts = drawn[:, None], [1] * len(kept)
    return texts


def regenerate(
    target: CausalModel,
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
    batch_size: int = 64,
    seed: int = 0,
) -> Text:
    """Continue all prompts into `folder`, one shard a batch; shards that are there already are kept.

    A shard depends on its prompts, the seed and its number only, so an interrupted call can be repeated. Raises
    ValueError where the folder holds text of another target, prompts or settings, or a prompt leaves no room.
    """
    _require_room(target, prompts, max_new_tokens)
    description = {
        "prompts_sha256": _fingerprint(prompts),
        "target_dtype": str(target.model.dtype).removeprefix("torch."),
        "target_sha256": model_digest(target.model),
        "max_new_tokens": max_new_tokens,
        "stop_token_ids": list(stop_token_ids),
        "batch_size": batch_size,
        "seed": seed,
    }
    _claim(folder, description)
    starts = range(0, len(prompts), batch_size)
    shards = [folder / f"text-{number:05}.safetensors" for number in range(len(starts))]
    for number, start in enumerate(track(starts, description="regenerating text")):
        if shards[number].exists():
            continue
        batch = prompts[start : start + batch_size]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        texts = continue_prompts(
            target,
            [prompt.token_ids for prompt in batch],
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            generator=generator,
        )
        _write_shard(shards[number], batch, texts)
    return load_text(folder)


def load_text(folder: Path) -> Text:
    """Read all shards of a folder; raises ValueError where there is none, or one is missing or broken."""
    shards = sorted(folder.glob("text-*.safetensors"))
    if not shards:
        raise ValueError(f"{str(folder)!r} holds no regenerated text; training needs some. Run `dspark train --text`.")
    parts: list[dict[str, Tensor]] = []
    domains: list[str] = []
    for number, shard in enumerate(shards):
        if shard.name != f"text-{number:05}.safetensors":
            raise ValueError(f"{str(folder)!r} lacks shard {number}; the text must be complete. Regenerate it.")
        try:
            with safe_open(shard, framework="pt") as opened:
                parts.append({name: opened.get_tensor(name) for name in ("token_ids", "lengths", "prompt_lengths")})
                domains.extend(json.loads(opened.metadata()["domains"]))
        except SafetensorError as error:
            raise ValueError(f"{str(shard)!r} is broken ({error}). Delete it; the same call makes it again.") from error
    width = max(part["token_ids"].shape[1] for part in parts)
    token_ids = [
        torch.nn.functional.pad(part["token_ids"], (0, width - part["token_ids"].shape[1])).long() for part in parts
    ]
    return Text(
        token_ids=torch.cat(token_ids),
        lengths=torch.cat([part["lengths"] for part in parts]).long(),
        prompt_lengths=torch.cat([part["prompt_lengths"] for part in parts]).long(),
        domains=tuple(domains),
    )


def _write_shard(path: Path, prompts: Sequence[Prompt], texts: Sequence[Sequence[int]]) -> None:
    tensors = {
        "token_ids": padded(texts, torch.device("cpu")).int(),
        "lengths": torch.tensor([len(text) for text in texts], dtype=torch.int32),
        "prompt_lengths": torch.tensor([len(prompt.token_ids) for prompt in prompts], dtype=torch.int32),
    }
    unfinished = path.with_suffix(".partial")
    save_file(tensors, unfinished, metadata={"domains": json.dumps([prompt.domain for prompt in prompts])})
    os.replace(unfinished, path)


def _claim(folder: Path, description: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DESCRIPTION
    if not path.exists():
        path.write_text(json.dumps(description, indent=1) + "\n")
        return
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} does not describe a text ({error}). Delete {str(folder)!r}.") from error
    different = sorted(name for name in description if found.get(name) != description[name])
    if different:
        raise ValueError(
            f"{str(folder)!r} holds text of other {', '.join(different)}; one folder holds one text. "
            "Give another folder, or the settings that it was made with."
        )


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.domain} {prompt.token_ids}\n".encode())
    return digest.hexdigest()


def _require_room(target: CausalModel, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    if longest == 0:
        raise ValueError("there is no prompt with a token; the target needs something to continue. Give more text.")
    if target.max_positions is not None and longest + max_new_tokens > target.max_positions:
        raise ValueError(
            f"the longest prompt ({longest}) and max_new_tokens ({max_new_tokens}) exceed the target's "
            f"{target.max_positions} positions; lower one of them."
        )
