"""The ways into the suite: what is handed in, and which chapters can be asked of it."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

Door: TypeAlias = Literal["decoder", "engine", "verifier", "generations"]
DOORS: tuple[Door, ...] = get_args(Door)
KERNEL_CHAPTER = 16
LOG_CHAPTER = 17
ENGINE_CHAPTER = 18

_LAWS_FROM_THE_SUITE = "the suite computes the laws that a rejection step is given, and cuts its output"
# Chapters that a door does not open, with what is therefore not verified; "" where nothing is missing.
CLOSED: Mapping[Door, Mapping[int, str]] = {
    "decoder": {KERNEL_CHAPTER: "", LOG_CHAPTER: "", ENGINE_CHAPTER: ""},
    "engine": {
        1: "greedy answers are judged in chapter 18, on the engine's own models; no tables without rounding",
        2: "an engine shows outcomes, not the randomness behind them: no exact law",
        3: "sampled answers are judged in chapter 18; its rounds are seen only as far as the engine reports them",
        4: "the settings that the engine claims are judged in chapter 18; combinations of them are not",
        5: "stopping is judged in chapter 18, on the answers of the campaign",
        6: "rollback, context limits and calls after one another, beyond what the campaign happens to reach",
        7: "requests at once are judged in chapter 18; which of them shared a batch is the engine's choice",
        8: "streams are judged in chapter 18, where requests repeat; whether an engine repeats itself when started anew is not",
        9: "corrupt drafts and vocabularies of other sizes",
        10: "acceptance against theory: the engine's own counts are the only witness of rounds",
        11: "log-probabilities are judged in chapter 18, where the engine gives them",
        12: "whether admission looks at the drafts",
        13: "that unclaimed features are refused",
        14: "streaming and cancellation",
        KERNEL_CHAPTER: "",
        LOG_CHAPTER: "",
    },
    "verifier": {
        4: _LAWS_FROM_THE_SUITE,
        5: _LAWS_FROM_THE_SUITE,
        6: "a rejection step has no state; the caches and positions of the decoder around it are not judged",
        8: "a rejection step takes no seed; that its rows and calls are independent is judged in chapter 16",
        10: "acceptance is judged in chapter 16, where the step claims the standard rule",
        11: "a rejection step reports no log-probabilities",
        12: "which drafts are verified is decided before the rejection step",
        13: "a rejection step takes no settings",
        14: "a rejection step does not stream",
        LOG_CHAPTER: "",
        ENGINE_CHAPTER: "",
    },
    "generations": {
        1: "greedy lines are judged in chapter 17; the controls need further runs of the engine",
        2: "a log shows outcomes, not the randomness behind them: no exact law",
        3: "sampled lines are judged in chapter 17; rounds are seen only as far as the log records them",
        4: "settings that no line of the log uses",
        5: "stop tokens and lengths that no line of the log has; stops at every offset of a block",
        6: "rollback, context limits and calls after one another, beyond what the lines happen to reach",
        7: "which requests shared a batch",
        8: "streams are compared only where requests repeat",
        9: "corrupt drafts and vocabularies of other sizes",
        10: "acceptance against theory: the log's own counts are the only witness of rounds",
        11: "log-probabilities of lines that hold none",
        12: "whether admission looks at the drafts",
        13: "that unclaimed features raise",
        14: "streaming and cancellation",
        KERNEL_CHAPTER: "",
        ENGINE_CHAPTER: "",
    },
}


def opens(door: Door, chapter: int) -> bool:
    """Whether the checks of a chapter can be asked through `door`; a house suite's own chapters always can."""
    return chapter not in CLOSED[door]


def left_out(door: Door) -> dict[int, str]:
    """Chapters that this door leaves unverified, with the reason."""
    return {chapter: reason for chapter, reason in CLOSED[door].items() if reason}
