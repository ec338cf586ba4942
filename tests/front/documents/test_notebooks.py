"""Cells of a notebook form one text: code of the language unchanged, other cells as comments."""

from fimserver.front.documents.mirror import Document
from fimserver.front.documents.notebooks import Cell, Notebooks


def documents(**cells):
    return {uri: Document(uri, language, 1, text) for uri, (language, text) in cells.items()}


def test_neighbours_of_a_cell():
    known = documents(
        a=("python", "import os\n"),
        m=("markdown", "# Title\n\ntext"),
        b=("python", "os."),
        c=("python", "print(1)"),
    )
    notebooks = Notebooks()
    notebooks.open("n", [Cell("a", True), Cell("m", False), Cell("b", True), Cell("c", True)])
    assert notebooks.around("b", known, "#") == ("import os\n\n# # Title\n# text\n", "\n\nprint(1)\n\n")


def test_cells_come_and_go():
    known = documents(a=("python", "one\n"), b=("python", "two\n"), c=("python", "three\n"))
    notebooks = Notebooks()
    notebooks.open("n", [Cell("a", True), Cell("b", True)])
    notebooks.splice("n", 0, 1, [Cell("c", True)])
    assert notebooks.around("b", known, "#") == ("three\n\n", "")
    assert notebooks.around("a", known, "#") == ("", "")
    assert sorted(notebooks.close("n")) == ["b", "c"]
    assert notebooks.around("b", known, "#") == ("", "")


def test_what_is_no_cell_has_no_neighbours():
    notebooks = Notebooks()
    notebooks.splice("unknown", 0, 1, [])
    assert notebooks.around("x", {}, "#") == ("", "")
