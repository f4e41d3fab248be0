"""The form of a command line: a command's fields by group, each with its choices and its default in words."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args, get_origin

import tyro

from ld3m.cli.words import DEFAULTS, GROUPS, choices, preset_words
from ld3m.config.fields import choices_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyCommand = TypeVar("AnyCommand")


def read_command(kind: type[AnyCommand], argv: list[str], prog: str, base: AnyCommand | None = None) -> AnyCommand:
    """Read a command line; tyro prints the help, or what it refuses, and exits with status 2.

    Args:
        base: holds the defaults, instead of those of the class.

    Raises:
        ConfigError: settings that contradict each other.
    """
    asks_for_help = bool({"-h", "--help"} & set(argv))
    options = fields(cast("type[DataclassInstance]", kind))
    parts = {one.name: _parts(one) for one in options}
    members = []
    for own in options:
        if not parts[own.name]:
            members.append((own.name, *_member(kind, own, base, asks_for_help)))
        for group, names in parts[own.name].items():
            nested = _group(bare(own.type), group, names, asks_for_help, getattr(base, own.name, None))
            members.append((group, Annotated[nested, tyro.conf.OmitArgPrefixes], field(default_factory=nested)))
    form = make_dataclass(kind.__name__, members, kw_only=True)
    form.__doc__ = kind.__doc__
    read = tyro.cli(form, prog=prog, args=argv)
    values: dict[str, Any] = {}
    for own in options:
        given = {k: v for group in parts[own.name] for k, v in vars(getattr(read, group)).items()}
        values[own.name] = bare(own.type)(**given) if parts[own.name] else getattr(read, own.name)
    return kind(**values)


def _parts(own: Field[Any]) -> dict[str, tuple[str, ...]]:
    """Return the groups that a nested dataclass of options is shown in; nothing for a plain option."""
    kind: Any = bare(own.type)
    if not is_dataclass(kind):
        return {}
    names = [one.name for one in fields(kind)]
    table = GROUPS.get(str(getattr(kind, "__name__", "")), {own.name: tuple(names)})
    return {group: tuple(name for name in members if name in names) for group, members in table.items()}


def _group(kind: Any, group: str, names: tuple[str, ...], asks_for_help: bool, base: object) -> type:
    known = {one.name: one for one in fields(kind)}
    members = [(name, *_member(kind, known[name], base, asks_for_help)) for name in names]
    return make_dataclass(group.capitalize(), members, namespace={"__doc__": ""}, kw_only=True)


def _member(kind: Any, own: Field[Any], base: object, asks_for_help: bool) -> tuple[Any, Any]:
    """Return annotation and default of an option."""
    factory = own.default_factory
    default = own.default if factory is MISSING else factory()
    if base is not None:
        default = getattr(base, own.name)
    options: dict[str, Any] = {"help": documentation(kind).get(own.name, "")}
    if asks_for_help:
        if own.type is not bool:
            options["metavar"] = metavar(own)
        if default is None or default == ():
            options["help_behavior_hint"] = f"(default: {default_words(kind, own.name)})"
    annotation = Annotated[own.type, tyro.conf.arg(**options)]  # pyright: ignore[reportInvalidTypeForm]
    return annotation, field() if default is MISSING else field(default=default)


def default_words(kind: type, name: str) -> str:
    """Say what holds where an option is left out that has no default of its own."""
    words = preset_words(name) if kind.__name__ == "DistillConfig" else ""
    return words or DEFAULTS.get(f"{kind.__name__}.{name}") or DEFAULTS.get(name, "none")


def metavar(own: Field[Any]) -> str:
    """Return what stands for an option's value: its choices, or its type; and for an argument its name."""
    kind = bare(own.type)
    if is_positional(own):
        return own.name.upper()
    if words := choices(own.name) or choices_of(kind):
        return _repeated(kind, f"{{{','.join(words)}}}")
    kinds = [one for one in get_args(kind) if one is not type(None)] if _is_union(kind) else [kind]
    return "|".join(_repeated(one, _type_word(one)) for one in kinds)


def is_positional(own: Field[Any]) -> bool:
    """Whether a field is an argument without dashes."""
    return get_args(tyro.conf.Positional[int])[1] in get_args(own.type)[1:]


def _repeated(kind: Any, word: str) -> str:
    kinds = get_args(kind) if _is_union(kind) else (kind,)
    return f"[{word} ...]" if any(get_origin(one) is tuple for one in kinds) else word


def _type_word(kind: Any) -> str:
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return "{True,False}" if kind is bool else str(getattr(kind, "__name__", kind)).upper()


def _is_union(kind: Any) -> bool:
    return type(None) in get_args(kind) or str(get_origin(kind)) in ("<class 'types.UnionType'>", "typing.Union")


def bare(annotation: Any) -> Any:
    """Return a type without what is said beside it."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


@functools.cache
def documentation(kind: type) -> Mapping[str, str]:
    """Return what stands below each field of a dataclass and its bases, on one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for line, below in zip(definition.body, definition.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and is_text:
                found[line.target.id] = " ".join(str(below.value.value).split())  # pyright: ignore[reportAttributeAccessIssue]
    return found
