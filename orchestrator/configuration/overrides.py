"""The arguments after a command, rewritten for Hydra, or the mistakes in them.

Hydra stops at the first unknown key. So `key=value` becomes `++key=value`, which sets any key, and validation then
reports all unknown keys at once. Text is taken literally: prompt=Hello, you needs no further quotes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modules.config import Config
from orchestrator.configuration.schema import (
    choices,
    class_at,
    config_classes,
    field_at,
    holds_text,
    is_list,
    nearest,
    nearest_keys,
    shown,
    takes_null,
    takes_text,
    takes_texts,
    typed,
)
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_KEY = re.compile(r"\+{0,2}([A-Za-z_][\w./-]*)=", re.ASCII)


@dataclass(frozen=True)
class Groups:
    """The groups and their options."""

    chosen: Mapping[str, str | None]
    """The command's own groups with the option that each starts with."""
    options: Mapping[str, tuple[str, ...]]
    """The options of every group, including groups of other commands and of the user's own folder."""
    foreign: frozenset[str]
    """Groups that only other commands have."""


@dataclass(frozen=True)
class Reader:
    """The reader of one command's overrides."""

    command: str
    kind: type[Config]
    groups: Groups
    sweeps: bool
    """Whether several values for one key mean several runs."""

    def rewritten(self, text: str, parsed: "Override | None") -> str:
        """Return `text` rewritten for Hydra.

        Args:
            text: one argument.
            parsed: the override that Hydra's grammar reads in it; None if it cannot be parsed.

        Raises:
            ConfigError: it has a mistake, which the message explains in one line.
        """
        key, value = _split(text)
        if parsed is None:
            return f"++{key}={_literal(value)}" if self._takes_text(key, value) else self._unreadable(text)
        key = parsed.key_or_group
        if parsed.is_hydra_override() or parsed.is_delete() or parsed.package is not None:
            return text
        if key in self.groups.options or "/" in key:
            return self._group(parsed, value)
        if wanted := _item_meant(self.kind, key):
            raise ConfigError(f"{shown(text)}: {wanted}")
        swept = parsed.is_sweep_override() and self.sweeps and not _is_glob(parsed)
        if self._takes_text(key, value) and not swept:
            return f"++{key}={_literal(_without_quotes(parsed, value))}"
        if parsed.is_sweep_override() and not swept:
            raise ConfigError(f"{text}: one value is expected; write [a,b] for a list, or add --multirun to run each")
        field = field_at(self.kind, key.split("."))
        items = _literal_items(parsed.value()) if field and holds_text(field) else None
        return f"++{key}={items or value}"

    def _takes_text(self, key: str, value: str) -> bool:
        field = field_at(self.kind, key.split("."))
        if field is None or not takes_text(field) or (value == "null" and takes_null(field)):
            return False
        return not (takes_texts(field) and (value[:1] == "[" or "," in value))

    def _unreadable(self, text: str) -> str:
        key, value = _split(text)
        if key:
            what, example = ("each item", '["…","…"]') if value[:1] == "[" else ("the value", '"…"')
            raise ConfigError(f"{shown(text)}: cannot be read; put {what} in quotes of its own: {key}='{example}'")
        groups = [group for group, options in self.groups.options.items() if value in options]
        remedy = f"did you mean {groups[0]}={value}?" if groups else "write FIELD=VALUE or GROUP=OPTION"
        raise ConfigError(f"{shown(text)}: is neither a field nor a group; {remedy}")

    def _group(self, parsed: "Override", value: str) -> str:
        group = parsed.key_or_group
        if group in self.groups.foreign or group not in self.groups.options:
            raise ConfigError(f"{group}={shown(value)}: {self._no_such_group(group, value)}")
        for option in self._requested_options(parsed, value):
            if option not in self.groups.options[group]:
                raise ConfigError(f"{group}={shown(option)}: {self._no_such_option(group, option)}")
        return f"{'' if group in self.groups.chosen else '+'}{group}={value}"

    def _requested_options(self, parsed: "Override", value: str) -> list[str]:
        if parsed.is_sweep_override():
            if self.sweeps and parsed.is_choice_sweep() and not _is_glob(parsed):
                return list(parsed.sweep_string_iterator())
            remedy = f"list the options, {parsed.key_or_group}=a,b" if self.sweeps else "add --multirun to run each"
            raise ConfigError(f"{parsed.input_line}: one option is expected; {remedy}")
        return [value]

    def _no_such_group(self, group: str, value: str) -> str:
        if kind := class_at(self.kind, [group]):
            fields = ", ".join(f"{group}.{name}" for name in kind.model_fields)
            return f"{self.command} has no options for {group}{self._field_meant(group, value) or f'; set {fields}'}"
        near = nearest(group, list(self.groups.chosen)) or next(iter(nearest_keys(self.kind, [group])), None)
        return f"{self.command} has no such group; " + (f"did you mean {near}?" if near else self._all_groups())

    def _all_groups(self) -> str:
        return f"it has {', '.join(self.groups.chosen)}" if self.groups.chosen else "it has none"

    def _no_such_option(self, group: str, option: str) -> str:
        options = self.groups.options[group]
        near = nearest(option, options)
        remedy = f"; did you mean {group}={near}?" if near else self._field_meant(group, option)
        return f"no such option{remedy} ({group} has {', '.join(options)})"

    def _field_meant(self, group: str, value: str) -> str:
        kind = class_at(self.kind, [group])
        fields = kind.model_fields if kind else {}
        meant = next((name for name, field in fields.items() if value in choices(field)), None)
        if meant is None and "path" in fields and re.search(r"[./*]", value):
            meant = "path"
        if meant is None:
            return ""
        option = "files" if (group, meant) == ("data", "path") and "files" in self.groups.options[group] else None
        return f"; did you mean {f'{group}={option} ' if option else ''}{group}.{meant}={shown(value)}?"


def _split(text: str) -> tuple[str, str]:
    """Return key and value; the key is empty where there is none."""
    found = _KEY.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def _item_meant(kind: type[Config], key: str) -> str:
    """Return what to write for a key that looks for a field in a list itself; empty where it does not."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        field = field_at(kind, parts[:end])
        if field and is_list(field) and not parts[end].isdigit():
            path = ".".join(parts[:end])
            item = ".".join([path, "0", *(parts[end:] if config_classes(field.annotation) else [])])
            return f"{path} is a list; write {item} for its first item, or give all of it, {path}=[…]"
    return ""


def _is_glob(parsed: "Override") -> bool:
    """Return whether the value is glob(…), for which Hydra needs more than the argument: it is no sweep here."""
    return type(parsed.value()).__name__ == "Glob"


def _without_quotes(parsed: "Override", value: str) -> str:
    """Return the text that the user has put in quotes, or else all of `value`."""
    text = parsed.value()
    return text if value[:1] in ("'", '"') and isinstance(text, str) else value


def _literal_items(value: Any) -> str | None:
    """Return a list or a sweep with each text in it taken literally; None for other values."""
    if isinstance(value, list):
        return f"[{','.join(map(_item, value))}]"
    items = getattr(value, "list", None)
    return ",".join(map(_item, items)) if items else None


def _item(value: Any) -> str:
    text = getattr(value, "text", value)
    return _literal(text) if isinstance(text, str) else _literal_items(text) or typed(text)


def _literal(text: str) -> str:
    """Quote `text` for Hydra, and escape what OmegaConf would take for an interpolation, ${…}.

    OmegaConf reads backslashes before ${ as escapes, and Hydra those before a quote; elsewhere both leave them alone.
    """
    plain = re.sub(r"(\\*)\$\{", lambda part: part[1] * 2 + "\\${", text)
    escaped = re.sub(r'(\\*)("|$)', lambda part: part[1] * 2 + ('\\"' if part[2] else ""), plain)
    return f'"{escaped}"'
