"""A transformers checkpoint as the model that OpenVINO GenAI opens, with its tokenizer; in the worker's environment only."""

from importlib import import_module
from pathlib import Path


def converted(checkpoint: Path, folder: Path) -> Path:
    """Convert once into `folder`, in float32; a checkpoint without a tokenizer.json cannot be used for speculation."""
    if (folder / "openvino_detokenizer.xml").is_file():
        return folder
    model = import_module("optimum.intel").OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, load_in_8bit=False, compile=False, dtype="float32"
    )
    model.save_pretrained(folder)
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(checkpoint)
    both = import_module("openvino_tokenizers").convert_tokenizer(tokenizer, with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), both, strict=True):
        import_module("openvino").save_model(part, folder / f"openvino_{name}.xml")
    return folder
