"""Options for Beam, checked: Beam itself passes over what it does not know."""

from collections.abc import Sequence
from typing import NoReturn

from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser

from tfrec.config import suggest
from tfrec.errors import UsageError

RUNNERS = ("FnApiRunner", "DirectRunner", "PrismRunner")
"""Runners of this machine: pipelines hand their results to each other on its disk."""


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"options for Beam: {message}.")


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options; the runner is FnApiRunner unless one is named (DirectRunner would look for Prism).

    Raises:
        UsageError: an option that Beam does not know, a value that it does not take, or a runner of other machines.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)  # the only way to what Beam knows
    found, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        name = unknown[0].partition("=")[0]
        raise UsageError(f"options for Beam: {unknown[0]!r} is unknown; {_hint(name, known)}")
    if found.runner is None:
        return PipelineOptions(["--runner=FnApiRunner", *arguments])
    _check_runner(found.runner)
    return PipelineOptions([*arguments])


def _hint(name: str, known: list[str]) -> str:
    hint = suggest(name, known)
    return hint if hint.startswith("did you mean") else "Beam lists its options under `PipelineOptions`."


def _check_runner(runner: str) -> None:
    name = runner.rpartition(".")[2].lower()
    short = {known.lower(): known for known in StandardOptions.KNOWN_RUNNER_NAMES + list(RUNNERS)}
    found = short.get(name) or short.get(f"{name}runner")
    if found is None:
        raise UsageError(f"`--runner={runner}`: no such runner; {suggest(runner, RUNNERS)}")
    if found not in RUNNERS:
        raise UsageError(
            f"`--runner={runner}`: runs on other machines or is not supported, and the stages meet on this machine's "
            f"disk; choose {' or '.join(RUNNERS)}, or leave it out."
        )
