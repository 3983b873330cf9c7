"""Writes docs/configuration.md from the attribute docstrings of tfrec.config: `make docs`."""

import types
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tfrec.config import Config

TARGET = Path(__file__).with_name("configuration.md")
INTRODUCTION = """# Configuration

One strict YAML file describes an experiment: an unknown key is an error that suggests the nearest known one.
`--set section.key=value` overrides a key on the command line, `${VAR}` is replaced from the environment, and the
resolved configuration, every default spelt out, is saved as `config.yaml` in each run.

Numbers, booleans, texts and lists are not taken for one another: `epochs: "3"` and `files: x.csv` are errors.

This page is generated from the docstrings of `tfrec/config.py` and `tfrec/features.py` by `make docs`.
"""


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    queue: list[tuple[str, type[BaseModel]]] = [("", Config)]
    documented: dict[type[BaseModel], str] = {}
    while queue:
        path, section = queue.pop(0)
        if section in documented:
            parts.append(f"## `{path}`\n\nThe same keys as `{documented[section]}`.\n")
            continue
        documented[section] = path
        children = [
            (name, child) for name, info in section.model_fields.items() for child in _sections(info.annotation)
        ]
        queue = [(f"{path}.{name}".lstrip("."), child) for name, child in children] + queue
        parts.append(_section(path, section))
    return "\n".join(parts)


def _section(path: str, section: type[BaseModel]) -> str:
    summary = " ".join((section.__doc__ or "").split("\n\n")[0].split())
    lines = [f"## `{path}`" if path else "## Sections", "", summary, ""]
    lines += ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, info in section.model_fields.items():
        cells = (f"`{name}`", _values(info), _default(info), " ".join((info.description or "").split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _values(info: FieldInfo) -> str:
    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in info.metadata
        for name, sign in bounds.items()
        if hasattr(limit, name)
    ]
    return ", ".join([_type(info.annotation), *limits])


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if argument is types.NoneType else _type(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(annotation, "any")


def _default(info: FieldInfo) -> str:
    if info.default is PydanticUndefined:
        return "required"
    if isinstance(info.default, BaseModel):
        return "see below"
    if info.default is None:
        return "none"
    value = list(info.default) if isinstance(info.default, tuple) else info.default
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for argument in typing.get_args(annotation) for section in _sections(argument)]


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET}")
