"""Names that packages declare: entry points of what is installed, and of the checkout that the suite runs from."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
WORKER = "worker:"


def known_decoders(*, checkout: Path = CHECKOUT) -> dict[str, str]:
    """Names and their `module:attribute`: installed entry points, and those of `checkout` when it is not installed."""
    return _declared("verify.decoders", checkout)


def known_families(*, checkout: Path = CHECKOUT) -> dict[str, str]:
    """Names before a colon, as `known_decoders`: `NAME:MEMBER` is the factory that the function of that name makes of MEMBER."""
    return _declared("verify.decoder_families", checkout)


def known_engines(*, checkout: Path = CHECKOUT) -> dict[str, str]:
    """Engines that are asked through a campaign, as `known_decoders`."""
    return _declared("verify.engines", checkout)


def names_engine(name: str) -> bool:
    """Whether `--decoder name` is an engine: a known one, or `worker:FILE.py`."""
    return name.startswith(WORKER) or name in known_engines()


def _declared(group: str, checkout: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    project = checkout / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))
        known.update(table.get("project", {}).get("entry-points", {}).get(group, {}))
    known.update({entry.name: entry.value for entry in entry_points(group=group)})
    return known
