"""The parts of the llama.cpp engine that need no llama.cpp: names and weights, requests, counts, answers."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from verify.engines.llama_cpp.bindings import Bias, Drafts
from verify.engines.llama_cpp.conversion import gguf_name, interleaved, tensors, vocabulary
from verify.engines.llama_cpp.engine import open_engine
from verify.engines.llama_cpp.mapping import biases, generate_arguments, server_body
from verify.engines.llama_cpp.server import Server, generation
from verify.engines.worker import plain
from verify.models.law import next_token_laws
from verify.protocol import Request, SamplingParams

FIXTURES = Path(__file__).parents[3] / "fixtures"
DEFAULTS: dict[str, Any] = {"prompt_token_ids": (5, 6, 7), "max_new_tokens": 8, "stop_token_ids": (0,)}


def asked(**sampling: Any) -> dict[str, Any]:
    """A request as the worker gets it."""
    return plain(Request(**DEFAULTS, sampling=SamplingParams(**sampling)))


def test_every_weight_of_the_fixtures_has_a_name_of_its_own() -> None:
    names = [gguf_name(name) for name in load_file(FIXTURES / "target" / "model.safetensors")]
    assert len(set(names)) == len(names) == 2 + 6 * 11
    assert {"token_embd.weight", "output_norm.weight", "blk.5.attn_q_norm.weight", "blk.0.ffn_down.weight"} <= set(
        names
    )


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.0.up_proj.weight", "visual.patch_embed.weight"])
def test_a_weight_of_another_architecture_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="none of a Qwen3 or Llama model"):
        gguf_name(name)


def test_weights_are_read_exactly(tmp_path: Path) -> None:
    written = {
        "half": torch.randn(3, 4).to(torch.float16),
        "brain": torch.randn(5).to(torch.bfloat16),
        "full": torch.randn(2, 2, 2),
    }
    save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = dict(tensors(tmp_path))
    assert read.keys() == written.keys()
    for name, weight in written.items():
        np.testing.assert_array_equal(read[name], weight.float().numpy())


def test_interleaved_rows_turn_pairs_of_neighbours_as_halves_are_turned() -> None:
    heads, head_dim, hidden = 2, 6, 5
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((heads * head_dim, hidden)).astype(np.float32)
    state = generator.standard_normal(hidden).astype(np.float32)
    angle = generator.standard_normal(head_dim // 2).astype(np.float32)
    query = torch.from_numpy(weight @ state).view(1, heads, 1, head_dim)
    both = torch.from_numpy(np.concatenate([angle, angle])).view(1, 1, head_dim)
    turned, _ = apply_rotary_pos_emb(query, query, both.cos(), both.sin())
    pairs = (interleaved(weight, heads) @ state).reshape(heads, head_dim // 2, 2)
    neighbours = np.stack(
        [
            pairs[..., 0] * np.cos(angle) - pairs[..., 1] * np.sin(angle),
            pairs[..., 0] * np.sin(angle) + pairs[..., 1] * np.cos(angle),
        ],
        axis=1,
    )  # [heads, 2, head_dim / 2]: as halves again
    np.testing.assert_allclose(neighbours.reshape(-1), turned.flatten().numpy(), rtol=1e-5, atol=1e-6)


def test_the_vocabulary_keeps_ids_and_names_those_without_a_piece() -> None:
    tokenizer = {
        "model": {"vocab": {"a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"], "ab a"]},
        "added_tokens": [{"id": 0, "content": "<|endoftext|>"}],
    }
    pieces, types, merges = vocabulary(tokenizer, 5)
    assert pieces == ["<|endoftext|>", "a", "b", "ab", "<unused4>"]
    assert types == [3, 1, 1, 1, 3]
    assert merges == ["a b", "ab a"]


def test_the_server_is_told_the_order_of_the_suite_and_to_leave_out_its_own_samplers() -> None:
    body = server_body(asked(temperature=0.7, top_k=5, repetition_penalty=1.2), vocab_size=9)
    assert body["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert body["repeat_last_n"] > 100_000, "prompt and output, not the last 64"
    assert (body["temperature"], body["top_k"], body["repeat_penalty"], body["seed"]) == (0.7, 5, 1.2, -1)
    assert (body["presence_penalty"], body["frequency_penalty"], body["dry_multiplier"], body["mirostat"]) == (
        0,
        0,
        0,
        0,
    )
    seeded = server_body(asked() | {"seed": 2**40 + 3}, vocab_size=9)
    assert seeded["seed"] == 3


def test_tokens_that_may_not_come_are_biased_away() -> None:
    sampling = asked(logit_bias={1: 2.5, 4: -1.0}, forbidden_token_ids=(3,), allowed_token_ids=(0, 1, 3))["sampling"]
    assert biases(sampling, vocab_size=6) == {1: 2.5, 2: False, 3: False, 4: False, 5: False}
    scores = Bias(biases(sampling, vocab_size=6), vocab_size=6)(np.array([0], np.intc), np.ones(6, np.float32))
    assert scores.tolist() == [1.0, 3.5, *[-np.inf] * 4]


SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.6, "top_p": 0.7},
    {"temperature": 1.4, "min_p": 0.2, "presence_penalty": 0.8},
    {"temperature": 0.6, "top_k": 5, "frequency_penalty": 0.5},
    {"temperature": 1.0, "top_p": 0.6, "frequency_penalty": 0.5, "presence_penalty": 0.3},
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_arguments_give_the_law_of_the_suite_in_the_order_of_the_bindings(settings: dict[str, Any]) -> None:
    request = Request(**DEFAULTS, sampling=SamplingParams(**settings))
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    output = [2, 2, 7]
    expected = next_token_laws(logits.expand(len(output) + 1, -1), request, output)[-1]
    arguments = generate_arguments(plain(request)["sampling"])
    divided = logits / (settings["temperature"] if arguments["temp"] != settings["temperature"] else 1.0)
    torch.testing.assert_close(law_of_the_bindings(divided, output, arguments), expected, rtol=1e-6, atol=1e-9)


def test_a_temperature_after_the_filters_would_be_another_law() -> None:
    request = Request(**DEFAULTS, sampling=SamplingParams(temperature=0.6, top_p=0.7))
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    expected = next_token_laws(logits[None], request, [])[-1]
    naive = generate_arguments(plain(request)["sampling"]) | {"temp": 0.6}
    assert (law_of_the_bindings(logits, [], naive) - expected).abs().max() > 0.01


def law_of_the_bindings(logits: torch.Tensor, output: Sequence[int], arguments: dict[str, float]) -> torch.Tensor:
    """The chain that `Llama._init_sampler` builds: penalties, top-k, top-p, min-p, temperature."""
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=len(logits))
    logits = logits - counts * arguments["frequency_penalty"] - (counts > 0) * arguments["presence_penalty"]
    order = logits.argsort(descending=True)
    kept = order[: int(arguments["top_k"]) or len(order)]
    probs = logits[kept].softmax(-1)
    kept = kept[probs.cumsum(-1) - probs < arguments["top_p"]]
    probs = logits[kept].softmax(-1)
    kept = kept[probs >= arguments["min_p"] * probs[0]]
    law = torch.zeros_like(logits)
    law[kept] = (logits[kept] / arguments["temp"]).softmax(-1)
    return law


class Lookup:
    """Drafts what it is given."""

    num_pred_tokens = 0

    def __init__(self, *drafts: Sequence[int]) -> None:
        self._drafts = [list(each) for each in drafts]

    def __call__(self, input_ids: np.ndarray[Any, Any], /, **_: Any) -> np.ndarray[Any, Any]:
        return np.array(self._drafts.pop(0)[: self.num_pred_tokens], np.intc)


def test_counts_follow_from_drafts_and_output() -> None:
    drafts = Drafts(Lookup([3, 4, 9, 9], [], [7, 8]))
    drafts.start(num_draft_tokens=3)
    for length in (3, 6, 7):
        drafts(np.arange(length, dtype=np.intc))
    assert drafts.record([0, 1, 2, 3, 4, 5, 6, 7]) == {
        "num_spec_steps": 4,
        "num_draft_tokens": 5,
        "num_accepted_draft_tokens": 3,
        "acceptance_histogram": [2, 1, 1],
        "drafted_per_step": [0, 3, 0, 2],
        "accepted_per_step": [0, 2, 0, 1],
    }


def test_no_drafts_are_asked_for_where_the_request_wants_none() -> None:
    drafts = Drafts(Lookup())
    drafts.start(num_draft_tokens=0)
    assert drafts(np.array([1], np.intc)).size == 0


def test_an_answer_of_the_server_is_read() -> None:
    said = {"tokens": [4, 5, 0], "stop_type": "eos", "timings": {"draft_n": 6, "draft_n_accepted": 2}}
    answer = generation(said, speculative=True)
    assert (answer["token_ids"], answer["finish_reason"]) == ([4, 5, 0], "stop")
    assert (answer["record"]["num_draft_tokens"], answer["record"]["num_accepted_draft_tokens"]) == (6, 2)
    assert "record" not in generation(said | {"stop_type": "limit"}, speculative=False)
    assert generation(said | {"stop_type": "limit"}, speculative=False)["finish_reason"] == "length"


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--nonsense" in sys.argv:
    sys.exit("error: invalid argument: --nonsense\\n\\nto show complete usage, run with -h")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
print(" ".join(sys.argv[1:]), flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def a_server(tmp_path: Path, *, spec_type: str, flags: Sequence[str] = ()) -> Server:
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{SERVER}")
    program.chmod(0o700)
    return Server(
        program=program,
        target=tmp_path / "target.gguf",
        draft=tmp_path / "draft.gguf",
        version="0",
        spec_type=spec_type,
        ngram=2,
        context=64,
        threads=1,
        vocab_size=9,
        flags=flags,
        folder=tmp_path,
    )


@pytest.mark.parametrize(
    ("spec_type", "words"),
    [
        ("draft-simple", "--spec-draft-n-max 3"),
        ("ngram-simple", "--spec-ngram-simple-size-n 2 --spec-ngram-simple-size-m 3"),
        ("ngram-mod", "--spec-ngram-mod-n-match 2 --spec-ngram-mod-n-min 1 --spec-ngram-mod-n-max 3"),
    ],
)
def test_each_speculation_has_its_flags(spec_type: str, words: str, tmp_path: Path) -> None:
    server = a_server(tmp_path, spec_type=spec_type)
    server.close()
    started = (tmp_path / "server-3.log").read_text()
    assert f"--spec-type {spec_type} " in started
    assert words in started
    assert ("--spec-draft-model" in started) == server.capabilities["draft_model"] == (spec_type == "draft-simple")


def test_flags_that_the_server_refuses_are_an_error_before_any_request(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"flags='--nonsense': .* \(error: invalid argument: --nonsense\); give flags that"
    ):
        a_server(tmp_path, spec_type="ngram-simple", flags=["--nonsense"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metod": "server"}, "no option of llama_cpp"),
        ({"method": "eagle"}, "must be one of draft_model"),
        ({"method": "server", "spec_type": "ngram"}, "must be one of draft-simple, ngram-simple"),
        ({"threads": "-1"}, "threads='-1' must be a whole number"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_engine(target="t", draft=None, options=options, device="cpu", dtype="float32", folder=str(tmp_path))
