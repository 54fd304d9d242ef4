"""`dspark generate --prompts`: a line for every prompt, which the suite can read, and the same answers as one by one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from dspark.cli import main
from dspark.loading import default_target_dir
from dspark.serving import Engine
from verify.log.line import Line, Sampling

PROMPTS = ("def read_", "import os\n", "class Buffer:", "for name in ", "return")


def run(tmp_path: Path, *arguments: str, prompts: tuple[str, ...] = PROMPTS) -> int:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    fixed = ["--device", "cpu", "--max-new-tokens", "12", "--num-draft-tokens", "3"]
    return main(["generate", "--prompts", str(file), "--out", str(tmp_path / "log.jsonl"), *fixed, *arguments])


def lines(tmp_path: Path) -> list[Line]:
    return [Line.model_validate_json(each) for each in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_every_prompt_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(tmp_path, "--seed", "7", "--temperature", "0.9", "--logit-bias", "5:-inf", "--max-rows", "2", "--stats")
        == 0
    )
    found = lines(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(default_target_dir())
    assert {tuple(each.prompt_token_ids) for each in found} == {tuple(tokenizer.encode(each)) for each in PROMPTS}
    assert sorted(each.seed or 0 for each in found) == [7, 8, 9, 10, 11]
    for each in found:
        assert each.sampling == Sampling(temperature=0.9, logit_bias={5: -torch.inf})
        assert each.engine.startswith("dspark ")
        assert each.record is not None
        assert each.roles is not None
        assert len(each.roles) == len(each.token_ids)
        assert each.text == tokenizer.decode(each.token_ids, skip_special_tokens=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(sum(len(each.token_ids) for each in found)) in captured.err


def test_answers_are_those_of_one_prompt_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--seed", "3", "--drafter", "dspark") == 0
    by_seed = {each.seed: each.text for each in lines(tmp_path)}
    for index, prompt in enumerate(PROMPTS):
        alone = ["--device", "cpu", "--max-new-tokens", "12", "--num-draft-tokens", "3", "--drafter", "dspark"]
        assert main(["generate", prompt, *alone, "--seed", str(3 + index)]) == 0
        assert capsys.readouterr().out == f"{by_seed[3 + index]}\n"


def test_all_settings_are_in_the_line(tmp_path: Path) -> None:
    """A setting that is not there would be taken for its default, by whoever reads the log."""
    assert run(tmp_path, prompts=PROMPTS[:1]) == 0
    (line,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert set(line["sampling"]) == set(Sampling.model_fields)


def test_one_that_fails_is_told_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settle = Engine._settle

    def failing(self: Engine) -> None:
        for job in self.running:
            if job.ticket == 1:
                job.row.error = "the logits are NaN"
        settle(self)

    monkeypatch.setattr(Engine, "_settle", failing)
    assert run(tmp_path, "--temperature", "0") == 1
    assert "prompt 2: the logits are NaN" in capsys.readouterr().err
    assert len(lines(tmp_path)) == len(PROMPTS) - 1


@pytest.mark.parametrize(
    ("arguments", "prompts", "words"),
    [
        (("--stream",), PROMPTS, "are for one prompt"),
        (("--chat",), PROMPTS, "are for one prompt"),
        (("def",), PROMPTS, "replace PROMPT and --file"),
        ((), (), "has no prompt"),
        ((), ("a", "x = 1\n" * 500), "prompt 2: prompt ("),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], prompts: tuple[str, ...], words: str
) -> None:
    assert run(tmp_path, *arguments, prompts=prompts) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "log.jsonl").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").write_text("mine")
    assert run(tmp_path) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == "mine"
    assert main(["generate", "--out", str(tmp_path / "other.jsonl"), "def"]) == 2
    assert "belong together" in capsys.readouterr().err
