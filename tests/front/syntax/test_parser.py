"""Questions to tree-sitter: syntax errors of a middle, the cursor's surroundings, imports, definitions."""

import pytest

from fimserver.front.syntax.languages import GRAMMARS, IMPORT_QUERIES
from fimserver.front.syntax.parser import (
    Import,
    breaks_syntax,
    code_around,
    code_only,
    definition,
    imports,
    language_of,
    place,
)


def around(marked):
    prefix, suffix = marked.split("█")
    return prefix, suffix


@pytest.mark.parametrize(
    ("language_id", "path", "name"),
    [
        ("python", "", "python"),
        ("javascriptreact", "", "javascript"),
        ("typescriptreact", "a.tsx", "tsx"),
        ("shellscript", "", "bash"),
        ("csharp", "", "c_sharp"),
        ("Python", "", "python"),
        ("", "src/lib.RS", "rust"),
        ("plaintext", "a/b.test.ts", "typescript"),
        ("objective-c", "a.h", None),
        ("markdown", "README.md", None),
        ("vue", "a.vue", None),
        ("", "Makefile", None),
        ("", "", None),
    ],
)
def test_the_editor_names_the_language_and_the_path_only_where_it_does_not(language_id, path, name):
    assert language_of(language_id, path) == name


# language: (marked text, middle that is fine, middle that breaks it)
MIDDLES = {
    "python": ("def f(a):\n    x = █\n    return x\n", "g(a, [1, 2])", "g(a, [1, 2)"),
    "javascript": (
        "function f(a) {\n  const x = █\n  return x;\n}\n",
        "a.map((b) => b + 1);",
        "a.map((b) => b + 1;",
    ),
    "typescript": ("function f(a: string): number {\n  █\n}\n", "return a.length;", "return a.length;\n}"),
    "tsx": ("const A = () => {\n  return █;\n};\n", "<p>{a}</p>", "<p>{a</p>"),
    "go": ("package a\n\nfunc f() int {\n\t█\n}\n", "return 1", "return (1"),
    "rust": ("fn f(a: i32) -> i32 {\n    let x = █\n    x\n}\n", "a + 1;", "a + [1;"),
    "java": ("class A {\n    int f() {\n        █\n    }\n}\n", "return 1;", "return 1; }"),
    "c": ("int f(int a) {\n    █\n}\n", "return a + 1;", "return a + 1; }"),
    "cpp": ("int f(std::vector<int> a) {\n    █\n}\n", "return a.size();", "return a.size(;"),
    "c_sharp": ("class A {\n    int F() {\n        █\n    }\n}\n", "return 1;", "return (1;"),
    "ruby": ("def f(a)\n  █\nend\n", "a.each { |b| puts b }", "a.each { |b| puts b"),
    "lua": ("local function f(a)\n  █\nend\n", "return a + 1", "return (a + 1"),
    "bash": ("f() {\n  █\n}\n", 'echo "$1"', 'if [ "$1" ]; then echo'),
    "json": ('{\n  "a": █\n}\n', "[1, 2]", "[1, 2"),
    "yaml": ("a:\n  b: █\nc: 1\n", "[1, 2]", "[1, 2"),
    "html": ("<body>\n█\n</body>\n", "<p>a</p>", "<p>a</div></p"),
    "css": ("a {\n  █\n}\n", "color: red;", "color: red; }"),
}


def test_every_grammar_is_tried():
    assert set(MIDDLES) == set(GRAMMARS)


@pytest.mark.parametrize("language", MIDDLES)
def test_a_right_middle_passes_and_a_wrong_one_is_caught(language):
    marked, right, wrong = MIDDLES[language]
    prefix, suffix = around(marked)
    assert not breaks_syntax(language, prefix, right, suffix)
    assert breaks_syntax(language, prefix, wrong, suffix)


@pytest.mark.parametrize("language", MIDDLES)
def test_damage_elsewhere_changes_nothing(language):
    marked, right, _ = MIDDLES[language]
    prefix, suffix = around(marked)
    assert not breaks_syntax(language, prefix, right, suffix + "\n((((\n")


def test_plain_text_cannot_break():
    assert not breaks_syntax(None, "(", ")))", "[")


@pytest.mark.parametrize(
    ("marked", "middle", "breaks"),
    [
        ("x = █\n", ")", True),  # a name would repair the line: the middle must, too
        ("x = foo(█\n\ndef f():\n    pass\n", "a, ", False),  # nothing short of a closer would
        ("def f():\n    █\n", "return (1 +", True),
        ("if a:\n    b()\n█\n", "else:\n    c()", False),
        ("b()\n█\n", "else:\n    c()", True),
        ('print("█")\n', "hello (world", False),  # within a string
        ("# █\n", "so ) it is", False),
        ("foo(a█)\n", ", b):\n    pass", True),
        ("def f(█)\n    pass\n", "a", False),  # the colon was missing before
        ("def f(x):\n    return {█}\n", '"ä": "ö", "ü": [x]', False),
        ("x = [\n    1,\n    █\n]\n", "2,\n    3,", False),
        ("x = [\n    1,\n    █\n]\n", "2,\n]", True),
    ],
)
def test_python_while_it_is_being_written(marked, middle, breaks):
    assert breaks_syntax("python", *_spread(marked, middle)) == breaks


def _spread(marked, middle):
    prefix, suffix = around(marked)
    return prefix, middle, suffix


def test_replaced_characters_are_not_parsed_twice():
    assert breaks_syntax("python", "x = f(", "a, b)", ")\n")
    assert not breaks_syntax("python", "x = f(", "a, b)", ")\n", replace=1)


def test_a_window_is_cut_where_no_block_is_torn():
    filler = "def f(a):\n    if a:\n        return g(a)\n    return {'a': [a]}\n\n\n" * 800
    assert not breaks_syntax("python", filler + "x = ", "f(1)", "\n\n" + filler)
    assert breaks_syntax("python", filler + "x = ", "f(1", "\n\n" + filler)


def test_deep_nesting_is_no_crash():
    deep = "[" * 4000 + "1 1" + "]" * 4000
    assert breaks_syntax("json", deep[:4000], "1 1", "]" * 4000)
    assert code_only("json", deep) == deep
    assert place("json", deep, "") == "code"
    assert definition("c", "#if A\n" * 3000 + "int f(int a);\n" + "#endif\n" * 3000, "f") is None
    assert definition("rust", f"type T = {'&' * 3000}U;\n", "T").startswith("type T = &&&")


def test_half_a_character_is_no_crash():
    assert not breaks_syntax("python", 'a = "\ud800"\nx = ', "1", "\n")


# language: (marked text, what the cursor is in)
PLACES = {
    "python": [("x = f'a{b█}'", "code"), ("x = 'a█'", "string"), ("x = 1  # a█", "comment"), ("x = 'a'█", "code"), ('x = "a█\n', "string")],
    "javascript": [("x = `a${b█}`;", "code"), ("x = `a█`;", "string"), ("/* █ */", "comment"), ("f(█);", "code"), ("x = 'it█\n", "string")],
    "typescript": [("let x: string = 'a█';", "string"), ("// █", "comment"), ("let x█", "code")],
    "tsx": [('<a b="█"/>', "string"), ("<a>█</a>", "code"), ("// a█\n", "comment")],
    "go": [('x := "a█"', "string"), ("x := `█`", "string"), ("// a█", "comment"), ("x := █", "code")],
    "rust": [('let x = "█";', "string"), ("/// █\nfn f() {}", "comment"), ("let x = █;", "code")],
    "java": [('class A { String a = "█"; }', "string"), ("/** █ */ class A {}", "comment"), ("class A { █ }", "code")],
    "c": [('char *a = "█";', "string"), ("/* █ */", "comment"), ("int a = █;", "code")],
    "cpp": [('auto a = R"(█)";', "string"), ("// █", "comment"), ("int a = █;", "code")],
    "c_sharp": [('class A { string a = "█"; }', "string"), ('class A { string a = $"{b█}"; }', "code"), ("// █", "comment")],
    "ruby": [('x = "a#{b█}"', "code"), ("x = 'a█'", "string"), ("# █", "comment")],
    "lua": [('x = "█"', "string"), ("-- █", "comment"), ("x = █", "code"), ('print("a█', "string")],
    "bash": [('x="a█"', "string"), ("x='a█'", "string"), ("# █", "comment"), ("echo █", "code"), ('x="$(a █)"', "code")],
    "json": [('{"a": "█"}', "string"), ('{"a": █}', "code")],
    "yaml": [('a: "b█"', "string"), ("a: 1 # b█", "comment"), ("a: █", "code")],
    "html": [('<a href="█">', "string"), ("<!-- █ -->", "comment"), ("<p>█</p>", "code")],
    "css": [('a { content: "█"; }', "string"), ("/* █ */", "comment"), ("a { █ }", "code")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "marked", "expected"), [(name, *case) for name, cases in PLACES.items() for case in cases]
)
def test_place(language, marked, expected):
    assert place(language, *around(marked)) == expected


def test_every_grammar_is_asked_for_the_place():
    assert set(PLACES) == set(GRAMMARS)
    assert place(None, '"', "") == "code"


@pytest.mark.parametrize(
    ("language", "text", "code"),
    [
        ("python", "f('(é', b)  # )\n", "f(    , b)     \n"),
        ("javascript", "f(`a\n(`)\n", "f(  \n  )\n"),
        ("typescript", "const a: string = f('(')\n", "const a: string = f(   )\n"),
        ("lua", "f('(') -- (\n", "f(   )     \n"),
        ("rust", 'f("(", r"(") // (\n', "f(   ,     )     \n"),
        ("ruby", 'f("a#{g("(")}(")\n', "f(             )\n"),
        (None, 'a "(" b', "a     b"),
    ],
)
def test_strings_and_comments_become_blanks_of_the_same_length(language, text, code):
    assert code_only(language, text) == code


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_every_grammar_is_asked_for_its_strings(language):
    assert len(code_only(language, 'a "(" b\n')) == 8


@pytest.mark.parametrize(
    ("language", "prefix", "middle", "suffix", "code"),
    [
        ("python", "f('(', ", "g('é(", "'))\n# )\n", ("f(   , g(   ", " ))\n   \n")),
        (
            "go",
            'package a\nvar b = "("\n',
            "var c = `(`",
            "\n",
            ("package a\nvar b =    \nvar c =    ", "\n"),
        ),
        (None, 'a "(" ', '"b"', " c", ("a        ", " c")),
        ("python", "x = 1\n" * 2000, "y('(')", "\nz = 2" * 2000, None),
    ],
)
def test_the_code_around_a_middle_is_that_of_the_text_with_it(language, prefix, middle, suffix, code):
    before, after = code_around(language, prefix, middle, suffix)
    if code is None:  # a long file: what is near the cursor
        assert before.endswith("x = 1\ny(   )")
        assert after.startswith("\nz = 2\n")
    else:
        assert (before, after) == code
        assert before + after == code_only(language, prefix + middle + suffix)


IMPORTS = {
    "python": (
        "import os, a.b as c\nfrom .. import x\nfrom .y.z import (p, q as r)\nif T:\n    from t import *\n",
        [("os", ()), ("a.b", ()), ("..", ("x",)), (".y.z", ("p", "q")), ("t", ("*",))],
    ),
    "javascript": (
        "import D, {a as b, c} from './x';\nimport * as n from \"y\";\nimport 'z';\nconst q = require('r');\nconst {u, v: w} = require('t');\n",
        [("./x", ("D", "a", "c")), ("y", ()), ("z", ()), ("r", ("q",)), ("t", ("u", "v"))],
    ),
    "typescript": (
        "import type {A} from './a';\nexport {b} from './c';\nimport d = require('x');\n",
        [("./a", ("A",)), ("./c", ("b",))],
    ),
    "tsx": ("import React, {useState} from 'react';\n", [("react", ("React", "useState"))]),
    "go": ('package a\nimport "fmt"\nimport (\n\tx "a/b"\n\t"c"\n)\n', [("fmt", ()), ("a/b", ()), ("c", ())]),
    "rust": (
        "use a::b::{c, d as e};\nuse std::io;\nuse x::y::*;\nuse serde;\n",
        [("a::b", ("c", "d")), ("std", ("io",)), ("x::y", ()), ("serde", ())],
    ),
    "java": (
        "import a.b.C;\nimport static a.b.C.m;\nimport x.y.*;\n",
        [("a.b", ("C",)), ("a.b.C", ("m",)), ("x.y", ("*",))],
    ),
    "c": ('#include <stdio.h>\n#include "a/b.h"\n', [("stdio.h", ()), ("a/b.h", ())]),
    "cpp": ("#include <vector>\n", [("vector", ())]),
}  # fmt: skip


@pytest.mark.parametrize("language", GRAMMARS)
def test_imports(language):
    text, expected = IMPORTS.get(language, ("a\n", []))
    assert imports(language, text) == tuple(Import(*pair) for pair in expected)
    assert (language in IMPORTS) == (language in IMPORT_QUERIES)


DEFINITIONS = {
    "python": (
        (
            'import a\n\n@a.b\ndef f(\n    x: int,\n    y: str = "",\n) -> int:\n    """Adds.\n\n    More.\n    """\n    return 1\n\n\n'
            'class A(B):\n    """Is."""\n\n    x: int = 1\n\n    def m(self, a: int) -> int:\n        return a\n\n    @property\n    def p(self): ...\n'
        ),
        {
            "f": '@a.b\ndef f(\n    x: int,\n    y: str = "",\n) -> int:\n    """Adds."""',
            "A": 'class A(B):\n    """Is."""\n    x: int = 1\n    def m(self, a: int) -> int:\n    @property def p(self):',
            "m": None,
            "g": None,
        },
    ),
    "javascript": (
        "/** Adds. */\nexport function f(a, b) {\n  return a + b;\n}\nexport const g = (a) => {\n  return a;\n};\nclass A {\n  x = 1;\n  m(a) {\n    return a;\n  }\n}\n",
        {
            "f": "// Adds.\nexport function f(a, b)",
            "g": "export const g = (a) =>",
            "A": "class A\n    x = 1\n    m(a)",
        },
    ),
    "typescript": (
        "export interface I {\n  a: string;\n  m(): void;\n}\nexport default class A<T> extends B {\n  private x: number = 1;\n  async m(a: T): Promise<T> {\n    return a;\n  }\n}\ntype T = { a: number };\n",
        {
            "I": "export interface I\n    a: string\n    m(): void",
            "A": "export default class A<T> extends B\n    private x: number = 1\n    async m(a: T): Promise<T>",
            "T": "type T = { a: number };",
        },
    ),
    "tsx": ("const A = ({ b }: P) => {\n  return <p>{b}</p>;\n};\n", {"A": "const A = ({ b }: P) =>"}),
    "go": (
        "package a\n\n// T is a thing.\n// It has more.\ntype T struct {\n\tA int\n\tB string\n}\n\nfunc (t *T) M(a int) error {\n\treturn nil\n}\n\nfunc F(a int) (int, error) {\n\treturn a, nil\n}\n",
        {
            "T": "// T is a thing.\ntype T struct\n    A int\n    B string\nfunc (t *T) M(a int) error",
            "F": "func F(a int) (int, error)",
        },
    ),
    "rust": (
        "/// A thing.\npub struct S {\n    a: i32,\n}\nimpl S {\n    pub fn m(&self) -> i32 {\n        1\n    }\n}\npub fn f<T>(a: T) -> T {\n    a\n}\ntrait R {\n    fn g(&self);\n}\n",
        {
            "S": "// A thing.\npub struct S\n    a: i32\nimpl S\n    pub fn m(&self) -> i32",
            "f": "pub fn f<T>(a: T) -> T",
            "R": "trait R\n    fn g(&self);",
        },
    ),
    "java": (
        "/** A thing. */\npublic class A extends B {\n    private int x = 1;\n    public A() {}\n    /** Doc. */\n    public int m(int a) {\n        return a;\n    }\n}\n",
        {"A": "// A thing.\npublic class A extends B\n    private int x = 1;\n    public A()\n    public int m(int a)"},
    ),
    "c": (
        "int f(int a);\n\n#ifdef X\nstatic char *f(int a)\n{\n    return 0;\n}\n#endif\nstruct S {\n    int a;\n};\ntypedef struct {\n    int b;\n} Q;\n",
        {"f": "static char *f(int a)", "S": "struct S\n    int a;", "Q": "typedef struct\n    int b;"},
    ),
    "cpp": (
        "namespace n {\n// Adds.\ntemplate <typename T>\nT f(T a) {\n    return a;\n}\nclass A : public B {\npublic:\n    int x;\n    int m() const { return 1; }\n    void g();\n};\n}\n",
        {
            "f": "// Adds.\ntemplate <typename T>\nT f(T a)",
            "A": "class A : public B\n    public\n    int x;\n    int m() const\n    void g();",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("language", "name"), [(language, name) for language, (_, names) in DEFINITIONS.items() for name in names]
)
def test_definition(language, name):
    text, names = DEFINITIONS[language]
    assert definition(language, text, name) == names[name]


def test_an_outline_is_bounded():
    fields = "".join(f"    f{i}: int = {'1 + ' * 100}1\n" for i in range(100))
    outline = definition("python", f"class A:\n{fields}", "A")
    assert len(outline.splitlines()) == 30
    assert max(map(len, outline.splitlines())) <= 160


@pytest.mark.parametrize("language", ["json", "yaml", "html", "css"])
def test_data_defines_nothing(language):
    assert definition(language, "a {}", "a") is None
