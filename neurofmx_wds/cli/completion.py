"""The command that prints a script for the shell, which then completes commands and options: ``completion``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from .output import show

PROGRAM = "neurofmx-wds"

_BASH = """\
_neurofmx_wds() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="" words="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in {commands}) command="${{COMP_WORDS[i]}}"; break;; esac
    done
    case "$command $previous" in
{choices}
    esac
    if [[ -z "$words" && "$current" == -* || -z "$command" ]]; then
        case "$command" in
{options}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _neurofmx_wds {program}"""


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    command = commands.add_parser(
        "completion",
        help="a script that makes the shell complete commands and options",
        description=f"Print a script that makes the shell complete the commands and options of {PROGRAM}.",
        epilog="examples:\n"
        f"  {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}\n"
        f"  {PROGRAM} completion zsh >> ~/.zshrc\n"
        f"  {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish",
    )
    command.set_defaults(run=lambda options: _completion(options, commands.choices))
    command.add_argument("shell", choices=sorted(_SCRIPTS), help="which shell")


def _completion(options: argparse.Namespace, commands: Mapping[str, argparse.ArgumentParser]) -> int:
    show(_SCRIPTS[options.shell](commands))
    return 0


def _bash(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    options = [f'            "") words={shlex.quote(" ".join(commands))};;']
    choices = []
    for name, command in commands.items():
        flags = [flag for action in _options(command) for flag in action.option_strings if flag.startswith("--")]
        options.append(f"            {name}) words={shlex.quote(' '.join(flags))};;")
        for action in _options(command):
            if action.choices:
                patterns = "|".join(f'"{name} {flag}"' for flag in action.option_strings)
                choices.append(f"        {patterns}) words={shlex.quote(' '.join(map(str, action.choices)))};;")
    return _BASH.format(
        commands="|".join(commands), choices="\n".join(choices), options="\n".join(options), program=PROGRAM
    )


def _zsh(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash(commands)}"


def _fish(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    lines = []
    for name, command in commands.items():
        about = shlex.quote(" ".join((command.description or "").split()))
        lines.append(f"complete -c {PROGRAM} -n __fish_use_subcommand -a {name} -d {about}")
        for action in _options(command):
            for flag in (each for each in action.option_strings if each.startswith("--")):
                line = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}"
                line += f" -d {shlex.quote(' '.join((action.help or '').replace('%%', '%').split()))}"
                if action.choices:
                    line += f" -x -a {shlex.quote(' '.join(map(str, action.choices)))}"
                lines.append(line)
    return "\n".join(lines)


def _options(command: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (action for action in command._actions if action.option_strings)


_SCRIPTS = {"bash": _bash, "fish": _fish, "zsh": _zsh}
