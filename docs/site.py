"""What the site needs beyond the pages: a first page, and the documents of the repository that the pages link to.

Pages link to LOG.md, to benchmarks and to examples where these lie in the repository. In the site, documents and
pictures stand under `repository/`, and of other files only the name is shown.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = (
    "LOG.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "README.zh-CN.md",
    "benchmarks/*.md",
    "benchmarks/*.png",
)
SHOWN = [path.relative_to(ROOT).as_posix() for pattern in OUTSIDE for path in sorted(ROOT.glob(pattern))]
FIRST_PAGE = "# smalti\n\n[English](en/index.md)\n\n[简体中文](zh/index.md)\n"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the first page and the documents and pictures of the repository."""
    files.append(File.generated(config, "index.md", content=FIRST_PAGE))
    for name in SHOWN:
        files.append(File.generated(config, f"repository/{name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links of a page, or of a document of the repository, to where their target stands in the site."""
    here = page.file.src_uri
    source = here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}"

    def moved(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.groups()
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = wanted.removeprefix("docs/") if wanted.startswith("docs/") else f"repository/{wanted}"
        if files.get_file_from_path(place) is None:
            return text
        return f"{picture}[{text}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(moved, markdown)
