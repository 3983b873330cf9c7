"""Going back to an earlier version: by renaming, which servers notice at their next look."""

import re
from pathlib import Path

from serving.versions import find_versions
from tfrec import manifest
from tfrec.errors import UserError

WITHDRAWN = ".withdrawn"
_WITHDRAWN_NAME = re.compile(rf"([0-9]{{1,19}}){re.escape(WITHDRAWN)}")


def rollback(model: Path, to: int | None = None) -> Path:
    """Makes a version the highest of its model: later ones are renamed to `<version>.withdrawn`.

    The version that is to answer is checked against its manifest first. Of the later ones the highest goes last, so
    that a server that looks in between goes on with it and loads none of those between.

    Args:
        model: MODELS/NAME.
        to: the version; a withdrawn one gets its name back. Defaults to the one before the highest.

    Returns:
        The directory of the version.

    Raises:
        UserError: there is no such version, or it is not as its manifest says.
    """
    if not model.is_dir():
        raise UserError(f"{model}: no such directory; give MODELS/NAME.")
    found = find_versions(model)
    if to is None:
        to = _before_highest(model, found)
    target = found.get(to)
    if target is None:
        target = model / f"{to}{WITHDRAWN}"
        if not target.is_dir():
            raise UserError(
                f"{model}: has no version {to}; there are {_listed(found)} and withdrawn {_withdrawn(model)}."
            )
    if (target / manifest.MANIFEST).exists():
        manifest.verify(target, whole=True)
    later = [(found[version], _withdrawn_path(found[version])) for version in sorted(found) if version > to]
    if to not in found:
        target = target.rename(model / str(to))
    for path, withdrawn in later:
        path.rename(withdrawn)
    return target


def _before_highest(model: Path, found: dict[int, Path]) -> int:
    if len(found) < 2:
        raise UserError(f"{model}: has no version before the one that answers; there are {_listed(found)}.")
    return sorted(found)[-2]


def _withdrawn_path(path: Path) -> Path:
    target = path.with_name(f"{path.name}{WITHDRAWN}")
    if target.exists():
        raise UserError(f"{target}: is there already; remove or rename it, then run this again.")
    return target


def _listed(found: dict[int, Path]) -> str:
    return ", ".join(map(str, sorted(found))) or "none"


def _withdrawn(model: Path) -> str:
    names = (_WITHDRAWN_NAME.fullmatch(path.name) for path in model.iterdir())
    return ", ".join(sorted(match[1] for match in names if match)) or "none"
