"""An engine for tests: draft and target through plain forwards, one token at a time; `bug` plants a mistake."""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

K = 3


class Tiny:
    """Speculative sampling as published, without a cache."""

    def __init__(self, target: str, draft: str, bug: str) -> None:
        self.target, self.draft = (
            AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (target, draft)
        )
        self.bug = bug
        self.name = f"tiny 1.0{', ' + bug if bug else ''}"
        self.capabilities = dict.fromkeys(
            (
                "greedy",
                "sampled",
                "top_p",
                "logit_bias",
                "stop_tokens",
                "batch",
                "mixed_sampling",
                "seeds",
                "seeds_per_request",
                "record",
            ),
            True,
        ) | {"draft_model": True, "logprobs": "raw"}
        self.concurrency = [1, 4]
        self.same_seed_same_output = False
        self.answered = 0

    def answer(
        self, requests: list[dict[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, request in enumerate(requests):
            self.answered += 1
            if self.bug == "always fails":
                yield index, {"failure": "the device is gone"}
                continue
            if self.bug == "logit_bias fails" and request["sampling"]["logit_bias"]:
                yield index, {"failure": "a bias of the logits is not implemented"}
                continue
            if self.bug == "die" and self.answered > 30:
                os._exit(3)
            if self.bug == "silent" and self.answered > 30:
                time.sleep(60)
            if self.bug == "some fail" and self.answered % 20 == 0:
                yield index, {"failure": "out of memory"}
                continue
            if self.bug == "garbage" and self.answered == 31:
                yield index, {"token_ids": ["a"], "finish_reason": "stop"}
                continue
            wrong = {
                "wrong at once": "bonus of the draft" if concurrency > 1 else "",
                "wrong without a seed": "accepts everything" if request["seed"] is None else "",
            }.get(self.bug, self.bug)
            yield index, self._one(request, wrong if speculative else "", speculative)

    @torch.inference_mode()
    def _rows(self, model: Any, text: list[int], count: int, request: dict[str, Any]) -> torch.Tensor:
        logits = model(torch.tensor([text]), use_cache=False).logits[0, -count:].double()
        for token_id, bias in request["sampling"]["logit_bias"].items():
            logits[:, int(token_id)] += bias
        temperature = request["sampling"]["temperature"]
        if temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
        first, last = (1.0, temperature) if self.bug == "temperature last" else (temperature, 1.0)
        ordered, order = (logits / first).softmax(-1).sort(dim=-1, descending=True)
        dropped = ordered.cumsum(-1) - ordered >= request["sampling"]["top_p"]
        kept = logits.masked_fill(dropped.gather(-1, order.argsort(-1)), -torch.inf)
        return (kept / first / last).softmax(-1)

    def _one(self, request: dict[str, Any], bug: str, speculative: bool) -> dict[str, Any]:
        seed = request["seed"]
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None and bug != "fresh seeds" else generator.seed()
        speculative = (speculative or self.bug == "always speculates") and bug != "never speculates"
        if bug == "constant seed":
            generator.manual_seed(1)

        def draw(law: torch.Tensor) -> int:
            return int(torch.multinomial(law, 1, generator=generator))

        text, output = list(request["prompt_token_ids"]), []
        steps = drafted = accepted = 0
        while len(output) < request["max_new_tokens"]:
            drafts, laws = [], []
            for _ in range(K if speculative else 0):
                laws.append(self._rows(self.draft, [*text, *output, *drafts], 1, request)[0])
                drafts.append(draw(laws[-1]))
            rows = self._rows(self.target, [*text, *output, *drafts], len(drafts) + 1, request)
            block = []
            for row, law, token_id in zip(rows, laws, drafts, strict=False):
                coin = float(torch.rand((), generator=generator))
                if coin < float(row[token_id] / law[token_id]) or bug == "accepts everything":
                    block.append(token_id)
                    continue
                block.append(draw(row if bug == "no residual" else (row - law).clamp(min=0)))
                break
            else:
                block.append(draw(laws[-1] if bug == "bonus of the draft" else rows[-1]))
            kept = len(block) - 1
            for token_id in block:
                output.append(token_id)
                if token_id in request["stop_token_ids"] and bug != "runs past stops":
                    break
                if len(output) == request["max_new_tokens"]:
                    break
            steps, drafted, accepted = steps + 1, drafted + len(drafts), accepted + kept
            if output[-1] in request["stop_token_ids"]:
                break
        if bug == "wrong at the limit" and request["max_new_tokens"] < 12:
            output[-1] = (output[-1] + 1) % 64
        answer: dict[str, Any] = {"token_ids": output}
        answer["finish_reason"] = "stop" if output[-1] in request["stop_token_ids"] else "length"
        if speculative:
            # totals only, as most engines have them
            answer["record"] = {
                "num_spec_steps": steps,
                "num_draft_tokens": drafted,
                "num_accepted_draft_tokens": accepted,
                "acceptance_histogram": [],
            }
        if request["logprobs"]:
            with torch.inference_mode():
                rows = self.target(torch.tensor([text + output]), use_cache=False).logits[0].double().log_softmax(-1)
            answer["logprobs"] = [float(rows[len(text) - 1 + i, t]) for i, t in enumerate(output)]
        return answer


def open_engine(*, target: str, draft: str, options: dict[str, str], device: str, dtype: str, folder: str) -> Tiny:
    torch.set_num_threads(1)
    if options.get("bug") == "not opened":
        raise ValueError("method 'x' is not valid; use draft_model")
    return Tiny(target, draft, options.get("bug", ""))
