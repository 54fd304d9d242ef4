"""Sequential temperature scaling: confidences corrected position by position, so that their product can be believed.

Schedulers weigh products of confidences; errors of one position carry over to all later ones. So the temperature of
position k is chosen with those before it already in place.
"""

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit
from torch import Tensor

SCHEMA = "dspark-calibration/2"
FILE = "calibration.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """One temperature per position: c_k becomes sigmoid(logit(c_k) / temperatures[k]); above 1 it turns less sure.

    A rising function at each position: the order of confidences at one position stays, and 0 and 1 stay what they are.
    It sees one confidence at a time, so a schedule that was causal before is causal after. It holds for the weights of
    `weights_sha256` (the checkpoint's files), decoding at `sampling_temperature`.
    """

    temperatures: tuple[float, ...]
    sampling_temperature: float = 1.0
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        if not all(0 < each < math.inf for each in self.temperatures):
            raise ValueError(
                f"temperatures are {list(self.temperatures)}; they must be positive and finite. Calibrate again."
            )

    def apply(self, confidences: Tensor) -> Tensor:
        """Correct `[..., K]`, K at most the number of temperatures; float64 on the same device."""
        width = self._width(confidences.shape[-1])
        temperatures = torch.tensor(self.temperatures[:width], dtype=torch.float64, device=confidences.device)
        return torch.sigmoid(torch.logit(confidences.double()) / temperatures)

    def apply_to_table(self, confidences: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same for recorded confidences `[N, K]`; NaN stays."""
        width = self._width(confidences.shape[-1])
        corrected: NDArray[np.float64] = expit(logit(confidences) / np.array(self.temperatures[:width]))
        return corrected

    def save(self, directory: Path) -> Path:
        """Write `calibration.json` into a drafter's directory; returns its path."""
        path = directory / FILE
        path.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, directory: Path) -> "Calibration":
        """Read what `save` wrote; raises ValueError (value, rule, remedy) on anything else."""
        path = directory / FILE
        remedy = "Make one with `dspark calibrate`."
        if not path.is_file():
            raise ValueError(f"{str(directory)!r} has no {FILE}; a calibration is read from there. {remedy}")
        try:
            stored = json.loads(path.read_text())
            schema = stored["schema"]
            if schema != SCHEMA:
                raise ValueError(f"schema is {schema!r}, not {SCHEMA!r}")
            temperatures = tuple(float(each) for each in stored["temperatures"])
            return cls(temperatures, float(stored["sampling_temperature"]), str(stored["weights_sha256"]))
        except (ValueError, KeyError, TypeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{str(path)!r} is no calibration ({what}). {remedy}") from error

    def require(self, *, weights_sha256: str, temperature: float | None = None) -> None:
        """Raise ValueError where it was fitted to other weights, and warn where at another temperature (None: not known)."""
        if self.weights_sha256 != weights_sha256:
            raise ValueError(
                f"{FILE} was fitted to other weights ({self.weights_sha256[:12]} instead of {weights_sha256[:12]}); a drafter "
                "takes its own only. Make one with `dspark calibrate`, or delete it."
            )
        if temperature is not None and temperature != self.sampling_temperature:
            warnings.warn(
                f"{FILE} was fitted at temperature {self.sampling_temperature:g} and is used at {temperature:g}; the output is "
                "right, but more or fewer drafts are verified than is best. Calibrate at the temperature that you decode at.",
                stacklevel=3,
            )

    def _width(self, num_positions: int) -> int:
        if num_positions > len(self.temperatures):
            raise ValueError(
                f"a block has {num_positions} confidences and the calibration {len(self.temperatures)} temperatures; every "
                "position needs one. Calibrate with blocks of that length."
            )
        return num_positions
