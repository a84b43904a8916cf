"""All checks of the repository: `uv run nox` runs the default ones, `uv run nox -l` lists every one.

A test session is made for each folder under packages/: it builds an environment with that package and its
declared dependencies only, so an undeclared import fails there. By default the model families, which declare
the same, are tested together: one environment, and torch is imported once.
"""

import atexit
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nox

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
TEST_SESSIONS = {name: f"test-{name.removeprefix('xlm-')}" for name in PACKAGES}
FAMILIES = [name for name in PACKAGES if (ROOT / "packages" / name / "src" / name.replace("-", "_")).is_dir()]
OTHERS = [TEST_SESSIONS[name] for name in PACKAGES if name not in FAMILIES]

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["static", "families", *OTHERS, "integration", "wheels"]

# Two torch processes with several threads each stall one another, and tests are small.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

LEARNING = (
    "packages/*/tests/test_training_*.py",
    "tests/integration/test_overfit.py",
    "packages/xlm-modules/tests/test_optimizers.py",
)
"""Tests of what a network learns, which the rounding of a processor must not decide."""
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
PROCESSORS = (
    {"ATEN_CPU_CAPABILITY": "default", **AVX2},
    {"ATEN_CPU_CAPABILITY": "avx2", **AVX2},
    {},  # this one
)


def sync(session: nox.Session, *arguments: str) -> None:
    """Make the session's environment exactly what the lock says for ``arguments``."""
    session.run_install(
        "uv",
        "sync",
        "--quiet",
        "--no-default-groups",
        *arguments,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location, "VIRTUAL_ENV": ""},
        external=True,
    )


def pytest(session: nox.Session, *arguments: str, dist: str = "loadfile") -> None:
    # A worker for each of two cores; the tests of a file stay together and share its fixtures.
    session.run("pytest", "-n", "2", "--dist", dist, *arguments, *session.posargs, env=ENVIRONMENT)


def metadata_of(package: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())


def test_groups(package: str) -> list[str]:
    """The groups that a package's tests need, as uv's options: those it asks for itself, and `test`."""
    more: list[str] = metadata_of(package).get("tool", {}).get("xlm", {}).get("test-groups", [])
    return [option for group in ("test", *more) for option in ("--group", group)]


def test_extras(*packages: str) -> list[str]:
    """The extras of packages that their tests need, as uv's options."""
    extras: list[str] = [
        extra
        for package in packages
        for extra in metadata_of(package).get("tool", {}).get("xlm", {}).get("test-extras", [])
    ]
    return [option for extra in extras for option in ("--extra", extra)]


def shape_checks(*packages: str) -> list[str]:
    """Run the shape annotations of packages that have any, as pytest's options."""
    typed = [
        package
        for package in packages
        if any(name.startswith("jaxtyping") for name in metadata_of(package)["project"]["dependencies"])
    ]
    if not typed:
        return []
    modules = ["xlm.modules" if package == "xlm-modules" else module_of(package) for package in typed]
    shared = [] if "xlm.modules" in modules else ["xlm.modules.records"]
    checked = ",".join([*modules, *shared, "shape_checks.checked"])
    return ["-o", "pythonpath=tests/shapes", f"--jaxtyping-packages={checked}"]


def side_by_side(*jobs: Callable[[], object]) -> None:
    """Run jobs that each keep one core busy, two at a time; ends with the first error, if there is one."""
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def run_tests(session: nox.Session, *packages: str) -> None:
    """The tests of packages, with nothing installed but what they declare."""
    for number, package in enumerate(packages):  # one by one: only then uv takes the groups of the workspace
        keep = ["--inexact"] if number else []
        sync(session, *keep, "--package", package, *test_groups(package), *test_extras(package))
    pytest(session, *(f"packages/{package}/tests" for package in packages), "-q", *shape_checks(*packages))


def test_session(package: str) -> Callable[[nox.Session], None]:
    def test(session: nox.Session) -> None:
        run_tests(session, package)

    test.__doc__ = f"Tests of {package}, with nothing installed but what it declares."
    return test


for package, name in TEST_SESSIONS.items():
    nox.session(name=name)(test_session(package))


@nox.session
def families(session: nox.Session) -> None:
    """Tests of all model families, as the session of each runs them."""
    run_tests(session, *FAMILIES)


@nox.session
def static(session: nox.Session) -> None:
    """What `lint`, `types` and `architecture` check, side by side."""
    sync(session, "--all-packages", "--group", "lint", "--group", "types", *test_extras(*PACKAGES))
    check_format(session)
    side_by_side(*type_checks(session), lambda: pytest(session, "tests/architecture", "-q"))


@nox.session
def lint(session: nox.Session) -> None:
    """Format and rules."""
    sync(session, "--only-group", "lint")
    check_format(session)


@nox.session
def types(session: nox.Session) -> None:
    """Strict types over sources, tests and the rendered skeleton, and lines that must not check."""
    sync(session, "--all-packages", "--group", "types", *test_extras(*PACKAGES))
    side_by_side(*type_checks(session))


@nox.session
def architecture(session: nox.Session) -> None:
    """Who may import whom, in Python and in every `_target_` of every YAML."""
    sync(session, "--all-packages", "--group", "architecture")
    pytest(session, "tests/architecture", "-q")


def check_format(session: nox.Session) -> None:
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    # Code on a page is as wide as the page (see tests/documentation/test_writing.py).
    pages = [str(path) for folder in ("docs", "packages") for path in ROOT.glob(f"{folder}/**/*.md")]
    session.run("ruff", "format", "--check", "--line-length", "88", "README.md", *pages)


def type_checks(session: nox.Session) -> list[Callable[[], object]]:
    # Named, or the checker would take the environment that it finds in the root.
    check = ("basedpyright", "--pythonpath", str(Path(session.bin) / "python"))
    skeleton = outside_folder() / "skeleton"
    session.run("xlm-scaffold", "skeleton", str(skeleton), "--xlm", "index")
    return [lambda: session.run(*check), lambda: session.run(*check, "--project", str(skeleton))]


@nox.session
def browser(session: nox.Session) -> None:
    """The page of job_type=view in headless Chromium; by name, since it needs a browser."""
    sync(session, "--all-packages", "--group", "test")
    pytest(session, "tests/browser", "-q")


@nox.session
def judges(session: nox.Session) -> None:
    """MAUVE and the lm-evaluation-harness themselves; by name, since they bring many packages."""
    groups = ("--group", "test", "--group", "corpus", "--group", "judges")
    sync(session, "--all-packages", *groups, "--extra", "mauve", "--extra", "lm-eval")
    pytest(session, "tests/judges", "-q")


@nox.session
def mutants(session: nox.Session) -> None:
    """Code broken in one place, which tests must notice (-- NAMES: these lists of tests/mutants); by name."""
    sync(session, "--all-packages", "--group", "test", *test_extras(*PACKAGES))
    session.run("python", "tests/mutants/run.py", *session.posargs, env=ENVIRONMENT)


@nox.session
def integration(session: nox.Session) -> None:
    """All packages together: every experiment, every job."""
    groups = ("--group", "test", "--group", "data", "--group", "lint")
    sync(session, "--all-packages", *groups, *test_extras(*PACKAGES))
    # One file has half of the tests.
    pytest(session, "tests/integration", "-q", dist="worksteal")


@nox.session
def slow(session: nox.Session) -> None:
    """The tests of all packages together that take a minute or more."""
    sync(session, "--all-packages", "--group", "test", *test_extras(*PACKAGES))
    pytest(session, "tests/integration", "-q", "-m", "slow")


@nox.session
def processors(session: nox.Session) -> None:
    """What networks learn, as on processors without AVX512 and bfloat16, with one and two threads."""
    sync(session, "--all-packages", "--group", "test", *test_extras(*PACKAGES))
    tests = sorted(str(path.relative_to(ROOT)) for pattern in LEARNING for path in ROOT.glob(pattern))
    for instructions in PROCESSORS:
        for threads in ("1", "2"):
            environment = (
                ENVIRONMENT | instructions | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
            )
            session.run("pytest", "-q", "-m", "", *tests, *session.posargs, env=environment)


@nox.session
def bench(session: nox.Session) -> None:
    """Short benchmarks beside their recorded ratios (-- --record: record those of this machine)."""
    sync(session, "--all-packages")
    session.run("python", "benchmarks/guard.py", *session.posargs, env=ENVIRONMENT)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site, strictly, and run every block of the documentation (with -- --build: build only)."""
    sync(
        session, "--all-packages", "--group", "docs", "--group", "test", "--group", "dev", "--group", "corpus"
    )
    session.run(
        "mkdocs", "build", "--strict", "--site-dir", "site", env=ENVIRONMENT | {"NO_MKDOCS_2_WARNING": "1"}
    )
    if "--build" not in session.posargs:
        pytest(session, "tests/documentation", "-q")


@nox.session(name="template-all")
def template_all(session: nox.Session) -> None:
    """Slow: from built wheels, outside the repository, make, check and train packages of all kinds."""
    outside = outside_folder()
    uv(session, "build", "--quiet", "--all-packages", "--out-dir", str(outside / "dist"))
    python = make_environment(session, outside / "environment")
    tools = ("pytest", "pytest-xdist", "numpy", "beartype", "ruff", "basedpyright")
    wheels = wheel_files(outside / "dist")
    uv(session, "pip", "install", "--quiet", "--python", python, *wheels, *tools)
    environment = {**ENVIRONMENT, "XLM_CACHE": str(outside / "cache")}
    families = session.posargs or ["skeleton", *(name.removeprefix("xlm-") for name in FAMILIES)]

    def run(command: str, *arguments: str) -> None:
        program = str(Path(python).with_name(command))
        session.run(program, *arguments, env=environment, external=True)

    with session.chdir(outside):
        for family in families:
            run("xlm-scaffold", f"my_{family}", "--from", family)
            folder, name = f"my-{family}", f"my_{family}"
            session.run_install(
                *("uv", "pip", "install", "--quiet", "--python", python, "-e", f"./{folder}[xlm]"),
                external=True,
                env={"VIRTUAL_ENV": ""},
            )
            with session.chdir(folder):
                run("ruff", "format", "--check", ".")
                run("ruff", "check", ".")
                run("basedpyright", "--pythonpath", python)
                run("pytest", "-q", "-n", "2", "--dist", "loadfile")
            job = ("job_type=train", f"job_name={name}", f"experiment=star_tiny_{name}", "debug=fast")
            run("xlm", *job)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build all wheels, run a job with all of them, and each family's README with its own alone."""
    outside = outside_folder()
    dist = outside / "dist"
    uv(session, "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(dist))

    def everything() -> None:
        python = make_environment(session, outside / "everything")
        uv(session, "pip", "install", "--quiet", "--python", python, *wheel_files(dist))
        xlm = str(Path(python).with_name("xlm"))
        environment = {**ENVIRONMENT, "XLM_CACHE": str(outside / "cache")}
        job = ("job_type=train", "job_name=wheels", "experiment=star_tiny_ilm", "debug=fast")
        session.run(xlm, *job, env=environment, external=True)
        session.run(python, "-c", CHECK_ORIGIN, str(outside), env=ENVIRONMENT, external=True)

    def alone(names: list[str]) -> None:
        python = make_environment(session, outside / names[0])
        for name in names:
            built = [str(next(dist.glob(f"{module_of(part)}-*.whl"))) for part in {name, modules}]
            # What is not declared goes; what stays is compiled already, which is most of the time.
            uv(session, "pip", "install", "--quiet", "--exact", "--python", python, *built)
            readme = str(ROOT / "packages" / name / "README.md")
            check = (python, "-W", "error", "-c", CHECK_STANDALONE, name, readme)
            session.run(*check, env=ENVIRONMENT, external=True)

    modules = "xlm-modules"
    names = [modules, *FAMILIES]
    with session.chdir(outside):
        side_by_side(everything, lambda: alone(names[::2]), lambda: alone(names[1::2]))


def module_of(package: str) -> str:
    return package.replace("-", "_")


@nox.session
def lowest(session: nox.Session) -> None:
    """Tests with the lowest versions that the packages allow (-- NAMES: of these only, such as ilm)."""
    others = ("xlm-eval", "xlm-models", "xlm-scaffold")  # they need the harness, or no torch
    for name in session.posargs or [name.removeprefix("xlm-") for name in PACKAGES if name not in others]:
        folders = [f"packages/xlm-{part}" for part in dict.fromkeys(["modules", name])]
        python = make_environment(session, Path(session.create_tmp()).resolve() / f"lowest-{name}")
        metadata = [argument for folder in folders for argument in ("-r", f"{folder}/pyproject.toml")]
        uv(
            session,
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--resolution",
            "lowest-direct",
            *metadata,
            *test_extras(f"xlm-{name}"),
        )
        uv(session, "pip", "install", "--quiet", "--python", python, *test_groups(f"xlm-{name}"))
        editable = [argument for folder in folders for argument in ("-e", folder)]
        uv(session, "pip", "install", "--quiet", "--python", python, "--no-deps", *editable)
        session.run(
            *(python, "-m", "pytest", f"packages/xlm-{name}/tests", "-q"),
            # The CSV reader of old versions of `datasets` leaves its files to the garbage collector.
            *("-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"),
            env=ENVIRONMENT,
            external=True,
        )


CHECK_ORIGIN = """
import sys, importlib.metadata as metadata
ours = [d for d in metadata.distributions() if d.name.startswith("xlm-")]
assert ours
for d in ours:
    origin = d.read_text("direct_url.json") or ""
    assert sys.argv[1] in origin and d.version.startswith("1."), f"{d.name} {d.version} is not ours: {origin}"
print(len(ours), "distributions, all built from this repository")
"""

CHECK_STANDALONE = """
import sys, re, pathlib, importlib.metadata as metadata
names = {d.name.lower() for d in metadata.distributions()}
harness = "lightning pytorch-lightning hydra-core omegaconf datasets transformers xlm-core xlm-tasks"
unwanted = names & set(harness.split())
assert not unwanted, f"{sys.argv[1]} brings {sorted(unwanted)}"
readme = pathlib.Path(sys.argv[2]).read_text(encoding="utf-8")
blocks = re.findall(r"```python\\n(.*?)```", readme, re.DOTALL)
assert blocks, "no example in the README"
for block in blocks:
    # What its training learns is tested elsewhere.
    short = re.sub(r"(?<= in )range\\(\\d{3}\\)", "range(3)", block)
    exec(compile(short, "README.md", "exec"), {})
print(sys.argv[1], "alone:", len(names), "distributions, none of the harness; its README runs")
"""


def outside_folder() -> Path:
    """A folder outside every clone (`xlm-scaffold` adds to the clone that it runs in), removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="xlm-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_environment(session: nox.Session, folder: Path) -> str:
    uv(session, "venv", "--quiet", "--clear", str(folder))
    return str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")


def wheel_files(dist: Path) -> list[str]:
    return [str(path) for path in sorted(dist.glob("*.whl"))]


def uv(session: nox.Session, *arguments: str) -> None:
    session.run_install("uv", *arguments, external=True, env={"VIRTUAL_ENV": ""})
