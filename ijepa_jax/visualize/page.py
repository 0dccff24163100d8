"""Markdown as a page: one HTML file that needs nothing else.

Also the escapes that keep text from elsewhere text in both, and text on images as text on examples of another kind.
"""

import base64
import html
import mimetypes
import re
import urllib.parse
from typing import Any

from etils import epath
from markdown_it import MarkdownIt

_SPECIAL = re.compile(r"[\\`*<&\[\]~]|(?<!\w)_|_(?!\w)")  # what Markdown reads as more than a character, within a line
_FOLDS = re.compile(r"&lt;(/?(?:details|summary))&gt;")

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636e; --line: #d1d9e0; --paper: #fff; --box: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --faint: #9aa4af; --line: #3a424b; --paper: #14181d; --box: #1f252c; }
}
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 46rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word;
  -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
.table { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.65rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td:has(> code) { min-width: 4.5rem; }
td:first-child code { white-space: nowrap; }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
th:empty { padding-top: 0; padding-bottom: 0; }
th:first-child, td:first-child { padding-left: 0.1rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.87em; }
code { background: var(--box); border-radius: 4px; padding: 0.1em 0.3em; overflow-wrap: anywhere; }
pre { background: var(--box); border-radius: 6px; padding: 0.7rem 0.9rem; white-space: pre-wrap; }
pre code { background: none; padding: 0; font-size: 1em; }
img { display: block; max-width: 100%; height: auto; margin: 0.6rem 0; background: #fff; border-radius: 4px; }
blockquote { margin: 1rem 0; padding: 0.1rem 0 0.1rem 0.9rem; border-left: 4px solid #d9730d; }
blockquote p { margin: 0.5rem 0; }
summary { cursor: pointer; padding: 0.4rem 0; color: var(--faint); }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}</main>
</body>
</html>
"""


def write_page(path, markdown: str, title: str) -> None:
    """Writes a self-contained HTML page of a Markdown text: pictures that it names, relative to the page's folder, are inlined.

    Args:
      path: the HTML file to write, local or in cloud storage; its folder exists.
      markdown: CommonMark with tables. Of raw HTML, `<details>` and `<summary>` fold a part; all else is shown as text.
      title: what the browser's tab says, as plain text.

    Raises:
      FileNotFoundError: a picture that the page names is not there.
      ValueError: something named as a picture is none.
    """
    path = epath.Path(path)
    body = _reader(path.parent).render(markdown)
    path.write_text(_PAGE.format(title=html.escape(title), style=_STYLE, body=body))


def as_text(value) -> str:
    """A value as Markdown that shows it letter by letter, within a line, a heading or a cell.

    In a table `|` must be escaped besides, in text as in code.
    """
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))


def as_code(value) -> str:
    """A value as a Markdown code span of one line: fenced by more backticks than it has in a row."""
    text = " ".join(str(value).split()) or " "
    fence = "`" * (_longest_ticks(text) + 1)
    space = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def as_block(text: str) -> str:
    """Lines of text as a Markdown code block."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}\n{text}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _reader(folder: epath.Path) -> MarkdownIt:
    """Markdown to HTML, with pictures of a folder inlined and wide tables in boxes of their own."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    plain_image = reader.renderer.rules["image"]

    def image(tokens, index, options, env) -> str:
        tokens[index].attrSet("src", _inlined(folder, urllib.parse.unquote(tokens[index].attrGet("src"))))
        return plain_image(tokens, index, options, env)

    def raw(tokens, index, options, env) -> str:
        return _FOLDS.sub(r"<\1>", html.escape(tokens[index].content))

    rules = {
        "image": image,
        "html_block": raw,
        "html_inline": raw,
        "table_open": lambda *_: '<div class="table"><table>\n',
        "table_close": lambda *_: "</table></div>\n",
    }
    reader.renderer.rules.update(rules)
    return reader


def _inlined(folder: epath.Path, name: str) -> str:
    """A picture as a data URI."""
    kind = mimetypes.guess_type(name)[0] or ""
    if not kind.startswith("image/"):
        raise ValueError(f"a page names {name!r} as a picture, which is none by its suffix")
    picture = folder / name
    if not picture.exists():
        raise FileNotFoundError(f"a page names the picture {name!r}, which is not in {folder}")
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"


def kind_of(found: dict[str, Any]) -> str:
    """What a page's examples are, `modality` of what it tells: image, video or signal. Older ones are of images."""
    return found.get("modality", "image")


def worded(text: str, kind: str) -> str:
    """A text on images and their pixels as one on videos or signals (`kind`). It must hold no names that users gave."""
    if kind == "image":
        return text
    text = re.sub(r"\b([Aa])n image", rf"\1 {kind}", text)
    text = re.sub(r"\bimage", kind, text)
    text = re.sub(r"\bImage", kind.capitalize(), text)
    return re.sub(r"\bpixels\b", "values", text) if kind == "signal" else text


def as_table(headings, rows, right: bool = True) -> str:
    """A table of Markdown, numbers to the right; `|` in cells is escaped here, all else where the cells are made."""
    lines = [headings, ["---"] + ["---:" if right else "---"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
