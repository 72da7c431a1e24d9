"""Messages stay short for any content of the files."""

import logging
import time
from pathlib import Path

import pytest

from sam2_3dmed_jax.commands.command_line import Parser, _EscapedLog, exit_code
from sam2_3dmed_jax.errors import LINE, UserError, counted, listed, message_line, path_errors_as_mistakes


def test_a_list_has_its_first_names_and_the_number_of_the_others():
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed([]) == ""
    assert listed([1, 2, 3], most=2, separator="; ") == "1; 2 and 1 more"


def test_a_name_in_a_list_keeps_its_start_and_its_end():
    name = "start" + "x" * 1000 + "end"
    assert len(listed([name])) <= 80
    assert listed([name]).startswith("start") and listed([name]).endswith("end")


def test_groups_have_counts_and_share_the_examples():
    groups = {"missing": [f"m{at}" for at in range(300)], "unexpected": ["u"], "misshaped": []}
    assert counted(groups) == "300 missing: m0, m1, m2, ...; 1 unexpected: u"


@pytest.mark.parametrize("length", [1, 50, 5000])
def test_groups_are_short_whatever_their_names(length):
    groups = {what: [f"{at}" + "x" * length for at in range(1000)] for what in ("missing", "unexpected", "misshaped")}
    text = counted(groups)
    assert len(text) <= 250 and text.startswith("1000 missing: 0x") and "1000 misshaped" in text


def test_a_short_message_is_only_put_on_one_line():
    assert message_line("a.pt: two\n  lines") == "a.pt: two lines"


def test_a_long_message_keeps_the_name_of_the_file_and_the_fix():
    message = f"/folder/{'long/' * 30}run/model.pt: it has {'x, ' * 200}; download it again"
    line = message_line(message, hint=" (more)")
    assert len(line) == LINE
    assert line.startswith(".../run/model.pt: it has x,") and line.endswith("download it again (more)")


def test_a_long_path_alone_loses_only_its_first_folders():
    message = f"/folder/{'long/' * 60}run/model.pt: it is empty; download it again"
    assert message_line(message) == ".../run/model.pt: it is empty; download it again"


@pytest.mark.parametrize("error, code", [(UserError("x" * 34_000), 2), (ValueError("y\n" * 34_000), 1)])
def test_the_command_line_prints_at_most_300_characters(error, code, capsys):
    def work():
        raise error

    assert exit_code(work, debug=False, after_interrupt="") == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and len(lines[0]) <= 300 and "--debug" in lines[0]


def test_a_long_argument_is_refused_in_a_short_line(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="tool").error("x" * 5000)
    assert len(capsys.readouterr().err.rstrip("\n")) <= 300


def test_debug_prints_the_complete_message_and_its_notes(capsys):
    error = UserError("z" * 1000)
    error.add_note("all of them")

    def work():
        raise error

    exit_code(work, debug=True, after_interrupt="")
    written = capsys.readouterr().err
    assert "z" * 1000 in written and "all of them" in written


def test_a_path_that_the_system_refuses_is_a_mistake_and_a_missing_file_is_not():
    with pytest.raises(UserError, match="File name too long; give another path"), path_errors_as_mistakes():
        Path(300 * "x").stat()
    with pytest.raises(FileNotFoundError), path_errors_as_mistakes():
        Path("missing").stat()


def test_control_characters_and_lone_surrogates_in_a_message_are_escaped():
    assert message_line("a\x1b[2Jb\ud800\nc\u202ed") == "a\\x1b[2Jb\\ud800 c\\u202ed"
    assert message_line("Größe, 大きさ") == "Größe, 大きさ"


def test_a_message_with_a_very_long_word_is_shortened_at_once():
    start = time.process_time()
    assert len(message_line("x" * 10**6 + " a/b")) == LINE
    assert time.process_time() - start < 1  # a quadratic search takes hours


def test_names_with_control_characters_or_lone_surrogates_are_printed_as_escapes(capsys):
    name = "case\x1b[2J\x07\ud800\tä\x85"
    assert exit_code(lambda: print(f"done\n{name}"), False, "") == 0
    assert capsys.readouterr().out == "done\ncase\\x1b[2J\\x07\\ud800\tä\\x85\n"


def test_notes_of_a_run_are_escaped_line_by_line():
    record = logging.LogRecord("run", logging.WARNING, "", 1, "%s is damaged\nagain", ("a\x1b[2J",), None)
    assert _EscapedLog("%(message)s").format(record) == "a\\x1b[2J is damaged\nagain"


def test_an_error_of_a_library_that_is_no_exception_is_one_line_with_exit_code_1(capsys):
    class PanicError(BaseException):
        pass

    def work():
        raise PanicError("called `Option::unwrap()` on a `None` value")

    assert exit_code(work, False, "") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("a bug: PanicError: called `Option::unwrap()`")
