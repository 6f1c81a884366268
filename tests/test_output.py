"""What the commands print: remedies name commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from counting import some

import neurofmx_wds
from neurofmx_wds import errors
from neurofmx_wds.cli.main import main
from neurofmx_wds.cli.output import COMMANDS, show_error

PACKAGE = Path(neurofmx_wds.__file__).parent


@pytest.mark.parametrize("advice", COMMANDS)
def test_a_remedy_is_shown_with_a_command_that_exists(advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_error(str(errors.ShardError("is damaged", file="a.tar", remedy=f"delete it, or {advice}")))
    shown = capsys.readouterr().err
    assert shown == f"a.tar: is damaged (delete it, or {advice} with `{COMMANDS[advice]}`)\n"
    words = COMMANDS[advice].removeprefix("python -m neurofmx_wds ").split()
    command, *options = words if words[0].isalpha() else ["convert", *words]
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage = capsys.readouterr().out
    assert all(option in usage for option in options)


def test_every_piece_of_advice_has_its_command() -> None:
    advice = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}
    assert advice == {*COMMANDS, errors.RESTORE}
    assert any(known in errors.RESTORE for known in COMMANDS)


@pytest.mark.parametrize("room", ["format", "loading", "nwb", "order", "storage"])
def test_rooms_below_the_command_line_name_no_command(room: str) -> None:
    for path in some((PACKAGE / room).rglob("*.py")):
        assert not re.search(r"python -m neurofmx_wds|``?[a-z]+ --[a-z]|\(--[a-z]", path.read_text()), path
