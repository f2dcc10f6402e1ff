"""The generated pages of the site: the configuration from conf/, the methods, and the API. Called by mkdocs.

    reference/config/index.md     the stages and the groups
    reference/config/<group>.md   every option of a group with its defaults
    reference/methods.md          `cft/report/catalogue.py`
    reference/api/<package>.md    the public modules of each package, for mkdocstrings
    guides/notebook.md            guides/notebook.ipynb with its outputs, as written by `make notebook`

After the build every link of the site is checked: a missing page, file or anchor fails the build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from cft.config.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PACKAGE = ROOT / "cft"
REPOSITORY_LINK = re.compile(r"\]\((?:\.\./)*conf/(\w+)/([\w.-]+)\.yaml\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the generated pages to the navigation."""
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference.append({"Configuration": ["reference/config/index.md", *_paths("config", groups())]})
    reference.append({"API": ["reference/api/index.md", *_paths("api", packages())]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in generated():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    if dead := dead_links(Path(config.site_dir)):
        raise PluginError(f"{len(dead)} dead links:\n" + "\n".join(dead))


def generated() -> Iterator[tuple[str, str]]:
    """(path below docs/, text) of every generated page."""
    from cft.report.catalogue import document  # imports torch: only where pages are built

    yield "reference/methods.md", _linked(document())
    yield "guides/notebook.md", notebook_page(ROOT / "docs" / "guides" / "notebook.ipynb")
    yield "reference/config/index.md", _config_index()
    for group in groups():
        yield f"reference/config/{group}.md", _group_page(group)
    yield "reference/api/index.md", _api_index()
    for package in packages():
        yield f"reference/api/{package}.md", _api_page(package)


def _paths(folder: str, names: list[str]) -> list[dict[str, str]]:
    return [{name: f"reference/{folder}/{name}.md"} for name in names]


# --- configuration


def groups() -> list[str]:
    return sorted(folder.name for folder in CONF.iterdir() if any(folder.rglob("*.yaml")))


def options(group: str) -> list[Path]:
    return sorted((CONF / group).rglob("*.yaml"))


def _config_index() -> str:
    parts = [
        "# Configuration",
        "",
        "`GROUP=OPTION` on the command line selects the file `conf/GROUP/OPTION.yaml`; `GROUP.KEY=VALUE` sets one of its keys. "
        "`cft train --cfg job` prints the composed configuration without running it. Everything on these pages is read from "
        "`conf/` when the site is built.",
        "",
        "## Groups",
        "",
        "| group | options |",
        "|---|---|",
    ]
    for group in groups():
        named = " ".join(f"[`{_option(path)}`]({group}.md#{_anchor(path)})" for path in options(group))
        parts.append(f"| [`{group}`]({group}.md) | {named} |")
    for stage in STAGES:
        path = CONF / f"{stage}.yaml"
        if path.is_file():
            parts += ["", f"## `cft {stage}`", "", *_yaml(path)]
    return "\n".join(parts) + "\n"


def _group_page(group: str) -> str:
    parts = [f"# {group}"]
    for path in options(group):
        parts += ["", f"## {_option(path)} {{ #{_anchor(path)} }}", "", f"`{_choice(group, path)}`", "", *_yaml(path)]
    return "\n".join(parts) + "\n"


def _choice(group: str, path: Path) -> str:
    below = path.relative_to(CONF / group).parent.as_posix()
    return f"{group}={path.stem}" if below == "." else f"{group}/{below}={path.stem}"


def _option(path: Path) -> str:
    return "/".join(path.relative_to(CONF).with_suffix("").parts[1:])


def _anchor(path: Path) -> str:
    return _option(path).replace("/", "-")


def _yaml(path: Path) -> list[str]:
    return [f'```yaml title="{path.relative_to(ROOT).as_posix()}"', path.read_text(encoding="utf-8").rstrip(), "```"]


def _linked(text: str) -> str:
    """Links to files of conf/ lead to their place on the configuration pages."""
    return REPOSITORY_LINK.sub(lambda found: f"](config/{found[1]}.md#{found[2]})", text)


# --- API


def packages() -> list[str]:
    return sorted(folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file())


def modules(package: str) -> list[str]:
    files = [path for path in (PACKAGE / package).rglob("*.py") if not path.name.startswith("_")]
    return sorted(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)


def _flat_modules() -> list[str]:
    return sorted(f"cft.{path.stem}" for path in PACKAGE.glob("*.py") if not path.name.startswith("_"))


def _first_line(module: str) -> str:
    text = (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
    found = re.match(r'r?"""(.+?)(?:"""|\n)', text)
    return found.group(1).replace("|", "\\|") if found else ""


def _api_index() -> str:
    parts = ["# API", "", "One page per package. Each package has the name of the config group whose options it holds."]
    for package in packages():
        parts += ["", f"## [cft.{package}]({package}.md)", "", "| module | |", "|---|---|"]
        parts += [f"| [`{name}`][{name}] | {_first_line(name)} |" for name in modules(package)]
    parts += ["", "## cft", "", "| module | |", "|---|---|"]
    parts += [f"| [`{name}`][{name}] | {_first_line(name)} |" for name in _flat_modules()]
    for name in _flat_modules():
        parts += ["", f"::: {name}"]
    return "\n".join(parts) + "\n"


def _api_page(package: str) -> str:
    return "\n\n".join([f"# cft.{package}", *(f"::: {name}" for name in modules(package))]) + "\n"


# --- the notebook


def notebook_page(path: Path) -> str:
    """Cells and outputs as Markdown; HTML of a result is kept unchanged."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    parts.insert(1, f"[The notebook itself]({path.name}), executed by `make notebook`.")
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    printed = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "text/html" in data and output["output_type"] == "execute_result":
            yield "".join(data["text/html"])
        else:
            printed.append("".join(output.get("text") or data.get("text/plain", "")).rstrip())
    if any(printed):
        yield "```text\n" + "\n".join(filter(None, printed)) + "\n```"


# --- links of the built site


class _Page(HTMLParser):
    """What a page links to, and the anchors it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead_links(site: Path) -> list[str]:
    """Links within the site whose page, file or anchor does not exist, each with the page it is on."""
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links start at the root of a server
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                dead.append(f"{path.relative_to(site.resolve())}: {link}")
    return dead
