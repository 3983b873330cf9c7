"""What holds for the repository as a whole: versions, exports, file lengths, and what code must never do."""

import ast
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tfrec", "beam_jobs", "serving")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALL_PYTHON = SOURCES + sorted(
    path for folder in ("tests", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")
)
PROVIDERS = {  # the distribution behind a module whose name differs from it
    "PIL": "pillow",
    "apache_beam": "apache-beam",
    "google_crc32c": "google-crc32c",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "keras_hub": "keras-hub",
    "ml_dtypes": "ml-dtypes",
    "official": "tf-models-official",
    "sklearn": "scikit-learn",
    "tensorflow_recommenders": "tensorflow-recommenders",
    "tensorflow_serving": "tensorflow-serving-api",
    "tf_keras": "tf-keras",
    "yaml": "pyyaml",
}
DESERIALISERS = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
BUNDLED = {"google"}  # google.protobuf comes with TensorFlow


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), filename=str(path))


def version() -> str:
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "tfrec/__init__.py").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def test_changelog_opens_with_the_version_of_the_package() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == version()


def test_setup_reads_the_version_without_importing_the_package() -> None:
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == version()


@pytest.mark.parametrize("path", ALL_PYTHON, ids=relative)
def test_file_has_at_most_500_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_exported_members_are_complete_and_defined(path: Path) -> None:
    body = tree_of(path).body
    exported = next((ast.literal_eval(node.value) for node in body if "__all__" in bound_names(node)), None)
    if exported is None:
        return
    defined = {name for node in body for name in bound_names(node)}
    assert len(set(exported)) == len(exported)
    assert "__getattr__" in defined or set(exported) <= defined
    if path.name == "__init__.py":
        own = f"{relative(path.parent).replace('/', '.')}."
        gathered = [node for node in body if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(own)]
        assert {name for node in gathered for name in bound_names(node)} <= set(exported)


def bound_names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {(alias.asname or alias.name).split(".")[0] for alias in names}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=targets):
            return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()


@pytest.mark.parametrize("path", ALL_PYTHON, ids=relative)
def test_nothing_is_unpickled_or_executed(path: Path) -> None:
    offences = [f"line {node.lineno}: {what}" for node in ast.walk(tree_of(path)) if (what := offence(node))]
    assert offences == []


def offence(node: ast.AST) -> str | None:
    """What a node does that could run code out of a file."""
    match node:
        case ast.Import(names=names):
            return next((alias.name for alias in names if alias.name.split(".")[0] in DESERIALISERS), None)
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] in DESERIALISERS:
            return module
        case ast.Call(func=ast.Name(id="eval" | "exec" | "compile" | "__import__" as name)):
            return name
        case ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "unsafe_load" | "full_load"):
            return "yaml without safe_load"
        case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
            return "torch.load"
        case ast.Attribute(attr="enable_unsafe_deserialization"):
            return "enable_unsafe_deserialization"
        case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
            return "allow_pickle=True"
        case ast.keyword(arg="safe_mode", value=ast.Constant(value=False)):
            return "safe_mode=False"
    return None


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "yaml.load(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "load_model(path, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
    ],
)
def test_offences_are_seen(code: str) -> None:
    found = [what for node in ast.walk(ast.parse(code)) if (what := offence(node))]
    assert len(found) == 1


def test_every_third_party_import_is_declared() -> None:
    declared = {re.split(r"[<>=\[]", name)[0].lower() for name in requirements_of_setup()}
    used: dict[str, str] = {}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            for module in imported_modules(node):
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top not in PACKAGES and top not in BUNDLED:
                    used[PROVIDERS.get(top, top)] = relative(path)
    assert {name: path for name, path in used.items() if name not in declared} == {}


def imported_modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module]
    return []


def requirements_of_setup(*, without: tuple[str, ...] = ()) -> list[str]:
    values = {
        name: node.value for node in tree_of(ROOT / "setup.py").body for name in bound_names(node) if name.isupper()
    }
    extras: dict[str, list[str]] = ast.literal_eval(values["EXTRAS"])
    chosen = [requirements for name, requirements in extras.items() if name not in without]
    return [*ast.literal_eval(values["BASE"]), *itertools.chain(*chosen)]


def test_locked_requirements_name_no_index() -> None:
    for name in ("requirements.txt", "requirements-jax.txt", "requirements-demo.txt"):
        text = (ROOT / name).read_text("utf-8")
        assert "://" not in text
        assert "--index-url" not in text.replace("--no-emit-index-url", "")


@pytest.mark.parametrize("source", ["requirements.in", "requirements-jax.in"])
def test_every_requirement_is_locked(source: str) -> None:
    lines = (ROOT / source).read_text("utf-8").splitlines()
    wanted = {re.split(r"[=<>\[ ]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    if source == "requirements.in":  # JAX has a lock of its own
        declared = requirements_of_setup(without=("jax",))
        wanted |= {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in declared}
    locked = re.findall(r"^([\w.-]+)==", (ROOT / source).with_suffix(".txt").read_text("utf-8"), re.MULTILINE)
    assert wanted - {name.lower() for name in locked} == set()


def test_the_demo_installs_the_same_pins_without_encoders_clouds_and_tools() -> None:
    whole, demo = (
        set(re.findall(r"^([\w.-]+==\S+)", (ROOT / name).read_text("utf-8"), re.MULTILINE))
        for name in ("requirements.txt", "requirements-demo.txt")
    )
    assert demo < whole
    names = {pin.partition("==")[0] for pin in demo}
    needed = requirements_of_setup(without=("gcp", "aws", "encoders", "jax", "spreadsheets", "dev"))
    assert {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in needed} <= names
    assert names.isdisjoint({"tensorflow-text", "tf-models-official", "keras-hub", "boto3", "pytest", "mypy"})


def test_source_and_wheel_contain_all_three_packages(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (*PACKAGES, "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    for arguments in (["sdist"], ["bdist_wheel"]):
        subprocess.run([sys.executable, "setup.py", "-q", *arguments], cwd=tree, check=True, capture_output=True)
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    built = set(zipfile.ZipFile(next((tree / "dist").glob("*.whl"))).namelist())
    expected = {relative(path) for path in SOURCES}
    assert expected <= packed
    assert expected <= built
    for folder in ("serving/deploy", "serving/page"):
        assert {relative(path) for path in (ROOT / folder).iterdir() if path.is_file()} <= built


def test_import_contracts_know_every_module() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    for package in PACKAGES:
        layers = next(contract["layers"] for contract in contracts if contract.get("containers") == [package])
        placed = {module.strip(" ()") for layer in layers for module in re.split(r"[|:]", layer)}
        modules = {
            path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        assert modules - {"__init__"} == placed


def test_configuration_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("write_configuration", ROOT / "docs/write_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text("utf-8") == script.render(), "run `make docs`"


def test_readme_names_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert linked
    assert [target for target in linked if not (ROOT / target).exists()] == []
    configs = re.findall(r"configs/[\w.-]+\.yaml", text)
    assert [name for name in configs if not (ROOT / name).is_file()] == []
