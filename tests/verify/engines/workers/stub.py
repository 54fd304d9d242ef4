"""A worker's engine that needs the standard library only; `do` says how it behaves."""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any


class Stub:
    """Answers with the request's first prompt token, over and over."""

    name = "stub 1.0"
    concurrency = (1,)
    same_seed_same_output = False

    def __init__(self, do: str) -> None:
        self.do = do
        self.capabilities = {"greedi" if do == "claims nonsense" else "greedy": True}

    def answer(
        self, requests: list[dict[str, Any]], *, speculative: bool, concurrency: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.do == "no control" and not speculative:
            raise NotImplementedError("method 'ngram' has no plain mode")
        for index, request in enumerate(requests):
            print("what engines print on the way")
            token_id = request["prompt_token_ids"][0]
            answer: dict[str, Any] = {"token_ids": [token_id] * request["max_new_tokens"], "finish_reason": "length"}
            if index == 1:
                match self.do:
                    case "die":
                        print("cudaErrorIllegalAddress", file=sys.stderr)
                        os._exit(3)
                    case "fall silent":
                        time.sleep(60)
                    case "raise":
                        raise RuntimeError("no free block")
                    case "fail once":
                        answer = {"failure": "the request was preempted"}
                    case "wrong types":
                        answer = {"token_ids": ["a"], "finish_reason": "length"}
                    case "unknown key":
                        answer |= {"tokens": []}
                    case "leave out":
                        continue
                    case "answer twice":
                        index = 0
            yield index, answer


def open_engine(
    *, target: str, draft: str | None, options: dict[str, str], device: str, dtype: str, folder: str
) -> Stub:
    if options.get("do") == "refuse":
        raise ValueError("method 'x' is not valid; use ngram")
    if options.get("do") == "refuse at length":
        raise TypeError("1 validation error\n  method\n    unknown")
    return Stub(options.get("do", ""))
