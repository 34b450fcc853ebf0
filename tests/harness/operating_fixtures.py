"""Small tables of operating points, by hand and drawn by hypothesis."""

from __future__ import annotations

import numpy as np
from exitbench.harness.governors import OperatingTable, PointCosts
from hypothesis import strategies as st


def point(
    ratio: float,
    power_w: float,
    *,
    exits: int = 3,
    slower: float | None = None,
    name: str | None = None,
) -> PointCosts:
    """A point at which a segment takes 1 s at the top clock, a head 0.1 s, a forecast 0.05 s.

    The classifier takes 0.2 s; all of it ``slower`` times longer (1 / ratio unless given).
    """
    factor = 1 / ratio if slower is None else slower
    segments, heads = np.full(exits + 1, factor), np.full(exits, 0.1 * factor)
    forecasts, classifier = heads / 2, 0.2 * factor
    return PointCosts(
        name or f"{1000 * ratio:g} MHz",
        {"cpu": 1000 * ratio},
        ratio,
        segments,
        heads,
        forecasts,
        classifier,
        *(seconds * power_w for seconds in (segments, heads, forecasts, classifier)),
    )


def table_of(*points: PointCosts, idle_w: float = 1.0, switch_s: float = 0.5) -> OperatingTable:
    return OperatingTable(points, idle_w, switch_s)


def two_points(**more: float) -> OperatingTable:
    """Half the top clock at 2 W, the top clock at 6 W; idle 1 W; a switch takes 0.5 s."""
    return table_of(point(0.5, 2.0), point(1.0, 6.0), **more)


@st.composite
def tables(draw: st.DrawFn) -> OperatingTable:
    """Up to 4 points of up to 6 exits; no part is faster at a slower point, no more is known."""
    exits = draw(st.integers(1, 6))
    lengths = (exits + 1, exits, exits, 1)
    cost = st.floats(0.001, 2.0)
    parts = [np.array(draw(st.lists(cost, min_size=n, max_size=n))) for n in lengths]
    points = []
    for index in range(draw(st.integers(1, 4))):
        power_w = draw(st.floats(0.5, 20.0))
        joules = [seconds * power_w for seconds in parts]
        # Drawn from the top down: each point is slower than the one before it.
        clock = 1 / (1 + index)
        seconds, energy = ((*each[:3], float(each[3][0])) for each in (parts, joules))
        points.append(PointCosts(f"p{index}", {"cpu": 1e3 * clock}, clock, *seconds, *energy))
        parts = [seconds * draw(st.floats(1.0, 2.5)) for seconds in parts]
    return OperatingTable(
        tuple(reversed(points)), draw(st.floats(0.0, 5.0)), draw(st.floats(0.0, 2.0))
    )


@st.composite
def ways(draw: st.DrawFn, exits: int) -> tuple[int, ...]:
    """The exits that a request is asked at, in order; perhaps the classifier at the end."""
    asked = sorted(draw(st.sets(st.integers(1, exits))))
    ends = [exits + 1] if not asked or draw(st.booleans()) else []
    return (*asked, *ends)
