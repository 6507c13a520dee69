"""YAML without surprises: plain data only, and a word means what it looks like.

The safe loader of PyYAML follows YAML 1.1, where `1e-3` is text, `no` is false, `1:30` is 90 and
`2026-11-01` is a date, and where the second of two equal keys wins in silence. Here numbers,
true, false and null are those of YAML 1.2, everything else is text, and equal keys are an error.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lifelong.errors import UserError


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key `{key.value}` stands here twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers  # quotes what the loader takes for no text

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names it in errors."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader: builds plain data only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {str(error).partition(chr(10))[0]}.") from None


def read(path: Path) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8-sig"), path.name)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.name}: not UTF-8 text (byte {error.start}). Save the file as UTF-8."
        ) from None


def dump(value: Any) -> str:
    """Plain data as a text that `parse` reads back as it is."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
