import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from verify.greedy.noise import measure_noise_floor
from verify.greedy.teacher import judge_greedy
from verify.models.compat import forward_logits, new_cache

# Long enough that kernels sum in another order for other shapes.
TEXTS = [list(range(30)) + list(range(10)), [5, 3] * 20]


def tiny_llama(dtype, **settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 3  # sharp enough that rounding is visible in the logits
    return model.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(torch.float64, 0, 1e-12), (torch.float32, 1e-9, 1e-4), (torch.bfloat16, 1e-3, 1.0)]
)
def test_the_floor_is_that_of_the_arithmetic(dtype, low, high):
    floor = measure_noise_floor(tiny_llama(dtype), TEXTS)
    assert low <= floor.max_logit_difference <= high
    assert floor.max_logit_gap_change <= 2 * floor.max_logit_difference
    assert 0 <= floor.max_total_variation <= math.expm1(floor.max_logprob_difference) / 2
    assert floor.num_positions == 80
    assert floor.forms[-1] == "left padding of 3"
    assert len(floor.forms) == 6
    assert floor.logprob_tolerance(temperature=0.5) == 4 * floor.max_logprob_difference


def test_a_target_whose_cache_is_wrong_has_no_small_floor():
    model = tiny_llama(torch.float64)
    sound = measure_noise_floor(model, TEXTS)

    class Forgetful(torch.nn.Module):
        """A target that sees no more than the newest chunk when it has a cache."""

        device, config = model.device, model.config

        def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, past_key_values=None, **_):
            return model(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)

    broken = measure_noise_floor(Forgetful(), TEXTS)
    assert broken.max_logit_difference > 1e6 * sound.max_logit_difference


def test_a_correct_low_precision_decoder_is_within_the_floor_and_a_wrong_row_is_not():
    model = tiny_llama(torch.bfloat16)
    floor = measure_noise_floor(model, TEXTS).max_logit_difference
    cache = new_cache(model)
    output = [5]
    for _ in range(24):  # token by token with a cache
        row = forward_logits(model, torch.tensor([output[-1:]]), cache=cache)[0, -1]
        output.append(int(row.argmax()))
    rows = forward_logits(model, torch.tensor([output[:-1]]))[0].double().numpy()  # judged in one uncached forward
    assert judge_greedy(output[1:], rows, floor=floor).divergences == ()
    assert judge_greedy(output[1:], rows[[0, *range(23)]], floor=floor).divergences


def test_no_positions_is_refused():
    with pytest.raises(ValueError, match="no sequences"):
        measure_noise_floor(tiny_llama(torch.float64), [[]])
