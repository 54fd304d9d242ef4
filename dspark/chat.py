"""What a checkpoint says about conversations: their form, and the tokens that end a turn."""

from typing import Any

from transformers import PreTrainedModel


def chat_text(messages: Any, tokenizer: Any) -> str:
    """A conversation in the form of the tokenizer's chat template, up to where the model answers.

    The template writes special tokens itself: encode the text without. Raises ValueError (value, rule, remedy) where there is no
    template, or it does not take these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the target's tokenizer has no chat template; a chat needs one. Give plain text.")
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise whatever they like
        raise ValueError(
            f"the chat template does not take these messages ({error}); it wants a list of objects with role and content. "
            "Correct them."
        ) from error
    return text


def stop_token_ids(target: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a text: those of `generation_config.json`; where it names none, the tokenizer's own."""
    generation = target.generation_config
    found = generation.eos_token_id if generation is not None else None
    if found is None:
        found = tokenizer.eos_token_id
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)
