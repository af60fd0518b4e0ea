"""`trimtab completion`: the completion script for bash, zsh or fish, made from the parser.

It completes commands, options, their choices, and files; the script needs no Trimtab to run.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from trimtab import cli

__all__ = ["add_arguments", "run"]

_EPILOG: Final = """\
bash:  trimtab completion bash > ~/.local/share/bash-completion/completions/trimtab
zsh:   trimtab completion zsh > "${fpath[1]}/_trimtab"
fish:  trimtab completion fish > ~/.config/fish/completions/trimtab.fish"""

# Metavars whose values are files or directories.
_FILES: Final = ("FILE", "DIR", "DIRECTORY", "PATH", "OUT")

# A line of the shell's list.
_MOST_HELP: Final = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class _Argument:
    """An option (flags, long one first) or a positional (no flags), and what it takes: one of
    choices, a file, or a value that cannot be completed; `value` is False for a switch."""

    flags: tuple[str, ...]
    help: str
    value: bool
    choices: tuple[str, ...]
    file: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])
    parser.epilog = _EPILOG


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell]
    print("\n".join(make(_commands())))
    return 0


def _commands() -> dict[str, tuple[str, list[_Argument]]]:
    return {name: (summary, _arguments(name)) for name, summary in cli.COMMANDS.items()}


def _arguments(command: str) -> list[_Argument]:
    try:
        whole = cli.parser([command])
    except ImportError:
        return []  # a package that this command needs is not installed
    subparsers = next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
    return [_argument(action) for action in subparsers.choices[command]._actions]


def _argument(action: argparse.Action) -> _Argument:
    text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
    text = text % {**vars(action), "prog": "trimtab"} if "%" in text else text
    name = str(action.metavar or action.dest).upper()
    return _Argument(
        flags=tuple(sorted(action.option_strings, key=len, reverse=True)),
        help=" ".join(text.split())[:_MOST_HELP],
        value=action.nargs != 0,
        choices=tuple(str(c) for c in action.choices or ()),
        file=any(name.endswith(word) for word in _FILES),
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _bash(commands: dict[str, tuple[str, list[_Argument]]]) -> Iterator[str]:
    yield "# bash completion of trimtab; written by `trimtab completion bash`"
    yield "_trimtab() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word"
    yield '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield "        [[ $word != -* ]] && command=$word && break"
    yield "    done"
    yield "    local words= files="
    yield "    case $command in"
    yield f"    '') words={_quoted(' '.join([*commands, '--help', '--version']))} ;;"
    for name, (_, arguments) in commands.items():
        flags = " ".join(f for a in arguments for f in a.flags)
        bare = [a for a in arguments if not a.flags]
        yield f"    {name})"
        yield "        case $prev in"
        for one in arguments:
            if one.flags and one.value:
                takes = "files=1" if one.file else f"words={_quoted(' '.join(one.choices))}"
                yield f"        {'|'.join(one.flags)}) {takes} ;;"
        free = f"words={_quoted(' '.join(c for a in bare for c in a.choices))}"
        if any(a.file for a in bare):
            free += " files=1"
        yield f"        *) if [[ $cur == -* ]]; then words={_quoted(flags)}; else {free}; fi ;;"
        yield "        esac ;;"
    yield "    esac"
    yield '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")'
    yield "    if [[ -n $files ]]; then"
    yield "        compopt -o filenames 2>/dev/null"
    yield '        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")'
    yield "    fi"
    yield "}"
    yield "complete -F _trimtab trimtab"


def _zsh(commands: dict[str, tuple[str, list[_Argument]]]) -> Iterator[str]:
    def escaped(text: str) -> str:
        return text.translate({ord(c): f"\\{c}" for c in "\\[]:"})

    yield "#compdef trimtab"
    yield "# zsh completion of trimtab; written by `trimtab completion zsh`"
    yield "_trimtab() {"
    yield "    local -a commands"
    yield "    commands=("
    for name, (summary, _) in commands.items():
        yield f"        {_quoted(f'{name}:{escaped(summary)}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    local command=$words[2]"
    yield '    words=("${(@)words[2,-1]}")'
    yield "    (( CURRENT-- ))"
    yield "    case $command in"
    for name, (_, arguments) in commands.items():
        specs = []
        for one in arguments:
            takes = f"({' '.join(one.choices)})" if one.choices else "_files" if one.file else " "
            if not one.flags:
                specs.append(f"*:argument:{takes}")
            for flag in one.flags:
                value = f":value:{takes}" if one.value else ""
                specs.append(f"{flag}[{escaped(one.help)}]{value}")
        # One rest argument is all that _arguments takes.
        rest = [s for s in specs if s.startswith("*")]
        kept = [s for s in specs if not s.startswith("*")] + rest[:1]
        yield f"    {name}) _arguments {' '.join(_quoted(s) for s in kept)} ;;"
    yield "    esac"
    yield "}"
    yield '_trimtab "$@"'


def _fish(commands: dict[str, tuple[str, list[_Argument]]]) -> Iterator[str]:
    yield "# fish completion of trimtab; written by `trimtab completion fish`"
    yield "complete -c trimtab -f"
    for name, (summary, _) in commands.items():
        yield f"complete -c trimtab -n __fish_use_subcommand -a {name} -d {_double(summary)}"
    for name, (_, arguments) in commands.items():
        when = f"-n '__fish_seen_subcommand_from {name}'"
        for one in arguments:
            line = f"complete -c trimtab {when}"
            for flag in one.flags:
                line += f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}"
            if one.flags and one.value:
                line += " -r"
            if one.file:
                line += " -F"
            if one.choices:
                line += f" -a {_double(' '.join(one.choices))}"
            if one.flags or one.choices or one.file:
                yield f"{line} -d {_double(one.help)}" if one.help else line


def _double(text: str) -> str:
    """Quoted for fish, which knows no other escapes within double quotes."""
    return '"' + text.translate({ord(c): f"\\{c}" for c in '\\"$'}) + '"'
