"""The command line and the loading of checkpoints, on tiny ones with a tokenizer of words."""

import argparse
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dspark.cli import COMMANDS, main
from dspark.loading import default_draft_dir, default_drafter_dir, default_target_dir, load_pair
from tests.dspark.conftest import VOCAB_SIZE

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture(scope="module")
def pair(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    words = {f"w{index}": index for index in range(VOCAB_SIZE - 1)} | {"<end>": VOCAB_SIZE - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    for name, seed in (("target", 0), ("draft", 1)):
        tiny("qwen3", seed=seed).save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    return folder / "target", folder / "draft"


@pytest.fixture
def run(pair: tuple[Path, Path]) -> Callable[..., int]:
    target, draft = pair
    models_ = ["--target", str(target), "--draft", str(draft), "--dtype", "float64", "--device", "cpu"]
    return lambda *arguments: main(["generate", *models_, "--max-new-tokens", "12", *arguments])


def test_text_goes_to_stdout_and_statistics_to_stderr(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("w1 w2 w3", "--seed", "1", "--stats") == 0
    captured = capsys.readouterr()
    assert 1 <= len(captured.out.split()) <= 12
    for name in ("tokens", "rounds", "mean_acceptance_length", "draft_acceptance_rate", "tokens/s"):
        assert name in captured.err


def test_streaming_prints_the_same_text(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--seed", "3"], ["--temperature", "0"], ["--drafter", "ngram", "--seed", "4"]):
        assert run("w1 w2 w3", *options) == 0
        whole = capsys.readouterr().out
        assert run("w1 w2 w3", *options, "--stream") == 0
        assert capsys.readouterr().out == whole


def test_every_setting_reaches_the_decoder(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    settings = shlex.split(
        "--top-k 9 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.2 --presence-penalty 0.1 --frequency-penalty 0.1 "
        "--logit-bias 1:0.5 2:-1 --forbidden-token-ids 3 --allowed-token-ids 1 2 3 4 5 --min-new-tokens 12 "
        "--num-draft-tokens 2 --stop-token-ids 4 --greedy-drafts --seed 1"
    )
    assert run("w1 w2", *settings) == 0
    words = capsys.readouterr().out.split()
    assert len(words) == 12
    assert set(words) <= {"w1", "w2", "w5"} | ({"w4"} if words[-1] == "w4" else set())


def test_prompt_from_a_file(run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("w1 w2 w3", encoding="utf-8")
    assert run("--file", str(tmp_path / "prompt.txt"), "--seed", "1") == 0
    from_file = capsys.readouterr().out
    run("w1 w2 w3", "--seed", "1")
    assert capsys.readouterr().out == from_file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of PROMPT and --file"),
        (["w1", "--file", "x"], "exactly one of PROMPT and --file"),
        ([""], "the prompt is empty"),
        (["w1 \udcff"], "holds bytes that are not UTF-8"),
        (["--file", "no-such-file"], "'no-such-file' cannot be read"),
        (["--file", "."], "'.' cannot be read (Is a directory)"),
        (["w1", "--top-p", "0"], "top_p is 0.0"),
        (["w1", "--max-new-tokens", "64"], "the target has 64 positions"),
        (["w1", "--target", "no-such-directory"], "'no-such-directory' is not a directory"),
        (["w1", "--device", "cuda"], "device is 'cuda'; this machine cannot compute there"),
        (["w1", "--device", "meta"], "device is 'meta'; this machine cannot compute there"),
        (["w1", "--device", "toaster"], "device is 'toaster'"),
        (["w1", "--drafter-dir", "x"], "--drafter-dir is given and --drafter is model"),
        (["w1", "--profile", "x"], "--profile is given and --scheduler is none"),
        (["w1", "--scheduler", "prefix", "--profile", "x"], "'x' is not a file"),
        (["w1", "--drafter", "dspark", "--drafter-dir", "x"], "'x' has no config.json"),
        (
            ["w1", "--drafter", "eagle3", "--drafter-dir", str(default_drafter_dir("dspark"))],
            "needs a Qwen3Eagle3Model",
        ),
        (["w1", "--draft", str(default_drafter_dir("dspark"))], "a drafter; a causal LM is needed here"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    run: Callable[..., int], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("CUDA is usable here")
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("dspark: ")
    assert captured.err.count("\n") == 1


def test_a_file_that_is_not_utf8(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"w\xe9")
    assert run("--file", str(tmp_path / "latin1.txt")) == 2
    assert "latin1.txt' is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "cannot be loaded as a causal LM"),
        ("config.json", b"{", "cannot be loaded as a causal LM"),
        ("config.json", b'{"model_type": "vit"}', "cannot be loaded as a causal LM"),
        ("tokenizer.json", b"{", "the tokenizer in"),
        ("tokenizer.json", None, "has no tokenizer.json"),
    ],
)
def test_a_broken_checkpoint_is_one_line(
    run: Callable[..., int],
    pair: tuple[Path, Path],
    tmp_path: Path,
    file: str,
    content: bytes | None,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = shutil.copytree(pair[0], tmp_path / "broken") / file
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    assert run("w1", "--target", str(broken.parent)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("dspark: ")
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore")  # transformers lists what is missing
def test_a_checkpoint_without_some_of_its_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    weights = shutil.copytree(pair[0], tmp_path / "cut") / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if "q_proj" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape(f"lacks 1 tensors, {lost} among them")):
        load_pair(target_dir=weights.parent, draft_dir=None, device=torch.device("cpu"), dtype=torch.float32)


def test_ctrl_c_is_no_traceback(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dspark.cli.generate.load_pair", interrupt)
    assert run("w1") == 130
    assert capsys.readouterr().err == "dspark: interrupted\n"


@pytest.mark.parametrize("options", [["--no-such-option"], ["--stats", "--stream"], ["--logit-bias", "5"]])
def test_wrong_options_exit_with_2(options: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["generate", "w1", *options])
    assert raised.value.code == 2


@pytest.mark.parametrize("command", ["generate", "train", "calibrate", "profile"])
def test_help_tells_every_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for each in COMMANDS:
        each.add_parser(commands)
    options: list[argparse.Action] = commands.choices[command]._actions
    with pytest.raises(SystemExit):
        parser.parse_args([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "None" not in text
    assert "False" not in text
    for option in options:
        assert option.help, option.option_strings
        if not (option.default is None or option.default is False or option.default in ([], argparse.SUPPRESS)):
            told = commands.choices[command]._get_formatter()._expand_help(option)
            assert f"(default: {option.default})" in told, option.option_strings


def test_python_dash_m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["dspark", "generate", "--help"])
    with pytest.raises(SystemExit) as raised:
        runpy.run_module("dspark", run_name="__main__")
    assert raised.value.code == 0
    assert "--num-draft-tokens" in capsys.readouterr().out


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_pair(target_dir=tmp_path, draft_dir=None, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_what_was_asked_for(pair: tuple[Path, Path], dtype: torch.dtype) -> None:
    loaded = load_pair(target_dir=pair[0], draft_dir=pair[1], device=torch.device("cpu"), dtype=dtype)
    assert loaded.target.dtype == dtype
    assert loaded.draft is not None
    assert loaded.draft.dtype == dtype


def test_vocabularies_that_differ_are_announced(pair: tuple[Path, Path], tiny: Tiny, tmp_path: Path) -> None:
    tiny("qwen3", vocab_size=11).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="the target has 23 tokens and the draft 11"):
        load_pair(target_dir=pair[0], draft_dir=tmp_path, device=torch.device("cpu"), dtype=torch.float32)


def test_default_directories_are_the_fixtures() -> None:
    assert (default_target_dir().name, default_draft_dir().name) == ("target", "draft")
    assert default_target_dir().parent.name == "fixtures"
