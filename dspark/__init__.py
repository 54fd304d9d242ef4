"""A reference speculative decoder: lossless, batched, with every sampling setting applied to the true history."""

from dspark.decoder import SpeculativeDecoder
from dspark.drafters.model import ModelDrafter
from dspark.drafters.ngram import NgramDrafter
from dspark.grammar import TokenAutomaton
from dspark.record import AcceptanceRecord
from dspark.request import Generation, Request, SamplingParams
from dspark.serving import Engine, Limits

__all__ = [
    "AcceptanceRecord",
    "Engine",
    "Generation",
    "Limits",
    "ModelDrafter",
    "NgramDrafter",
    "Request",
    "SamplingParams",
    "SpeculativeDecoder",
    "TokenAutomaton",
]
