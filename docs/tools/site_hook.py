"""Hook of the site: pages made from the packages, links between them, equations without a script.

A page for each model family and each task is its own README, followed by what the installed configs and the
docstrings say; so nothing is repeated here and a new package has its page by being there.
"""

import posixpath
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import configuration  # a sibling; hooks are loaded by path

ROOT = Path(__file__).parents[2]
GUIDES = (
    "command-line", "training", "debugging", "data", "datasets", "add-a-task", "new-model", "compare", "hub",
    "clusters",
)  # fmt: skip
"""Order of the guides; others follow by name."""


def families() -> list[str]:
    """Names of the model families, such as ``ilm``."""
    found = ROOT.glob("packages/xlm-*/src/xlm_*")
    return sorted(path.name.removeprefix("xlm_") for path in found if (path / "__init__.py").exists())


def readme_pages() -> dict[Path, str]:
    """Where in the site each README of a package or a task is."""
    pages = {ROOT / f"packages/xlm-{family}/README.md": f"models/{family}.md" for family in families()}
    for path in sorted(ROOT.glob("packages/xlm-tasks/src/xlm/tasks/*/README.md")):
        pages[path] = f"tasks/{path.parent.name}.md"
    pages[ROOT / "packages/xlm-tasks/README.md"] = "tasks/index.md"
    pages[ROOT / "packages/xlm-modules/README.md"] = "reference/modules.md"
    pages[ROOT / "packages/xlm-eval/README.md"] = "reference/evaluation.md"
    pages[ROOT / "README.md"] = "index.md"
    pages[ROOT / "CONTRIBUTING.md"] = "contributing.md"
    pages[ROOT / "CHANGELOG.md"] = "changelog.md"
    return {path: uri for path, uri in pages.items() if path.exists()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that follow from what is there."""
    guides = sorted(path.stem for path in (ROOT / "docs/guides").glob("*.md"))
    ordered = [name for name in GUIDES if name in guides] + [name for name in guides if name not in GUIDES]
    pages = readme_pages().values()
    parts: dict[str, list[Any]] = {
        "Guides": [f"guides/{name}.md" for name in ordered],
        "Models": ["models/index.md", *(uri for uri in pages if uri.startswith("models/"))],
        "Tasks": ["tasks/index.md", *(u for u in pages if u.startswith("tasks/") and u != "tasks/index.md")],
    }
    assert config.nav is not None
    config.nav = [{name: parts.get(name, entry)} for item in config.nav for name, entry in item.items()] + [
        {"Project": ["contributing.md", "changelog.md"]}
    ]
    config.watch.append(str(ROOT / "packages"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for uri, text in generated_pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def generated_pages() -> dict[str, str]:
    """Text of every page that is not written by hand."""
    pages = {uri: with_site_links(path, uri) for path, uri in readme_pages().items()}
    for family in families():
        pages[f"models/{family}.md"] += model_appendix(family)
    for uri in [uri for uri in pages if uri.startswith("tasks/") and uri != "tasks/index.md"]:
        pages[uri] += task_appendix(Path(uri).stem)
    pages["models/index.md"] = models_index()
    pages["reference/modules.md"] += "\n\n" + "\n\n".join(
        f"::: xlm.modules.{name}" for name in public_modules("xlm-modules/src/xlm/modules")
    )
    pages["reference/evaluation.md"] += "\n\n" + "\n\n".join(
        f"::: xlm.eval.{name}" for name in public_modules("xlm-eval/src/xlm/eval")
    )
    pages["reference/tasks.md"] = "# Tasks\n\n" + "\n\n".join(
        f"::: xlm.tasks.{name}" for name in public_modules("xlm-tasks/src/xlm/tasks")
    )
    pages["reference/protocols.md"] = "# Protocols\n\n::: xlm.core.protocols\n"
    pages["reference/harness.md"] = "# Harness\n\n" + "\n\n".join(
        f"::: xlm.core.{name}" for name in public_modules("xlm-core/src/xlm/core") if name != "protocols"
    )
    pages["reference/configuration.md"] = configuration.page()
    return pages


def public_modules(folder: str) -> list[str]:
    """Modules and packages directly in a folder of the repository."""
    found = [path for path in (ROOT / "packages" / folder).iterdir() if not path.name.startswith(("_", "."))]
    files = [path.stem for path in found if path.suffix == ".py"]
    packages = [path.name for path in found if (path / "__init__.py").exists() and path.name != "testing"]
    return sorted(files + packages)


def options_of(package: str, group: str) -> list[configuration.Option]:
    """Options of a group that a distribution brings."""
    return [o for o in configuration.options() if o.group == group and o.package.distribution == package]


def model_appendix(family: str) -> str:
    """How to run a family in the harness, and its reference."""
    rows = "\n".join(
        f"| `experiment={option.name}` | {option.purpose.replace('|', '&#124;')} |"
        for option in options_of(f"xlm-{family}", "experiment")
    )
    return (
        f"\n\n## Run it in the harness\n\n| experiment | what it is |\n|---|---|\n{rows}\n\n"
        f"`xlm job_type=train job_name=NAME experiment=star_tiny_{family}` trains, tests and says where the\n"
        "results are; [First run](../first-run.md) explains what it prints. All keys of the configs:\n"
        "[Configuration](../reference/configuration.md). Measured numbers, each with its command:\n"
        "[Results](../results.md).\n\n"
        f"## Reference\n\n::: xlm_{family}\n"
        "    options: {show_root_heading: false, heading_level: 3}\n"
    )


def models_index() -> str:
    """One line for each family."""
    lines = [
        "# Models",
        "",
        "Each family is a package of its own: copy one to change it.",
        "",
        "| package | what it is |",
        "|---|---|",
    ]
    for family in families():
        metadata = (ROOT / f"packages/xlm-{family}/pyproject.toml").read_text()
        match = re.search(r'^description = "(.+)"', metadata, re.MULTILINE)
        lines.append(f"| [xlm-{family}]({family}.md) | {match.group(1) if match else ''} |")
    return "\n".join(lines) + "\n"


def task_appendix(task: str) -> str:
    """The configs of a task."""
    folder = f"/tasks/{task}/configs/task/"
    found = [o for o in configuration.options() if o.group == "task" and folder in o.path.as_posix()]
    rows = "\n".join(f"| `task={option.name}` | {option.purpose} |" for option in found)
    return f"\n\n## Configs\n\n| option | what it is |\n|---|---|\n{rows}\n" if found else ""


# ---- links ----------------------------------------------------------------------------------------------


def with_site_links(path: Path, uri: str) -> str:
    """A README with its links turned into links of the site; what is no page becomes plain text."""
    return rewrite_links(path.read_text(encoding="utf-8"), path.parent, uri)


def rewrite_links(text: str, folder: Path, uri: str) -> str:
    """Turn links relative to ``folder`` into links relative to the page ``uri``."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)  # code stays as it is
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(
            r"(!?)\[([^\]]*)\]\(([^)\s]+)\)",
            lambda match: _link(match.group(1), match.group(2), match.group(3), folder, uri),
            parts[index],
        )
    return "".join(parts)


def _link(image: str, text: str, target: str, folder: Path, uri: str) -> str:
    path, _, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:") or not path:
        return f"{image}[{text}]({target})"
    absolute = (folder / path).resolve()
    pages = readme_pages()
    readme = absolute / "README.md" if absolute.is_dir() else absolute
    if readme in pages:
        place = pages[readme]
    elif absolute.is_relative_to(ROOT / "docs") and absolute.suffix in (".md", ".svg", ".png"):
        place = absolute.relative_to(ROOT / "docs").as_posix()
    elif absolute.exists():
        return text
    else:
        return f"{image}[{text}]({target})"  # the strict build says that it is broken
    relative = posixpath.relpath(place, posixpath.dirname(uri) or ".")
    return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of hand-written pages may name files of the repository, as they do on a repository's page."""
    markdown = without_run_options(markdown)
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(ROOT / "docs"):
        return markdown
    return rewrite_links(markdown, Path(source).parent, page.file.src_uri)


def without_run_options(markdown: str) -> str:
    """Fences without the word that tells the tests not to run them, which is no option of the highlighter."""
    return re.sub(r"^( *```(?:bash|python)) no-run\b", r"\1", markdown, flags=re.MULTILINE)


# ---- equations ------------------------------------------------------------------------------------------

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the equations of a page."""
    return with_equations(html)


def with_equations(html: str) -> str:
    """A page with its equations as MathML, which browsers draw by themselves."""
    return EQUATION.sub(lambda match: _mathml(match.group(3), match.group(2)), html)


def _mathml(latex: str, bracket: str) -> str:
    text = convert(unescape(latex).strip(), display="block" if bracket == "[" else "inline")
    text = re.sub(r"<mi>([:;])</mi>", r"<mo>\1</mo>", text)  # the converter takes punctuation for names
    return re.sub(r'<mi(?: mathvariant="([a-z-]+)")?>(\w|&#x\w+;)</mi>', _letter, text)


def _letter(match: re.Match[str]) -> str:
    """A letter that any text font has, slanted, bold or neither by the style sheet.

    Browsers draw single letters, and those of another alphabet, with the characters U+1D400 to U+1D7FF, which
    only fonts for mathematics have: without one, boxes stand there.
    """
    variant, letter = match.groups()
    name = f"{variant} CAPITAL {letter}".upper()
    with suppress(KeyError):
        letter = unicodedata.lookup(name)
    return f'<mi mathvariant="normal" class="letter {variant or ""}">{letter}</mi>'.replace(' ">', '">')


def external_hosts(site: Path) -> Iterator[str]:
    """Scripts, styles, fonts and pictures that a built page would load from elsewhere."""
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="(https?:)?//[^"]+"|<link[^>]+rel="(?:stylesheet|preconnect|preload|icon)"[^>]+href="(?:https?:)?//[^"]+"|<link[^>]+href="(?:https?:)?//[^"]+"[^>]+rel="(?:stylesheet|preconnect|preload)"|url\(["\']?(?:https?:)?//'
    )
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for match in loads.finditer(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: {match.group(0)}"
