"""Typical use in real editors: the same scenarios in Neovim and in VS Code, on nano.

Nothing here depends on what the model says.
"""

from tests.editors import neovim
from tests.editors.editor import Ghost
from tests.editors.places import FIRST_GHOST_S, PLACES, names, until

NOWHERE = "/nowhere/bin/fimserver"
SMILE = "\N{GRINNING FACE}"


def accept(editor, ghost):
    wanted = ghost.within(editor.lines())
    editor.accept()
    editor.wait(f"{wanted} after accepting", lambda: editor.lines() == wanted)


def test_typing_shows_ghost_text_and_accepting_makes_it_text(editor):
    ghost = until(editor, bool)
    accept(editor, ghost)
    assert editor.before_cursor() == "\n".join(editor.lines())
    assert editor.status().startswith(("ar", "dllm"))


def test_ghost_text_is_typed_through(editor):
    ghost = until(editor, lambda text: len(text.split("\n")[0]) >= 3)
    for typed in (1, 2):
        editor.type(ghost.text[typed - 1])
        rest = Ghost(ghost.row, ghost.column + typed, ghost.text[typed:])
        assert editor.settle() == rest
    accept(editor, rest)


def test_a_word_is_accepted_and_the_rest_stays(editor):
    ghost = until(editor, lambda text: len(text.split("\n")[0].split()) >= 2)
    before = editor.before_cursor()
    editor.accept_word()
    editor.wait("a word of it", lambda: editor.before_cursor() != before)
    taken = editor.before_cursor().removeprefix(before)
    assert taken
    assert ghost.text.startswith(taken)
    assert len(taken.split()) <= 1
    assert editor.settle().text == ghost.text[len(taken) :]


def test_a_line_is_accepted_and_the_rest_stays(editor):
    ghost = until(editor, lambda text: len([line for line in text.split("\n") if line.strip()]) >= 2)
    before = editor.before_cursor()
    editor.accept_line()
    editor.wait("a line of it", lambda: editor.before_cursor() != before)
    taken = editor.before_cursor().removeprefix(before)
    assert taken.strip()
    assert ghost.text.startswith(taken)
    assert taken.strip("\n").count("\n") == 0
    rest = editor.settle()
    accept(editor, rest)
    assert editor.before_cursor() == before + ghost.text


def test_dismissed_ghost_text_is_gone_and_typing_goes_on(editor):
    until(editor, bool)
    before = editor.lines()
    editor.dismiss()
    editor.wait("no ghost text", lambda: editor.ghost() is None)
    assert editor.lines() == before
    editor.type("zz")
    assert editor.lines() == [*before[:-1], before[-1] + "zz"]


def test_candidates_are_cycled_and_the_one_on_the_screen_is_accepted(editor):
    def another():
        for content, typed in PLACES:
            editor.open(next(names), content)
            editor.type(typed)
            if (first := editor.settle()) and (second := editor.another(first)):
                return first, second
        return None

    first, second = editor.wait("a place with two candidates", another, FIRST_GHOST_S)
    assert first.text != second.text
    accept(editor, second)


def test_the_route_is_switched_from_the_menu(editor):
    until(editor, bool)
    for route in ("dllm", "ar"):
        editor.choose_route(route)
        until(editor, bool)
        editor.wait(f"{route} in the status", lambda route=route: editor.status().startswith(route))
    editor.choose_route("auto")


def test_an_empty_answer_is_explained(editor):
    editor.open(next(names).replace(".py", ".env"), b"API_URL=http://localhost\n")
    editor.type("API_TOKEN=")
    assert editor.settle() is None
    told = editor.explanation()
    assert "secrets" in told
    assert "excluded" in told


def test_a_file_on_the_deny_list_stays_silent(editor):
    until(editor, bool)
    content, typed = PLACES[0]
    editor.open("production.env", content)
    editor.type(typed)
    assert editor.settle() is None
    editor.open(next(names), content)
    editor.type(typed)
    editor.settle()
    assert editor.lines()[-1] == typed.split("\n")[-1]


def test_the_host_is_killed_in_the_middle_and_typing_goes_on(editor, runtime):
    until(editor, bool)
    killed = neovim.processes(runtime, "host")
    assert killed
    for host in killed:
        host.kill()
    before = editor.lines()
    editor.type("xyz")
    editor.settle()
    assert editor.lines() == [*before[:-1], before[-1] + "xyz"]
    until(editor, bool)
    assert not {host.pid for host in killed} & {host.pid for host in neovim.processes(runtime, "host")}


def test_two_windows_share_one_host(editor, window, runtime, tmp_path_factory):
    until(editor, bool)
    with window(tmp_path_factory.mktemp("other")) as other:
        until(other, bool)
        assert len(neovim.processes(runtime, "host")) == 1
    accept(editor, until(editor, bool))


def test_crlf_and_emoji_in_the_document(editor):
    places = [(f"# {SMILE} é\n".encode() + content, f"{typed}'{SMILE}' + ") for content, typed in PLACES]
    places += [(f"# {SMILE} é\n".encode() + content, f"  # {SMILE}{typed}") for content, typed in PLACES]
    ghost = until(editor, bool, [(content.replace(b"\n", b"\r\n"), typed) for content, typed in places])
    accept(editor, ghost)
    assert "\r" not in "".join(editor.lines())
    assert editor.save().decode() == "\r\n".join(editor.lines()) + editor.final_newline("\r\n")


def test_undo_after_accepting_gives_the_text_before(editor):
    ghost = until(editor, bool)
    before = editor.lines()
    accept(editor, ghost)
    editor.undo()
    editor.wait("the text before", lambda: editor.lines() == before)


def test_without_the_program_nobody_is_disturbed_and_the_status_says_it(window, tmp_path):
    with window(tmp_path, [NOWHERE]) as editor:
        editor.open_without_server("alone.py", b"")
        editor.type("def add(a, b):\n    return ")
        assert editor.ghost() is None
        (told,) = editor.wait("one word of it", editor.complaints)
        assert NOWHERE in told
        assert "program" in editor.status()
