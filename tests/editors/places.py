"""Files and cursor positions at which a model probably has a suggestion.

Where it says nothing of use, the next place is tried: no test depends on the text.
"""

import itertools

FIRST_GHOST_S = 120.0  # the host imports torch and loads the model
SHAPES = b"""class Square:
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side * self.side


class Box:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    def area(self):
        return self.width * self.height

"""
PLACES = (  # what the file holds, and what is typed at its end
    (b"", "def add(a, b):\n    return "),
    (b"def add(a, b):\n    return a + b\n", "\n\ndef mul(a, b):\n    return "),
    (SHAPES, "\nclass Circle:\n    def __init__(self, "),
    (SHAPES, "\n    def scale(self, factor):\n        self.width = "),
    (b"import os\n\n\ndef walk(folder):\n", "\n    for name in "),
    (b"class Point:\n    def __init__(self, x, y):\n        self.x = x\n", "\n        self.y = "),
    (SHAPES, "\nclass Triangle:\n    def __init__"),
    (b"items = [1, 2, 3]\nfor item in items:\n", "\n    print("),
    (SHAPES, "\nclass Cube:\n"),
    (SHAPES + b"\nclass Line:", "\n    def __init__(self, length):\n"),
    (b"import json\n\n\ndef read(path):\n", "\n    with open(path) as file:\n        return "),
    (SHAPES.replace(b"Box", b"Case"), "\n    def volume"),
)


names = (f"file{number}.py" for number in itertools.count())


def until(editor, useful, places=PLACES):
    """Type at one place after the other until one has ghost text that is useful."""

    def look():
        for content, typed in places:
            editor.open(next(names), content)
            editor.type(typed)
            if (ghost := editor.settle()) and useful(ghost.text):
                return ghost
        return None

    return editor.wait("useful ghost text at any place", look, FIRST_GHOST_S)
