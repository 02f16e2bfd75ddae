"""The command line: what it refuses, in one line and with status 2, and what it asks."""

import subprocess
import sys

import pytest

from pylandscape import cli
from pylandscape.study import StudyError, quick_config


@pytest.fixture(autouse=True)
def _no_data_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("PYLANDSCAPE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty-cache"))


@pytest.fixture
def calls(monkeypatch):
    """What the command asks the study to do, without doing it."""
    made = []

    def record(out, config, *, data, existing):
        made.append({"out": out, "config": config, "data": data, "existing": existing})
        return {"claims": [{"verdict": "mixed", "statement": "A claim."}]}

    monkeypatch.setattr(cli, "run_study", record)
    return made


def with_study(folder):
    folder.mkdir()
    (folder / "STUDY.md").write_text("a page")
    return folder


def error_line(capsys, status, *tokens):
    assert cli.main(list(map(str, tokens))) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("pylandscape: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["study"], "--out"),
        (["study", "--out", "x", "--seed", "many"], "seed"),
        (["study", "--out", "x", "--seed", "-1"], "must not be negative"),
        (["study", "--out", "x", "--full", "--quick"], "not be given together"),
        (["study", "--out", "x", "--resume", "--overwrite"], "not be given together"),
        (["study", "--out", "x", "--colour"], "--colour"),
        (["paint"], "paint"),
    ],
)
def test_a_wrong_request_is_one_line(capsys, monkeypatch, tmp_path, tokens, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in error_line(capsys, 2, *tokens)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_data_root_is_one_line(capsys, tmp_path):
    line = error_line(capsys, 2, "study", "--out", tmp_path / "s", "--data", tmp_path / "no")
    assert "must be a folder with MNIST/raw" in line
    assert not (tmp_path / "s").exists()


def test_full_without_data_is_one_line(capsys, tmp_path):
    line = error_line(capsys, 2, "study", "--out", tmp_path / "s", "--full")
    assert "only the embedded subset" in line


def test_an_output_folder_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = error_line(capsys, 2, "study", "--out", tmp_path / "file" / "s", "--quick")
    assert "must be writable" in line


def test_an_existing_study_is_refused_where_nobody_can_be_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    out = with_study(tmp_path / "s")
    line = error_line(capsys, 2, "study", "--out", out, "--quick")
    assert "--resume" in line
    assert "--overwrite" in line
    assert (out / "STUDY.md").read_text() == "a page"


@pytest.mark.parametrize(
    ("answers", "existing"),
    [(["r"], "resume"), (["what", "", "Overwrite"], "overwrite")],
)
def test_on_a_terminal_it_asks(calls, monkeypatch, tmp_path, answers, existing):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    given = iter(answers)
    monkeypatch.setattr("builtins.input", lambda question: next(given))
    assert cli.main(["study", "--out", str(with_study(tmp_path / "s"))]) == 0
    assert calls[0]["existing"] == existing
    assert next(given, None) is None


def test_cancelling_changes_nothing(calls, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "c")
    assert "cancelled" in error_line(capsys, 2, "study", "--out", with_study(tmp_path / "s"))
    assert calls == []


def test_options_reach_the_study(calls, capsys, tmp_path):
    status = cli.main(
        ["study", "--out", str(tmp_path), "--seed", "7", "--quick", "--yes", "--data", "there"]
    )
    assert status == 0
    assert calls[0]["config"] == quick_config(seed=7)
    assert calls[0]["existing"] == "overwrite"
    assert str(calls[0]["data"]) == "there"
    assert "mixed" in capsys.readouterr().out


def test_ctrl_c_is_one_line(capsys, monkeypatch, tmp_path):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_study", interrupted)
    assert "--resume" in error_line(capsys, 130, "study", "--out", tmp_path)


def test_errors_that_are_bugs_keep_their_traceback(monkeypatch, tmp_path):
    def broken(*args, **options):
        raise ValueError("a bug")

    monkeypatch.setattr(cli, "run_study", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["study", "--out", str(tmp_path)])


def test_study_error_is_no_programming_error():
    assert not issubclass(StudyError, (ValueError, OSError))


def test_doctor_prints_the_build(capsys, monkeypatch):
    monkeypatch.setattr(cli.build, "report", lambda: "built with care")
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == "built with care\n"


def test_the_package_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "pylandscape", "paint"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]  # torch may have warned of something before
    assert last.startswith("pylandscape: ")
    assert "paint" in last


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == cli.__version__
