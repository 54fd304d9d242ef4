"""The README's example of serving works as printed, on the fixtures in place of a published checkpoint."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STANDS_FOR = {
    '"DSPARK_QWEN3_4B"': repr(str(ROOT / "fixtures" / "dspark")),
    '"QWEN3_4B"': repr(str(ROOT / "fixtures" / "target")),
    '"profile.json"': repr(str(ROOT / "reports" / "method" / "round-profile.json")),
    '"cuda"': '"cpu"',
    "bfloat16": "float32",
    "max_new_tokens=256": "max_new_tokens=20",
}


def test_the_example_of_serving() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "engine.step()" in block]
    for printed, here in STANDS_FOR.items():
        assert printed in example
        example = example.replace(printed, here)
    names: dict[str, Any] = {"prompts": [(1, 2, 3), (4, 5)]}
    exec(example, names)
    answers = [names["engine"].finished[ticket] for ticket in names["tickets"]]
    assert [len(each.token_ids) for each in answers] == [20, 20]
    assert names["engine"].counters.num_rounds < 40
