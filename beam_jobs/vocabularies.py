"""Vocabularies that the configuration gives."""

from pathlib import Path

from tfrec.config import FeatureConfig
from tfrec.errors import UsageError


def given_values(feature: FeatureConfig) -> list[str]:
    """The values of `vocabulary`, a list or a file of one value a line, in their order.

    Raises:
        UsageError: no such file, not UTF-8, nothing in it, a value twice, or more values than `max_size`.
    """
    given = feature.vocabulary
    assert given is not None, "Called where a vocabulary is given."
    values, where = (_read(given, feature.name), given) if isinstance(given, str) else (list(given), "`vocabulary`")
    seen: set[str] = set()
    for place, value in enumerate(values, start=1):
        if not value or value in seen:
            what = f"{value!r} stands twice" if value else "is empty"
            raise UsageError(f"feature {feature.name}: {where}, value {place} {what}; give each value once.")
        seen.add(value)
    if not 1 <= len(values) <= feature.max_size:
        raise UsageError(
            f"feature {feature.name}: {where} must hold 1 to {feature.max_size:,} values (`max_size`), "
            f"holds {len(values):,}."
        )
    return values


def _read(path: str, name: str) -> list[str]:
    mend = f"the `vocabulary` of feature {name} is a UTF-8 text file of one value a line, or a list."
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {mend}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8; {mend}") from None
    return text.removesuffix("\n").split("\n") if text else []
