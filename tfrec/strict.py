"""What a strict YAML file is: no key twice, no unknown key, no value taken for one of another type, hints."""

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def suggest(word: str, known: Sequence[str]) -> str:
    """A hint for a misspelt word: the nearest known one, else the whole list."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}."


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice in one mapping is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{name}` stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The document in a YAML text, of plain values alone.

    Raises:
        yaml.YAMLError: it is not valid, or a key stands twice.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def type_problem(value: Any, annotation: Any) -> str | None:
    """What is wrong where a value is of another YAML type than the field; pydantic would turn one into the other."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    choices = typing.get_args(annotation)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        choices = (annotation,)
    lists = [choice for choice in choices if typing.get_origin(choice) is tuple]
    words = [word for choice in choices if typing.get_origin(choice) is Literal for word in typing.get_args(choice)]
    if isinstance(value, list | tuple):
        inner = typing.get_args(lists[0])[0] if lists else Any
        return next((f"in the list: {found}" for one in value if (found := type_problem(one, inner))), None)
    if lists and str not in choices and value not in words and value is not None:
        return "must be a list" + (f" or {words[0]}; {suggest(str(value), words)}" if words else f": [{value}]")
    if isinstance(value, bool):
        return None if bool in choices or not {int, float} & set(choices) else "must be a number, not true or false"
    if bool in choices and value not in words:
        return "must be true or false" + "".join(f" or {word}" for word in words)
    if int in choices and float not in choices and isinstance(value, str | float):
        return "must be a whole number"
    return None


class Section(BaseModel):
    """A part of the configuration: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML knows numbers, booleans, texts and lists: none is taken for another."""
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else Any
        if problem := type_problem(value, annotation):
            raise ValueError(problem)
        return value
