"""A document in Markdown and in HTML: text stays text."""

from __future__ import annotations

from html.parser import HTMLParser

from bench.document import Bullets, Code, Heading, Paragraph, Picture, Table, html, markdown

NASTY = "a|b <script>*x*_y_`z`[l](u)\\ & \n# next"
BLOCKS = [
    Heading("Title <1>", 1),
    Paragraph(NASTY),
    Bullets([NASTY, "plain"]),
    Table(["line", "x|y"], [["one", NASTY], ["two", "2"]]),
    Picture("x.png", "a picture"),
    Code("run <this>"),
]


class Seen(HTMLParser):
    """The tags of a page and the text in its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_markdown_escapes_what_would_be_markup() -> None:
    escaped = r"a\|b \<script\>\*x\*\_y\_\`z\`\[l\](u)\\ & # next"
    assert markdown(BLOCKS) == (
        f"# Title \\<1\\>\n\n{escaped}\n\n- {escaped}\n- plain\n\n"
        f"| line | x\\|y |\n| --- | ---: |\n| one | {escaped} |\n| two | 2 |\n\n"
        "![a picture](x.png)\n\n```sh\nrun <this>\n```\n"
    )


def test_html_is_one_page_with_everything_in_it() -> None:
    seen = Seen()
    seen.feed(html("T & T", BLOCKS, {"x.png": b"\x89PNG"}))
    assert "script" not in seen.tags
    assert "".join(seen.text).count(NASTY) == 3
    assert seen.tags.count("td") == 4
    assert seen.sources == ["data:image/png;base64,iVBORw=="]
    assert "T & T" in seen.text
