"""A profile that is written is the profile that is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from exitbench.profiles.loading import list_profiles, load_profile
from exitbench.profiles.schema import Figure
from exitbench.profiles.writing import profile_text
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_comes_back_from_its_text(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    file = tmp_path / "copy.toml"
    file.write_text(profile_text(profile, ["A copy.", ""]), encoding="utf-8")
    assert load_profile(file) == replace(profile, path=file)
    assert file.read_text().startswith("# A copy.\n#\n")


@given(
    words=st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip),
    watts=st.floats(1e-9, 1e12),
)
def test_any_text_and_number_comes_back(
    words: str, watts: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    profile = load_profile("generic-x86")
    power = replace(profile.power["cpu"], idle_w=None, active_w=Figure(watts, words))
    profile = replace(profile, description=words, power={"cpu": power}, dvfs={})
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_text(profile_text(profile), encoding="utf-8")
    assert load_profile(file) == replace(profile, path=file)
