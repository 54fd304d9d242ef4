"""Requests as a worker gets them."""

from typing import Any

from verify.engines.worker import plain
from verify.protocol import Request, SamplingParams


def a_request(**settings: Any) -> dict[str, Any]:
    """A request with these settings, of the sampling or its own."""
    sampling = {name: settings.pop(name) for name in list(settings) if name in SamplingParams.__slots__}
    own: dict[str, Any] = {"prompt_token_ids": (3, 4), "max_new_tokens": 5} | settings
    return plain(Request(**own, sampling=SamplingParams(**sampling)))
