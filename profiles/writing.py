"""A hardware profile as the text of its TOML file, which ``loading`` reads back as it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from .schema import SCHEMA, Figure, Levels, OperatingPoint, Profile


def profile_text(profile: Profile, comments: Iterable[str] = ()) -> str:
    """The file of ``profile``, with ``comments`` above it, one line each."""
    return "\n".join([*(f"# {line}".rstrip() for line in comments), *_lines(profile)]) + "\n"


def _lines(profile: Profile) -> Iterator[str]:
    yield from ("", f"schema = {SCHEMA}", f"name = {_text(profile.name)}")
    yield f"description = {_text(profile.description)}"
    yield f"priority = {profile.priority}"
    if profile.meters:
        yield f"meters = {_plain(profile.meters)}"
    if profile.identity:
        yield from _table("identity", profile.identity)
    for rule in profile.match:
        yield from ("", "[[match]]")
        yield from _pairs({**rule.patterns, "source": rule.source})
    if profile.rails is not None:
        yield from _table("rails", _given(profile.rails))
    for name, power in profile.power.items():
        yield from _table(f"power.{name}", _given(power))
    for name, clock in profile.clocks.items():
        yield from _table(f"clocks.{name}", _given(clock))
    if profile.cores is not None:
        yield from _table("cores", _given(profile.cores))
    for point in profile.operating_points:
        yield from ("", "[[operating_points]]", *_point(point))
    for title in ("peaks", "dvfs", "model"):
        for name, figures in getattr(profile, title).items():
            yield from _table(f"{title}.{name}", figures)


def _point(point: OperatingPoint) -> Iterator[str]:
    values = _given(point)
    clocks = ", ".join(f"{domain} = {_number(mhz)}" for domain, mhz in point.clock_mhz.items())
    yield f"name = {_text(point.name)}"
    yield f"clock_mhz = {{ {clocks} }}"
    yield from _pairs({key: values[key] for key in values if key not in ("name", "clock_mhz")})


def _table(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"[{title}]")
    yield from _pairs(values)


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{key} = {_plain(value)}"


def _given(part: Any) -> dict[str, Any]:
    """The fields of a dataclass that say something; what is absent is not written."""
    found = {each.name: getattr(part, each.name) for each in fields(part)}
    return {key: value for key, value in found.items() if value not in (None, "", (), False)}


def _plain(value: Any) -> str:
    if isinstance(value, Figure | Levels):
        number = _plain(value.value)
        assumption = ", assumption = true" if value.assumption else ""
        return f"{{ value = {number}, source = {_text(value.source)}{assumption} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _text(value: str) -> str:
    # A basic string of TOML knows the escapes of JSON; DEL is the one that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
