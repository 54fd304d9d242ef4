"""The training loop: it learns, a kill loses nothing, and a wrong request is one clear error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from dspark.causal_model import CausalModel
from dspark.checkpoints import DrafterNetwork
from dspark.cli import main
from dspark.drafters.factory import Kind, new_network
from dspark.loading import default_target_dir
from dspark.networks.warm_start import warm_start
from dspark.training.corpus import Text, regenerate
from dspark.training.documents import Prompt
from dspark.training.evaluation import estimate_acceptance
from dspark.training.settings import TrainingSettings
from dspark.training.trainer import Trainer

Tiny = Callable[..., PreTrainedModel]
SETTINGS: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "num_anchors": 6,
    "learning_rate": 1e-2,
    "checkpoint_every": 4,
}


@pytest.fixture(scope="module")
def target(tiny: Tiny) -> PreTrainedModel:
    return tiny("qwen3", dtype=torch.float32, initializer_range=0.5)


@pytest.fixture(scope="module")
def text(target: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Text:
    prompts = [Prompt(token_ids=(1 + index % 20, 2), domain="x") for index in range(24)]
    folder = tmp_path_factory.mktemp("text")
    return regenerate(CausalModel.of(target), prompts, folder, max_new_tokens=20, batch_size=8)


def network_of(target: PreTrainedModel, kind: Kind = "dspark") -> DrafterNetwork:
    torch.manual_seed(0)
    rank = {"markov_rank": 8} if kind == "dspark" else {}
    return new_network(target, kind=kind, num_hidden_layers=1, block_size=3, target_layer_ids=(-1, 0), **rank)


def trainer(target: PreTrainedModel, network: DrafterNetwork, text: Text, folder: Path, **changes: Any) -> Trainer:
    return Trainer(target, network, text, settings=TrainingSettings(**{**SETTINGS, **changes}), folder=folder)


@pytest.mark.parametrize("kind", ["dspark", "dflash", "eagle3"])
def test_it_learns(target: PreTrainedModel, text: Text, tmp_path: Path, kind: Kind) -> None:
    network = network_of(target, kind)
    reading = CausalModel.of(target)
    before = estimate_acceptance(reading, network, text).length
    frozen = network.embed_tokens.weight.clone()
    assert trainer(target, network, text, tmp_path, steps=60).run() == 60
    assert estimate_acceptance(reading, network, text).length > before + 0.15
    assert torch.equal(network.embed_tokens.weight, frozen)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert (tmp_path / "metrics.png").stat().st_size > 1000


@pytest.mark.parametrize("stop_after", [4, 6])
def test_a_run_that_was_stopped_ends_bit_for_bit_as_if_it_had_not_been(
    target: PreTrainedModel, text: Text, tmp_path: Path, stop_after: int
) -> None:
    whole = network_of(target)
    trainer(target, whole, text, tmp_path / "whole").run()
    trainer(target, network_of(target), text, tmp_path / "parts").run(stop_after=stop_after)
    resumed = network_of(target)
    trainer(target, resumed, text, tmp_path / "parts").run()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    losses = [
        [line.split(', "learning_rate"')[0] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    target: PreTrainedModel, text: Text, tmp_path: Path
) -> None:
    trainer(target, network_of(target), text, tmp_path).run(stop_after=8)
    newest = tmp_path / "checkpoints" / "step-00000008.pt"
    newest.rename(newest.with_suffix(".partial"))  # what a kill during the write leaves behind
    assert trainer(target, network_of(target), text, tmp_path).run() == 12


def test_a_run_continues_itself_only(target: PreTrainedModel, text: Text, tmp_path: Path) -> None:
    trainer(target, network_of(target), text, tmp_path).run(stop_after=4)
    with pytest.raises(ValueError, match="a run continues itself only"):
        trainer(target, network_of(target), text, tmp_path, learning_rate=1e-3).run()
    with pytest.raises(ValueError, match="a batch takes different ones"):
        trainer(target, network_of(target), text, tmp_path, batch_size=25)


def test_warm_start_takes_layers_that_fit(tiny: Tiny) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    network = network_of(target)
    assert torch.equal(
        network.state_dict()["layers.0.mlp.up_proj.weight"], target.state_dict()["model.layers.1.mlp.up_proj.weight"]
    )
    torch.manual_seed(0)
    narrow = new_network(target, kind="dspark", markov_rank=4, intermediate_size=8, target_layer_ids=(0,))
    assert warm_start(narrow, target) == 0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.txt"
    words.write_text("def f(x):\n    return x + 1\n" * 60)
    arguments = [
        "train",
        "--text",
        str(words),
        "--out",
        str(tmp_path / "drafter"),
        "--target",
        str(default_target_dir()),
    ]
    arguments += ["--layers", "1", "--markov-rank", "8", "--steps", "2", "--batch-size", "2", "--num-anchors", "4"]
    arguments += ["--prompt-tokens", "16", "--max-new-tokens", "16", "--device", "cpu"]
    assert main(arguments) == 0
    assert "accepted length" in capsys.readouterr().out
    assert (tmp_path / "drafter" / "model.safetensors").is_file()
    assert main([*arguments[:2], str(tmp_path / "none.txt"), *arguments[3:]]) == 2
    assert "is not a file" in capsys.readouterr().err
