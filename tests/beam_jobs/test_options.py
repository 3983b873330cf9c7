import tempfile

import pytest

from beam_jobs.engine import Engine
from beam_jobs.options import pipeline_options
from tfrec.errors import UsageError, UserError


def test_the_runner_is_fn_api_unless_one_is_named():
    assert pipeline_options([]).get_all_options()["runner"] == "FnApiRunner"
    for arguments in (["--runner=PrismRunner"], ["--runner", "PrismRunner"]):
        assert pipeline_options(arguments).get_all_options()["runner"] == "PrismRunner"
    assert pipeline_options(["--runner=direct"]).get_all_options()["runner"] == "direct"


def test_options_reach_beam():
    options = pipeline_options(["--direct_running_mode=multi_processing", "--direct_num_workers", "2"])
    found = options.get_all_options()
    assert (found["runner"], found["direct_running_mode"], found["direct_num_workers"]) == (
        "FnApiRunner",
        "multi_processing",
        2,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runer=DirectRunner"], r"'--runer=DirectRunner' is unknown; did you mean `--runner`\?"),
        (["--direct_num_wrokers=2"], r"is unknown; did you mean `--direct_num_workers`\?"),
        (["--direct_num_workers=2", "stray"], "'stray' is unknown; Beam lists"),
        (["--direct_num_workers=two"], "options for Beam: argument --direct_num_workers: invalid int value: 'two'"),
        (["--direct_running_mode=fast"], "options for Beam: argument --direct_running_mode: invalid choice: 'fast'"),
        (["--runner=Foo"], "`--runner=Foo`: no such runner; known: DirectRunner, FnApiRunner, PrismRunner"),
        (["--runner=dask"], "`--runner=dask`: loses rows; choose FnApiRunner or"),
        (["--runner=FnAppiRunner"], r"no such runner; did you mean `FnApiRunner`\?"),
        *(
            (
                [f"--runner={name}"],
                f"`--runner={name}`: its workers may be other machines.*`--shared-disk`, else choose Fn",
            )
            for name in ("DataflowRunner", "FlinkRunner", "SparkRunner", "PortableRunner", "dataflow")
        ),
    ],
)
def test_what_beam_would_pass_over_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        pipeline_options(arguments)


@pytest.mark.parametrize("name", ["PortableRunner", "FlinkRunner", "DataflowRunner"])
def test_other_machines_need_a_shared_disk(name):
    assert pipeline_options([f"--runner={name}"], shared_disk=True).get_all_options()["runner"] == name


def test_a_temporary_folder_that_holds_no_socket_is_one_line(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with (
        pytest.raises(UserError, match=r"no socket can be made there \(AF_UNIX path too long\); set `TMPDIR`"),
        Engine(pipeline_options(["--direct_running_mode=multi_processing"])),
    ):
        pass
