"""`ld3m completion`: a script that lets a shell complete commands, options and their choices."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from ld3m.cli.commands import Command, Positional
from ld3m.cli.form import bare, is_positional, metavar

_SHELLS = {
    "bash": """_ld3m() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
    [[ $command == prior && $COMP_CWORD -gt 2 ]] && command="prior ${{COMP_WORDS[2]}}"
    [[ $COMP_CWORD -eq 1 ]] && words='{first}'
    [[ $COMP_CWORD -eq 2 && $command == prior ]] && words='{second}'
    case "$command $before" in
{values}
    esac
    [[ -z $words && $current == -* ]] && case "$command" in
{options}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _ld3m ld3m
""",
}
_SHELLS["zsh"] = "autoload -U +X bashcompinit && bashcompinit\n" + _SHELLS["bash"]


@dataclass(frozen=True)
class CompletionCommand(Command):
    """Print a script that completes commands, options and choices: source <(ld3m completion bash)."""

    shell: Positional[Literal["bash", "zsh"]]
    """Shell that is to complete."""

    def execute(self) -> None:
        from ld3m.cli import COMMANDS

        print(script(self.shell, {name: kind for name, (kind, _) in COMMANDS.items()}), end="")


def script(shell: str, commands: Mapping[str, type[Command]]) -> str:
    """Compose the script of a shell."""
    values, options = [], []
    for name, kind in commands.items():
        found = dict(options_of(kind))
        options.append(f"        '{name}') words='{' '.join([*found, '--help'])}' ;;")
        values += [f"        '{name} {option}') words='{' '.join(w)}' ;;" for option, w in found.items() if w]
    first = " ".join(dict.fromkeys(name.partition(" ")[0] for name in (*commands, "help")))
    second = " ".join(name.partition(" ")[2] for name in commands if " " in name)
    parts = {"first": first, "second": second, "values": "\n".join(values), "options": "\n".join(options)}
    return _SHELLS[shell].format(**parts)


def options_of(kind: type) -> Iterator[tuple[str, list[str]]]:
    """Yield each option of a command with the words that it takes."""
    for own in fields(kind):
        nested: Any = bare(own.type)
        if is_dataclass(nested):
            yield from options_of(nested)  # pyright: ignore[reportArgumentType]
        elif not is_positional(own):
            found = re.search(r"\{(.*)\}", metavar(own))
            yield f"--{own.name.replace('_', '-')}", found[1].split(",") if found and own.type is not bool else []
