"""Text that a user wrote, from files that may be missing or something else."""

from pathlib import Path


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: halves of surrogate pairs, from bytes that are no UTF-8 or from JSON, can not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; ValueError (value, rule, remedy) where it cannot be read as one."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error.strerror}); a file is needed. Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 ({error.reason}); text is. Convert it first.") from error
