import sys

import pytest

from r1parallel.errors import UserError, run_command


def test_a_command_that_returns_ends_normally_and_gets_its_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tool", "--a", "1"])
    seen = []
    run_command(seen.append)
    assert seen == [["--a", "1"]]


def test_a_user_error_is_one_line_and_status_2(capsys):
    def main(argv):
        raise UserError("file.yaml:3: bad\n  key;  mend it")

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.err == "error: file.yaml:3: bad key; mend it\n"
    assert output.out == ""


def test_an_interrupt_is_status_130(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_programming_error_keeps_its_traceback():
    def main(argv):
        raise ZeroDivisionError("ours to mend")

    with pytest.raises(ZeroDivisionError, match="ours to mend"):
        run_command(main)
