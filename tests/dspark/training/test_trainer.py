"""The training loop: it learns, a kill loses nothing, and a wrong request is one clear error."""

import json
import math
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
from tests.dspark.conftest import VOCAB_SIZE

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


def network_of(target: PreTrainedModel, kind: Kind = "dspark", mask_token_id: int = 0) -> DrafterNetwork:
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 1, "block_size": 3, "target_layer_ids": (-1, 0), "mask_token_id": mask_token_id}
    rank = {"markov_rank": 8} if kind == "dspark" else {}
    return new_network(target, kind=kind, **shape, **rank)


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


def test_a_batch_in_parts_makes_the_same_update(target: PreTrainedModel, text: Text, tmp_path: Path) -> None:
    def losses(accumulate: int) -> dict[str, float]:
        return json.loads((tmp_path / str(accumulate) / "metrics.jsonl").read_text().splitlines()[0])

    networks = []
    for accumulate in (1, 3, 4):
        networks.append(network_of(target))
        trainer(target, networks[-1], text, tmp_path / str(accumulate), steps=3, accumulate=accumulate).run()
    for one, *others in zip(*(network.parameters() for network in networks), strict=True):
        for other in others:
            assert torch.allclose(one, other, rtol=0, atol=2e-5)
    assert losses(1)["loss"] == pytest.approx(losses(3)["loss"], rel=1e-5)
    uniform = network_of(target)
    uniform.lm_head.weight.data.zero_()  # and no bias: every law is uniform, so the mean of cross-entropies is log V
    trainer(target, uniform, text, tmp_path / "2", steps=1, accumulate=2).run()
    assert losses(2)["cross_entropy"] == pytest.approx(math.log(VOCAB_SIZE), rel=1e-5)
    with pytest.raises(ValueError, match="each part of a batch has a sequence"):
        TrainingSettings(**SETTINGS, accumulate=5)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    target: PreTrainedModel, text: Text, tmp_path: Path
) -> None:
    trainer(target, network_of(target), text, tmp_path).run(stop_after=8)
    newest = tmp_path / "checkpoints" / "step-00000008.pt"
    newest.rename(newest.with_suffix(".partial"))  # what a kill during the write leaves behind
    assert trainer(target, network_of(target), text, tmp_path).run() == 12


def test_a_run_continues_itself_only(target: PreTrainedModel, text: Text, tmp_path: Path, tiny: Tiny) -> None:
    def like(**changes: Any) -> PreTrainedModel:
        return tiny("qwen3", **{"dtype": torch.float32, "initializer_range": 0.5, **changes})

    trainer(like(), network_of(target), text, tmp_path / "same").run(stop_after=4)
    assert trainer(like(), network_of(target), text, tmp_path / "same").run() == 12
    trainer(target, network_of(target), text, tmp_path).run(stop_after=4)
    for other, message in (
        (trainer(target, network_of(target), text, tmp_path, learning_rate=1e-3), "a run of other settings; a run"),
        (trainer(target, network_of(target, mask_token_id=1), text, tmp_path), "other network;"),
        (trainer(target, network_of(target), text.select(range(23)), tmp_path), "other text;"),
        (trainer(like(seed=5), network_of(target), text, tmp_path), "other target;"),
        (trainer(like(rms_norm_eps=1e-3), network_of(target), text, tmp_path), "other target;"),
        (trainer(like(dtype=torch.float64), network_of(target), text, tmp_path), "other arithmetic, target;"),
    ):
        with pytest.raises(ValueError, match=message):
            other.run()
    with pytest.raises(ValueError, match="a batch takes different ones"):
        trainer(target, network_of(target), text, tmp_path, batch_size=25)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it while it traces
@pytest.mark.parametrize("kind", ["dspark", "eagle3"])
def test_compiled_layers_learn_the_same(target: PreTrainedModel, text: Text, tmp_path: Path, kind: Kind) -> None:
    plain, compiled = network_of(target, kind), network_of(target, kind)
    trainer(target, plain, text, tmp_path / "plain", steps=3).run()
    settings = TrainingSettings(**{**SETTINGS, "steps": 3})
    seen: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    Trainer(target, compiled, text, settings=settings, folder=tmp_path / "compiled", compile_backend=backend).run()
    assert seen, "nothing was compiled"
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_a_run_that_diverges_says_so(target: PreTrainedModel, text: Text, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the gradient of update \d+ is NaN or infinite"):
        trainer(target, network_of(target), text, tmp_path, learning_rate=1e30).run()


def test_warm_start_takes_layers_that_fit(tiny: Tiny) -> None:
    target = tiny("qwen3", dtype=torch.float32)
    network = network_of(target)
    assert torch.equal(
        network.state_dict()["layers.0.mlp.up_proj.weight"], target.state_dict()["model.layers.1.mlp.up_proj.weight"]
    )
    torch.manual_seed(0)
    shape = {"markov_rank": 4, "intermediate_size": 8, "target_layer_ids": (0,), "mask_token_id": 0}
    narrow = new_network(target, kind="dspark", **shape)
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
    arguments += ["--prompt-tokens", "16", "--max-new-tokens", "16", "--device", "cpu", "--accumulate", "2"]
    assert main(arguments) == 2
    assert "uses all 1024 ids of the target" in capsys.readouterr().err
    arguments += ["--mask-token-id", "0"]
    assert main([*arguments, "--batch-size", "99"]) == 2
    assert "a batch needs 99. Give more text, or lower --batch-size." in capsys.readouterr().err
    assert not (tmp_path / "drafter.training" / "text").exists(), "nothing was regenerated, so other text is welcome"
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": words.read_text() * 4}))
    assert main([*arguments[:2], str(long), *arguments[3:]]) == 2
    assert (
        f"line 1 of {str(long)!r} has 2640 tokens; with the response the target has room for 1008"
        in capsys.readouterr().err
    )
    assert main(arguments) == 0
    description = json.loads((tmp_path / "drafter.training" / "text" / "text.json").read_text())
    assert description["stop_token_ids"] == [0]
    assert "accepted length" in capsys.readouterr().out
    assert (tmp_path / "drafter" / "model.safetensors").is_file()
    without = [*arguments, "--out", str(tmp_path / "dflash"), "--markov-rank", "0", "--steps", "1"]
    assert main([*without, "--work", str(tmp_path / "other.training")]) == 0
    config = json.loads((tmp_path / "dflash" / "config.json").read_text())
    assert config["confidence_head_with_markov"] is False, "another reader refuses it without a Markov head"
    assert main([*arguments[:2], str(tmp_path / "none.txt"), *arguments[3:]]) == 2
    assert "cannot be read" in capsys.readouterr().err
