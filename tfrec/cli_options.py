"""Options and arguments that several commands take."""

from pathlib import Path
from typing import Annotated, Literal

import typer

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The experiment's YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key: training.epochs=3. Repeatable.")
]
SplitOption = Annotated[Literal["test", "validation"], typer.Option(help="Which queries.")]
RunSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a key of evaluation, export or index. Repeatable."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, made by `tfrec train`.")]
DatasetArgument = Annotated[Path, typer.Argument(metavar="DATASET", help="Made by `tfrec preprocess`.")]
PictureOption = Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw it into a file.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="The run's dataset, where it has moved.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
