"""What a rejection step takes and shows, found out by trying."""

import torch

from verify.exact.enumeration import enumerate_outcomes
from verify.intake import Malformed
from verify.kernel.block import Block, Kernel, KernelRaised, run_kernel

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
_REPEATS = 4
_MOST_PATHS = 2_000


def small_block(dtype: torch.dtype, device: torch.device) -> Block:
    """One row, two drafts, five tokens: coins, recovered tokens and the bonus are all undecided."""
    target = torch.tensor([[0.1, 0.3, 0.2, 0.25, 0.15], [0.3, 0.1, 0.15, 0.2, 0.25], [0.2, 0.15, 0.25, 0.1, 0.3]])
    draft = torch.tensor([[0.4, 0.1, 0.3, 0.1, 0.1], [0.1, 0.4, 0.1, 0.3, 0.1]])
    return Block(
        draft_token_ids=torch.tensor([[0, 1]], device=device),
        draft_probs=draft[None].to(dtype).to(device),
        target_probs=target[None].to(dtype).to(device),
        draft_lengths=torch.tensor([2], device=device),
    )


def accepts_dtype(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the step answers on probabilities of this dtype rather than raise."""
    try:
        run_kernel(kernel, small_block(dtype, device))
    except KernelRaised:
        return False
    except Malformed:
        return True
    return True


def preferred_dtype(kernel: Kernel, device: torch.device) -> torch.dtype:
    """float64 where the step takes it, else float32."""
    return torch.float64 if accepts_dtype(kernel, torch.float64, device) else torch.float32


def hides_randomness(kernel: Kernel, device: torch.device) -> bool:
    """Whether some of the step's randomness is out of the suite's sight.

    Enumerated several times with all visible randomness under control, a step in full sight shows the same law each time. A
    step that is refused by name is not hiding: the exact law refuses it by the same name.
    """
    block = small_block(preferred_dtype(kernel, device), device)

    def run() -> tuple[int, ...]:
        return tuple(run_kernel(kernel, block.copy()).token_ids[0].tolist())

    laws = []
    for _ in range(_REPEATS):
        try:
            found = enumerate_outcomes(run, max_paths=_MOST_PATHS)
        except (KernelRaised, Malformed):
            return False  # it fails where it is judged
        if found.refused.startswith("hidden state") or found.num_paths == 1:
            return True
        laws.append(dict(found.law))
    return any(law != laws[0] for law in laws)
