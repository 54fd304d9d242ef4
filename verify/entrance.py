"""From the command line to what is judged: the decoder's factory, its name in reports, and where it comes from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verify.declared import WORKER
from verify.options import Options
from verify.registry import DecoderFactory, find_decoder, find_engine, find_kernel

# Where checks find, among what a run shares, what came through the narrower doors.
KERNEL = "rejection step"
LOG = "log of generations"
ENGINE_FACTORY = "engine factory"
ENGINE = "engine"  # open, from the end of the collection on


def enter(options: Options, working_dir: Path, *, shared: dict[str, Any]) -> tuple[DecoderFactory, str, str]:
    """Load what the options name; raises `pytest.UsageError` where it cannot be found or read."""
    if options.door == "verifier":
        kernel = find_kernel(options.decoder, working_dir=working_dir)
        from verify.adapters.kernel import embed  # here: it imports torch, which usage errors need not wait for

        shared[KERNEL] = kernel
        return embed(kernel), options.decoder, _origin(kernel)
    if options.door == "generations":
        from verify.adapters.log import LoggedDecoder
        from verify.log.reader import read_log

        log = shared[LOG] = read_log(working_dir / options.decoder)
        logged = LoggedDecoder(log, draft_model=options.draft is not None)
        return (lambda models: logged), log.engine, options.decoder
    if options.door == "engine":
        from verify.adapters.engine import EngineInPlace

        make, origin = _engine_factory(options, working_dir)
        shared[ENGINE_FACTORY] = make
        return (lambda models: EngineInPlace(shared[ENGINE])), options.decoder, origin
    factory = find_decoder(options.decoder, working_dir=working_dir)
    return factory, options.decoder, _origin(factory)


def _engine_factory(options: Options, working_dir: Path) -> tuple[Callable[..., Any], str]:
    """What opens the engine, and where that comes from."""
    if not options.decoder.startswith(WORKER):
        found = find_engine(options.decoder, working_dir=working_dir)
        return found, _origin(found)
    from verify.engines.worker import WorkerEngine

    file = working_dir / options.decoder.removeprefix(WORKER)
    if not file.is_file():
        raise pytest.UsageError(f"--decoder {options.decoder!r}: there is no such file; give worker:FILE.py")
    return (lambda settings: WorkerEngine(settings, file.resolve())), file.name


def _origin(found: object) -> str:
    return f"{getattr(found, '__module__', '?')}:{getattr(found, '__qualname__', found)}"
