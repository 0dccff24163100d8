"""Pages: nothing outside them is needed, and text from elsewhere never becomes markup."""

import base64
from html.parser import HTMLParser

import pytest

from ijepa_jax.visualize.page import as_block, as_code, as_text, write_page

PICTURE = b"\x89PNG\r\n\x1a\nnot much of one"
NASTY = (
    "<script>alert(1)</script>",
    "a|b`c``d",
    "`|`",
    "</details><details>",
    "&lt;b&gt; &amp;",
    "[x](javascript:alert(1)) ![y](https://example.com/y.png)",
    "*bold* _this_ but snake_case ~~gone~~ \\",
    "one\n\n# two",
)


class Reader(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and the text shown in each kind of element."""

    EMPTY = ("meta", "img", "br", "hr", "link")

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.text, self.open = [], {}, []
        self.feed(page)
        assert not self.open, "an element is not closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements overlap"

    def handle_data(self, data):
        for tag in set(self.open):
            self.text[tag][-1] += data


def page_of(folder, markdown: str, title: str = "a page") -> Reader:
    write_page(folder / "page.html", markdown, title)
    text = (folder / "page.html").read_text()
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    return Reader(text)


def test_pictures_are_inlined(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a b.png").write_bytes(PICTURE)
    page = page_of(tmp_path, "![what | it shows](pictures/a%20b.png)\n")
    (attributes,) = [attributes for tag, attributes in page.elements if tag == "img"]
    start, _, data = attributes["src"].partition(",")
    assert start == "data:image/png;base64" and base64.b64decode(data) == PICTURE
    assert attributes["alt"] == "what | it shows"


@pytest.mark.parametrize("name", ["gone.png", "https://example.com/there.png", "/there.png"])
def test_a_missing_picture_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"a page names the picture '{name}', which is not in"):
        page_of(tmp_path, f"![x]({name})")


def test_only_pictures_are_inlined(tmp_path):
    (tmp_path / "notes.txt").write_text("private")
    with pytest.raises(ValueError, match=r"'notes\.txt' as a picture"):
        page_of(tmp_path, "![x](notes.txt)")


def test_parts_fold_and_tables_have_boxes(tmp_path):
    page = page_of(tmp_path, "<details><summary>values: 1</summary>\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n</details>\n")
    tags = [tag for tag, _ in page.elements]
    assert tags.index("details") < tags.index("summary") < tags.index("div") < tags.index("table")
    assert page.text["summary"] == ["values: 1"] and page.text["td"] == ["1", "2"]


@pytest.mark.parametrize("markdown", NASTY[0:1] + ("<div onclick='x'>\n\n</div>", 'a <img src="https://example.com/x.png"> b'))
def test_raw_html_is_shown_as_text(tmp_path, markdown):
    page = page_of(tmp_path, markdown)
    assert not {"script", "img", "div"} & {tag for tag, _ in page.elements}
    assert "".join(markdown.split()) in "".join(page.text["main"][0].split())


@pytest.mark.parametrize("text", NASTY)
def test_text_from_elsewhere_stays_text(tmp_path, text):
    shown = " ".join(text.split())
    cells = " | ".join(cell.replace("|", "\\|") for cell in (as_text(text), as_code(text)))
    page = page_of(tmp_path, f"About {as_text(text)}\n\n{as_block(text)}\n\n| a | b |\n| --- | --- |\n| {cells} |\n", text)
    assert page.text["p"] == [f"About {shown}"] and page.text["td"] == [shown, shown]
    assert page.text["pre"] == [f"{text}\n"] and page.text["title"] == [text]
    assert not {"script", "img", "a", "em", "strong", "details"} & {tag for tag, _ in page.elements}


def test_nothing_is_asked_of_a_network(tmp_path):
    page = page_of(tmp_path, "# Title\n")
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.elements)
    policies = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in page.text["style"][0] and "@import" not in page.text["style"][0]
