"""`dspark calibrate` and `dspark profile`, on tiny checkpoints with a tokenizer of words."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dspark.calibration import Calibration
from dspark.checkpoints import save_network
from dspark.cli import main
from dspark.drafters.dspark import DSparkDraftSession
from dspark.drafters.factory import random_drafter
from dspark.scheduler.profile import SpeedProfile
from dspark.scheduler.round_profile import RoundProfile
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    words = {f"w{index}": index for index in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    target = tiny("qwen3", initializer_range=0.2)
    target.save_pretrained(folder / "target")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "target")
    network: Any = random_drafter(target, kind="dspark", dtype=torch.float64, target_layer_ids=(0,)).network
    save_network(network, folder / "drafter", target=target.config, dtype=torch.float64)
    (folder / "text.txt").write_text(" ".join(f"w{index * 7 % VOCAB_SIZE}" for index in range(200)))
    return folder


@pytest.mark.filterwarnings("ignore:temperatures are")  # random weights know nothing
def test_calibrate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagram = tmp_path / "diagram.svg"
    arguments = ["calibrate", str(folder / "drafter"), "--target", str(folder / "target"), "--device", "cpu"]
    arguments += ["--dtype", "float64", "--text", str(folder / "text.txt"), "--prompt-tokens", "8"]
    arguments += ["--num-draft-tokens", "2", "--max-new-tokens", "50", "--diagram", str(diagram)]
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "w1 " * 15}))
    assert main([*arguments, "--text", str(tmp_path / "long.jsonl")]) == 2
    assert "has 15 tokens; with the response the target has room for 14." in capsys.readouterr().err
    assert main([*arguments, "--num-prompts", "2"]) == 2
    assert "15 bins need at least 300" in capsys.readouterr().err
    assert not (folder / "drafter" / "calibration.json").exists()
    assert main(arguments) == 0
    calibration = Calibration.load(folder / "drafter")
    assert len(calibration.temperatures) == 2
    assert calibration.sampling_temperature == 1.0
    generate = ["generate", "w1 w2", *arguments[2:8], "--drafter", "dspark", "--drafter-dir", arguments[1]]
    generate += ["--num-draft-tokens", "2", "--scheduler", "threshold", "--max-new-tokens", "4"]
    assert main(generate) == 0
    with pytest.warns(UserWarning, match="fitted at temperature 1 and is used at 0"):
        assert main([*generate, "--temperature", "0"]) == 0
    assert diagram.read_text().lstrip().startswith("<?xml")
    output = capsys.readouterr().out
    assert f"{calibration.temperatures[0]:.2f}" in output
    longer = ["5" if each == "2" else each for each in generate]
    assert main(longer) == 2
    assert "a block has 3 confidences and the calibration 2 temperatures" in capsys.readouterr().err
    assert main([*longer, "--scheduler", "none"]) == 0, "no schedule, no confidences"
    assert main(arguments) == 0  # from the raw confidences again, not from the calibrated ones
    assert Calibration.load(folder / "drafter") == calibration


def test_profile(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    arguments = ["profile", "--target", str(folder / "target"), "--device", "cpu", "--out", str(out)]
    arguments += ["--repeats", "3", "--context-length", "8", "--tokens-per-row", "2"]
    assert main([*arguments, "--token-counts", "1", "3"]) == 2
    assert "a token count is 3; it must be 1 to 2 or a multiple of 2" in capsys.readouterr().err
    assert main([*arguments, "--token-counts", "1", "2", "8"]) == 0
    profile = SpeedProfile.load(out)
    assert profile.token_counts == (1, 2, 8)
    assert profile.conditions["tokens_per_row"] == 2


def test_profile_of_rounds(folder: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With it `generate` leaves drafting where it does not pay."""
    out, target = tmp_path / "rounds.json", tiny("qwen3", initializer_range=0.2)
    choices: dict[str, Any] = {"target_layer_ids": (0,), "block_size": 2}
    network: Any = random_drafter(target, kind="dspark", dtype=torch.float64, **choices).network
    save_network(network, tmp_path / "drafter", target=target.config, dtype=torch.float64)
    models = ["--target", str(folder / "target"), "--device", "cpu"]
    drafter = ["--drafter-dir", str(tmp_path / "drafter")]
    measure = ["profile", *models, "--out", str(out), "--repeats", "2", "--context-length", "8"]
    assert main([*measure, *drafter, "--token-counts", "1"]) == 2
    assert "--token-counts is given and --drafter-dir is" in capsys.readouterr().err
    assert main([*measure, "--row-counts", "1"]) == 2
    assert "--row-counts is given and --drafter-dir is None" in capsys.readouterr().err
    assert main([*measure, *drafter, "--row-counts", "1", "2"]) == 0
    profile = RoundProfile.load(out)
    assert (profile.row_counts, profile.draft_counts) == ((1, 2), (0, 1, 2))
    assert "plain round, ms" in capsys.readouterr().out
    propose = DSparkDraftSession.propose
    generate = ["generate", "w1 w2", *models, *drafter, "--drafter", "dspark", "--scheduler", "prefix", "--stats"]
    for plain_seconds, once in ((1e-6, True), (1e6, False)):
        replace(profile, plain_seconds=(plain_seconds, plain_seconds)).save(out)
        with mock.patch.object(DSparkDraftSession, "propose", autospec=True, side_effect=propose) as drafting:
            assert main([*generate, "--profile", str(out), "--num-draft-tokens", "1", "--max-new-tokens", "10"]) == 0
        assert (drafting.call_count == 1) == once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "DRAFTER", "--diagram", "x.docx"], "its name must end in .svg or .png"),
        (["calibrate", "DRAFTER", "--diagram", "FILE/x.svg"], "cannot be written"),
        (["calibrate", "TAKEN"], "calibration.json' is a folder; a file is written there"),
        (["calibrate", "DRAFTER", "--text", "no-such-file"], "'no-such-file' cannot be read"),
        (["calibrate", "DRAFTER", "--text", "."], "(Is a directory)"),
        (["calibrate", "no-such-folder"], "'no-such-folder' has no config.json"),
        (["profile", "--out", "."], "'.' is a folder; a file is written there"),
        (["profile", "--out", "FILE/x.json"], "cannot be written"),
        (["train", "--text", "FILE", "--out", "FILE"], "is a file; a folder is written there"),
        (["train", "--text", "FILE", "--out", "FOLDER", "--work", "FILE"], "is a file; a folder is written there"),
        (["train", "--text", "no-such-file", "--out", "FOLDER"], "'no-such-file' cannot be read"),
        (["train", "--text", "FILE", "--out", "FOLDER", "--max-new-tokens", "7"], "must be longer than a block"),
    ],
)
def test_wrong_values_are_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"DRAFTER": folder / "drafter", "FILE": folder / "text.txt", "FOLDER": tmp_path / "new", "TAKEN": tmp_path}
    (tmp_path / "calibration.json").mkdir()
    for name, path in names.items():
        arguments = [each.replace(name, str(path)) for each in arguments]
    shape = ["--target-layer-ids", "0", "--layers", "1", "--mask-token-id", "0"] if arguments[0] == "train" else []
    assert main([*arguments, *shape, "--target", str(folder / "target"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("dspark: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    ["profile --repeats 0", "train --steps 0", "calibrate x --batch-size none", "profile --context-length -1"],
)
def test_a_count_that_is_none_is_refused(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments.split())
    assert raised.value.code == 2
    assert "is not an integer of at least" in capsys.readouterr().err
