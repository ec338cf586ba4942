"""Whole comparisons: from a command to a report, interrupted ones too."""

import json

import pytest
from click.testing import CliRunner

from fimserver.ab import compare as comparing
from fimserver.ab.compare import ComparisonRequest, ItemSource, compare
from fimserver.ab.items.traces import Change, Open, Patch, Trace, write_trace
from fimserver.ab.schema import PairedRow, Report, Timeline, merge, read_report
from fimserver.cli import main
from fimserver.errors import InputError
from tests.ab.sample import make_report

CODE = 'def area(width, height):\n    """The area."""\n    size = width * height\n    return size\n\n\ndef double(x):\n    y = 2 * x\n    return y\n'
FLAGS = {"max_tokens": 4, "device": "cpu"}


@pytest.fixture
def repo(tmp_path):
    folder = tmp_path / "repo"
    folder.mkdir()
    for name in ("one.py", "two.py"):
        (folder / name).write_text(CODE.replace("area", name[:3]))
    return folder


def asked(repo, out, **changes):
    return ComparisonRequest(
        ("dllm", "ar"), ItemSource(repo, None, (), 4, 0)._replace(**changes), FLAGS, out, "fimserver ab"
    )


def invoked(*arguments):
    return CliRunner().invoke(main, ["ab", *map(str, arguments)])


def test_a_repository_becomes_a_report_a_page_and_a_table(repo, tmp_path):
    out = tmp_path / "out"
    done = invoked(
        "--a", "dllm", "--b", "ar", "--repo", repo, "--limit", 4, "--seed", 3, "--max-tokens", 4, "--out", out
    )
    assert done.exit_code == 0, done.output
    assert "A dllm (nano) against B ar (nano): 4 items" in done.output
    report = read_report(out / "report.json")
    assert (len(report.rows), report.finished, report.source["kind"]) == (4, True, "repo")
    assert report.source["seed"] == 3
    assert {row.a.route for row in report.rows} == {"dllm"}
    assert report.arms["b"].models == {"ar": "nano"}
    assert report.environment["torch"]
    assert "aggregates" in json.loads((out / "report.json").read_text())
    assert (out / "report.html").read_text().lower().startswith("<!doctype html>")
    assert not (out / "unfinished.jsonl").exists()


def test_an_interrupted_run_keeps_its_rows_and_goes_on(repo, tmp_path, monkeypatch):
    out, real = tmp_path / "out", comparing.run

    def broken(*arguments):
        for count, row in enumerate(real(*arguments)):
            yield row
            if count == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "run", broken)
    begun = compare(asked(repo, out))
    assert (begun.finished, len(begun.rows)) == (False, 2)
    assert not read_report(out / "report.json").finished
    monkeypatch.setattr(comparing, "run", real)
    done = compare(asked(repo, out))
    assert (done.finished, len(done.rows)) == (True, 4)
    assert done.rows[:2] == begun.rows


def trace(tmp_path, name):
    events = (
        Open(t=0.0, doc=1, language="python", name="x.py", text="x = 1\n"),
        Change(t=1.0, doc=1, edits=(Patch(1, 0, 1, 0, "y"),)),
    )
    path = tmp_path / name
    write_trace(path, Trace(name, events, started="", made="by hand"))
    return path


def test_an_interrupted_replay_goes_on_with_the_next_trace(tmp_path, monkeypatch):
    played, row = [], make_report(1).rows[0]

    def played_back(trace, *_):
        played.append(trace.name)
        if len(played) == 4:
            raise KeyboardInterrupt
        return trace

    monkeypatch.setattr(comparing, "_replay", played_back)
    monkeypatch.setattr(
        comparing,
        "rows_of_replay",
        lambda name, _a, _b, _first: [
            PairedRow.model_validate(row.model_dump() | {"item": name, "group": name})
        ],
    )
    monkeypatch.setattr(
        comparing, "timelines", lambda name, _a, _b: [Timeline(group=name, side="a", marks=())]
    )
    files = (trace(tmp_path, "one.jsonl"), trace(tmp_path, "two.jsonl"))
    whole = ComparisonRequest(
        ("dllm", "ar"), ItemSource(None, None, files, 4, 0), FLAGS, tmp_path / "out", "fimserver ab"
    )
    begun = compare(whole)
    assert (begun.finished, [r.group for r in begun.rows]) == (False, ["one.jsonl"])
    done = compare(whole)
    assert (done.finished, [r.group for r in done.rows]) == (True, ["one.jsonl", "two.jsonl"])
    assert len(played) == 6


def test_a_token_of_a_replayed_arm_goes_to_its_server_and_nowhere_else(tmp_path, monkeypatch):
    seen, row = [], make_report(1).rows[0]

    def played(trace, command, *, speed, env):
        seen.append((command, env))
        return trace

    monkeypatch.setattr(comparing, "replay", played)
    monkeypatch.setattr(comparing, "rows_of_replay", lambda *_: [row])
    monkeypatch.setattr(comparing, "timelines", lambda *_: [])
    source = ItemSource(None, None, (trace(tmp_path, "one.jsonl"),), 4, 0)
    report = compare(
        ComparisonRequest(("http://box,token=s3cret", "ar"), source, {}, tmp_path / "out", "fimserver ab")
    )
    assert report.finished
    assert [env["FIMSERVER_TOKEN"] for _, env in seen] == ["s3cret", ""]
    assert "--connect=http://box" in seen[0][0]
    assert not any("s3cret" in word for command, _ in seen for word in command)
    assert (
        "s3cret"
        not in (tmp_path / "out" / "report.json").read_text() + (tmp_path / "out" / "report.html").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give two arms and a folder"),
        (
            ("--a", "dllm", "--b", "ar", "--out", "OUT"),
            "give one of --repo DIR, --spans FILE.jsonl and --trace",
        ),
        (("--a", "dllm", "--b", "ar", "--out", "OUT", "--repo", "DIR", "--spans", "x"), "give one of"),
        (("--a", "dllm", "--b", "nope", "--out", "OUT", "--repo", "REPO"), "'nope' is not a route"),
        (("--a", "dllm", "--b", "ar", "--out", "OUT", "--repo", "DIR"), "no source file"),
        (("--a", "dllm", "--b", "ar", "--out", "OUT", "--repo", "missing"), "missing"),
        (("--a", "dllm", "--b", "ar", "--out", "OUT", "--spans", "missing"), "cannot be read"),
        (("--a", "dllm", "--b", "ar", "--out", "OUT", "--trace", "missing", "--warm"), "--warm is for spans"),
        (("--a", "dllm", "--b", "ar", "--out", "OUT", "--trace", "BAD"), "BAD.jsonl:3"),
    ],
)
def test_what_cannot_be_compared_is_one_line_that_says_what_to_do(arguments, said, repo, tmp_path):
    (tmp_path / "empty").mkdir()
    bad = trace(tmp_path, "BAD.jsonl")
    bad.write_text(bad.read_text().replace("[1, 0, 1, 0", "[9, 0, 9, 0").replace("[1,0,1,0", "[9,0,9,0"))
    places = {"OUT": tmp_path / "out", "DIR": tmp_path / "empty", "REPO": repo, "BAD": bad}
    done = invoked(*(places.get(word, word) for word in arguments))
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_report_is_made_again_and_several_are_merged(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        made = make_report(30, seed=seed)
        rows = tuple(row.model_copy(update={"item": f"{name} {row.item}"}) for row in made.rows)
        comparing.write(made.model_copy(update={"rows": rows}), tmp_path / name)
    before = (tmp_path / "one" / "report.json").read_bytes()
    (tmp_path / "one" / "report.html").unlink()
    assert invoked("report", tmp_path / "one" / "report.json").exit_code == 0
    assert (tmp_path / "one" / "report.json").read_bytes() == before
    assert (tmp_path / "one" / "report.html").exists()
    done = invoked("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both")
    assert done.exit_code == 0, done.output
    assert len(read_report(tmp_path / "both" / "report.json").rows) == 60


def test_reports_of_different_arms_are_not_merged():
    one, two = make_report(2), make_report(2)
    other = two.model_copy(
        update={
            "arms": {side: arm.model_copy(update={"spec": f"{arm.spec}!"}) for side, arm in two.arms.items()}
        }
    )
    with pytest.raises(InputError, match="different arms"):
        merge([one, other])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("[]", "has schema None"),
        ('{"schema": 99}', "has schema 99, this fimserver reads 1"),
        ('{"schema": 1}', "Field required"),
    ],
)
def test_a_file_that_is_no_report_is_said(tmp_path, text, said):
    (tmp_path / "report.json").write_text(text)
    done = invoked("report", tmp_path / "report.json")
    assert done.exit_code == 2
    assert said in done.output


def test_two_versions_are_noted():
    report: Report = make_report(1)
    arms = {side: arm.model_copy(update={"version": f"0.{side}"}) for side, arm in report.arms.items()}
    assert list(comparing._notes(arms)) == ["the arms are different versions of fimserver: a 0.a, b 0.b"]
    assert not list(comparing._notes(dict(report.arms)))
