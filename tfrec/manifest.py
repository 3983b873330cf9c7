"""What a directory holds: every file with its size, record count and SHA-256, so that nothing is taken on trust."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tfrec.errors import UserError

MANIFEST = "manifest.json"
_TEMPORARY_PREFIX, _OLD = ".tmp-", "-old"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(directory: Path) -> list[str]:
    """The files below a directory as sorted POSIX paths relative to it, the manifest itself left out."""
    names = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document whose bytes depend on its content alone (keys sorted, one trailing newline)."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_manifest(directory: Path, content: Mapping[str, Any], records: Mapping[str, int] | None = None) -> None:
    """Writes `manifest.json`: `content` plus `files`, each with `bytes`, `sha256` and, where known, `records`.

    Args:
        directory: the directory whose files are listed; everything else in it must be complete.
        content: what else the manifest says (account of rows, parity figures, ...).
        records: number of records by relative path, for the files that hold records.
    """
    records = records or {}
    files = {}
    for name in list_files(directory):
        path = directory / name
        entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        if name in records:
            entry["records"] = records[name]
        files[name] = entry
    write_json(directory / MANIFEST, {**content, "files": files})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads `manifest.json`; a missing or unreadable one is a `UserError`."""
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no {MANIFEST} there, so it is not a finished directory.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); make the directory again.") from None
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise UserError(f"{path}: has no `files` table; make the directory again.")
    return document


def verify(directory: Path, *, whole: bool = False) -> dict[str, Any]:
    """Checks a directory against its manifest and returns the manifest.

    Args:
        directory: where the manifest lies.
        whole: also compare every SHA-256; otherwise sizes and presence alone (fast).

    Raises:
        UserError: a file is missing, has another size or another hash.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path}: named in {MANIFEST} but missing; make the directory again.")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise UserError(f"{path}: {size} bytes, {MANIFEST} says {entry['bytes']}; it was changed or cut short.")
        if whole and sha256_of(path) != entry["sha256"]:
            raise UserError(f"{path}: its SHA-256 differs from {MANIFEST}; it was changed.")
    return manifest


def fingerprint(directory: Path) -> str:
    """The SHA-256 of a directory's manifest: what identifies a dataset."""
    return sha256_of(directory / MANIFEST)


@contextmanager
def published(target: Path, *, check: Callable[[Path], None] | None = None, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary sibling of `target`; on success it becomes `target` by one rename.

    Everything is flushed to disk first. If the body or `check` raises, nothing appears under the final name and the
    temporary directory is removed. What a killed run left behind is removed by the next one for the same target.

    Args:
        target: what is to appear.
        check: raises where the finished directory is not right.
        replace: whether an existing target is replaced; if not, it is a `UserError`.

    Raises:
        UserError: another process is writing the same target.
    """
    with published_together([target], check=check, replace=replace) as (temporary,):
        yield temporary


@contextmanager
def published_together(
    targets: Sequence[Path], *, check: Callable[[Path], None] | None = None, replace: bool = True
) -> Iterator[list[Path]]:
    """Yields a temporary sibling of each target; on success they get their names, in the order of `targets`.

    As `published`, with all of them checked and flushed to disk before the first is renamed. There is no rename of
    several directories at once: who is killed between two renames leaves the first targets without the others.
    """
    targets = [Path(os.path.abspath(target)) for target in targets]
    with ExitStack() as stack:
        temporaries = [stack.enter_context(_temporary(target)) for target in targets]
        if not replace:
            _refuse_existing(targets)  # before the work
        yield temporaries
        if check is not None:
            for temporary in temporaries:
                check(temporary)
        for temporary in temporaries:
            sync_tree(temporary)
        if not replace:
            _refuse_existing(targets)
        for temporary, target in zip(temporaries, targets, strict=True):
            if replace:
                replace_directory(temporary, target)
            else:
                _name_directory(temporary, target)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """An empty sibling of a target, which is locked; what is left of it is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        remove_leftovers(target)
        temporary = target.parent / f"{_TEMPORARY_PREFIX}{target.name}-{os.getpid()}"
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(targets: Sequence[Path]) -> None:
    for target in targets:
        if target.exists():
            raise UserError(f"{target}: is already there and is not replaced; run this again for another name.")


def remove_leftovers(target: Path) -> None:
    """Removes the temporary siblings that killed runs for the same target left behind, while its lock is held.

    A run that was killed between the two renames of a replacement gets the old target back.
    """
    ours = re.compile(rf"{re.escape(_TEMPORARY_PREFIX + target.name)}-\d+(-old|-staging)?")
    for leftover in sorted(target.parent.iterdir()):
        if not ours.fullmatch(leftover.name):
            continue
        if leftover.name.endswith(_OLD) and not target.exists():
            leftover.rename(target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def staging_of(temporary: Path) -> Path:
    """Where the writer of a temporary directory may keep what is not published; a killed one's is removed alike."""
    return temporary.with_name(f"{temporary.name}-staging")


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Holds the lock of a target, a file beside it: the system gives it back when its holder ends, however that is."""
    path = target.parent / f"{_TEMPORARY_PREFIX}{target.name}.lock"
    descriptor = -1
    while descriptor < 0:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{target}: is being written now by another process; wait for it or stop it.") from None
        if not _is_same_file(descriptor, path):  # its last holder removed it in between
            os.close(descriptor)
            descriptor = -1
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def sync_tree(directory: Path) -> None:
    """Flushes every file and directory below `directory` to disk."""
    for path in [*directory.rglob("*"), directory]:
        _sync(path)


def replace_directory(source: Path, target: Path) -> None:
    """Renames `source` to `target`; an existing target is moved aside first and then removed."""
    if target.exists():
        aside = target.parent / f"{_TEMPORARY_PREFIX}{target.name}-{os.getpid()}{_OLD}"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        source.rename(target)
        shutil.rmtree(aside)
    else:
        source.rename(target)
    _sync(target.parent)


def _name_directory(source: Path, target: Path) -> None:
    """Renames `source` to `target`, which the system refuses where a directory with content has that name."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        _refuse_existing([target])
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
