"""An engine in the place of a decoder: it claims what the engine claims; only its campaign asks it anything."""

from collections.abc import Sequence

from verify.engines.protocol import Engine
from verify.judge import NotApplicable
from verify.protocol import Capabilities, Generation, Request


class EngineInPlace:
    """What the engine says of itself."""

    def __init__(self, engine: Engine) -> None:
        self.capabilities: Capabilities = engine.capabilities

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Raises `NotApplicable`: an engine is asked through its campaign."""
        raise NotApplicable("an engine is asked in chapter 18")
