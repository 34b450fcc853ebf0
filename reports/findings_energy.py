"""What governed clocks, schedules and energy windows say, in sentences."""

from __future__ import annotations

from .choice import unequal
from .governed import (
    FOLLOWING,
    NOTICEABLE,
    POLICIES,
    cheapest,
    deadline_words,
    governor_words,
    governors,
    least_difference,
    one,
    settings,
    share,
)
from .metering import flagged
from .reading import Governed
from .scenarios import idle_share, policies, scene_words, scenes
from .view import PREDICTIVE, ROLE_WORDS, Setting, View, ordered_precisions
from .words import accuracy_change, change, figures, listing, percent, saving

MOST_FLAGS = 3


def energy_findings(view: View) -> list[str]:
    """Governors of the first hardware at equal latency, energy on a schedule, marked windows."""
    found = [sentence for own in view.run.governed[:1] for sentence in _governed(view, own)]
    return [*found, *_scenes(view), *_flags(view)]


def other_hardware(view: View) -> list[str]:
    """What governors bring on the other hardware: beside its figures, not among the findings."""
    return [sentence for other in view.run.governed[1:] for sentence in _governed(view, other)]


def _precision(view: View, governed: Governed) -> str:
    """The recommended precision where the file has it, else its most exact one."""
    found = ordered_precisions(governed.rows)
    wanted = view.recommended["precision"] if view.recommended else None
    return wanted if wanted in found else found[0]


def _governed(view: View, governed: Governed) -> list[str]:
    """Whether governed prediction pays on this hardware, and what the paper claims."""
    if not governors(governed):
        return []
    precision = _precision(view, governed)
    rows = settings(governed, precision)
    best = cheapest(rows, PREDICTIVE, governed=True)
    where = f"On {governed.hardware}, {precision}, {deadline_words(governed, precision)} allowed"
    if best is None:
        return [
            f"{where}: whether a governor pays cannot be said, as no governed setting of "
            "predictive exit has an energy and keeps the latency that it has at the top clock."
        ]
    return [
        f"{where}: of the governed settings of predictive exit the cheapest is {_words(best)}, "
        f"{figures(best['energy_mj'])} mJ per request ({best['energy_source']}), idle until the "
        f"deadline included{_late(best)}. {_pays(governed, best, one(rows, best['role'], ''))}"
        f"{_following(governed, rows, best['role'])}",
        *_fair(view, governed, rows, best),
        *_claimed(governed, rows, best),
    ]


def _words(row: Setting) -> str:
    clocks = f"governor {row['governor']}" if row["governor"] else "the top clock"
    if row["governor"] == "fixed":
        clocks = governor_words(row)
    return f"{ROLE_WORDS.get(row['role'], row['role'])}, {clocks}"


def _late(row: Setting) -> str:
    return f", {percent(row['missed'])} of the requests late" if row["missed"] else ""


def _compared(governed: Governed, row: Setting, other: Setting) -> tuple[str, str]:
    """How a row's energy stands to another's (`less`, `more`, `same`, `open`), and in words."""
    ratio, least = share(row, other), least_difference(governed, row, other)
    if ratio is None:
        return "open", f"how it compares with {_words(other)} is not known"
    modelled = " (modelled)" if "modelled" in {r["energy_source"] for r in (row, other)} else ""
    size = f"{change(ratio)} energy{modelled} against {_words(other)}"
    if least is None:
        return "open", f"{size}, and the model's error is not stated"
    if abs(ratio - 1) < least:
        error = f"the model's own error of ±{percent(least, 0)}"
        why = error if least > NOTICEABLE else f"±{percent(least, 0)}, too little to tell apart"
        return "same", f"{size}, which is within {why}"
    return ("less" if ratio < 1 else "more"), size


PAYS = {
    "less": "Governing the clocks pays for this policy",
    "more": "Governing the clocks does not pay for this policy",
    "same": "Governing the clocks makes no difference that is known for this policy",
    "open": "Whether governing the clocks pays for this policy cannot be said",
}


def _pays(governed: Governed, best: Setting, base: Setting | None) -> str:
    """Whether setting the clocks pays for the same policy."""
    if base is None:
        return f"{PAYS['open']}: it is missing at the top clock."
    verdict, words = _compared(governed, best, base)
    return f"{PAYS[verdict]}: {words}."


FOLLOWS = {
    "less": "Clocks that follow the forecasts beat one lower clock throughout",
    "more": "Clocks that follow the forecasts do worse than one lower clock throughout",
    "same": "Clocks that follow the forecasts are not told apart from one lower clock throughout",
    "open": "Whether clocks that follow the forecasts beat one lower clock cannot be said",
}


def _following(governed: Governed, rows: list[Setting], role: str) -> str:
    """Whether it is the forecasts that pay, or only a lower clock; empty where one is missing."""
    fixed = one(rows, role, "fixed")
    own = [row for row in rows if row["governor"] in ("", *FOLLOWING)]
    best = cheapest(own, (role,), governed=True)
    if fixed is None or best is None:
        return ""
    verdict, words = _compared(governed, best, fixed)
    return f" {FOLLOWS[verdict]} (governor {best['governor']}: {words})."


BEATS = {
    "less": "That setting also needs less energy than the cheapest rival of equal latency",
    "more": "The cheapest rival of equal latency needs less energy",
    "same": "That setting is not told apart from the cheapest rival of equal latency",
    "open": "Whether that setting beats the cheapest rival of equal latency is open",
}


def _fair(view: View, governed: Governed, rows: list[Setting], best: Setting) -> list[str]:
    """Governed prediction against rivals: every-exit without a governor, and the cheapest that the
    full network and every-exit are under any clocks."""
    cheap = cheapest(rows, POLICIES, governed=False)
    plain = one(rows, "every-exit-best", "")
    if cheap is None:
        return []
    verdict, words = _compared(governed, best, cheap)
    difference = best["accuracy"] - cheap["accuracy"]
    if unequal(difference, view.loss):
        verdict = "open"
    parts = [f"{words}, {accuracy_change(difference)}{_late(cheap)}"]
    if plain is not None and (plain["role"], plain["governor"]) != (
        cheap["role"],
        cheap["governor"],
    ):
        difference = best["accuracy"] - plain["accuracy"]
        words = _compared(governed, best, plain)[1]
        parts.append(f"{words}, {accuracy_change(difference)}{_late(plain)}")
    return [f"{BEATS[verdict]} ({governed.hardware}, {best['precision']}): {'; '.join(parts)}."]


def _claimed(governed: Governed, rows: list[Setting], best: Setting) -> list[str]:
    """The paper's claims beside the same shares here."""
    parts = []
    for column, vs, noun in (
        ("claim_vs_full", "full", "the full network"),
        ("claim_vs_every_exit", "every-exit", "early exit at every exit"),
    ):
        claim = next((row[column] for row in rows if row[column] is not None), None)
        here = share(best, one(rows, vs, ""))
        if claim is not None and here is not None:
            claimed = f"claimed: {percent(1 - claim)} less"
            parts.append(f"{saving(here, 'energy')} than {noun} ({claimed})")
    if not parts:
        return []
    return [
        f"Beside the paper's claims for predictive exit with its governor, here on "
        f"{governed.hardware}, {best['energy_source']}: {listing(parts)}."
    ]


def _scenes(view: View) -> list[str]:
    """Per period how much of the energy is idle, and what early exit still saves."""
    rows = view.run.scenarios
    if rows is None:
        return []
    wanted = (view.recommended or view.reference or {}).get("precision")
    told = (_scene(view, policies(rows, s), s, wanted) for s in scenes(rows) if s is not None)
    return [sentence for sentence in told if sentence]


def _role(rows: list[Setting], name: str) -> Setting | None:
    return next((row for row in rows if row["role"] == name), None)


def _early(view: View, rows: list[Setting]) -> Setting | None:
    """The early exit to tell of: the recommended policy, else every-exit, else predictive exit."""
    role = view.role_of(view.recommended) if view.recommended else None
    for name in (role, "every-exit-best", *PREDICTIVE):
        for row in rows:
            if row["role"] == name and name not in ("full", "fixed"):
                return row
    return None


def _scene(view: View, rows: list[Setting], scene: float, precision: str | None) -> str | None:
    own = [row for row in rows if row["precision"] == precision]
    full, early = _role(own, "full"), _early(view, own)
    if full is None or early is None:
        return None
    when, name = f"With {scene_words(scene)} ({precision})", ROLE_WORDS[early["role"]]
    if not full["keeps_up"] or not early["keeps_up"]:
        late = [n for n, r in (("the full network", full), (name, early)) if not r["keeps_up"]]
        able = name if early["keeps_up"] else "the full network"
        rest = f", {able} can" if len(late) == 1 else ""
        return f"{when} {listing(late)} cannot keep up{rest}."
    idle, whole, cost = (
        idle_share(full),
        full["energy_per_request_mj"],
        early["energy_per_request_mj"],
    )
    if idle is None or cost is None:
        return None
    ratio, source = cost / whole, full["energy_source"]
    start = f"{when}{' idle dominates:' if idle > 0.5 else ''} {percent(idle, 0)} of the full"
    start += f" network's energy is idle ({source}), so early exit ({name})"
    if abs(ratio - 1) < NOTICEABLE:
        return f"{start} makes no difference that counts: {change(ratio, 1)} energy per request."
    only = "only " if idle > 0.5 and ratio < 1 else ""
    return f"{start} brings {only}{saving(ratio, 'energy')} per request."


def _flags(view: View) -> list[str]:
    """Windows that were read but are bad ones."""
    found = flagged(view)
    if not found:
        return []
    more = len(found) - MOST_FLAGS
    rest = f" {more} more stand under Energy." if more > 0 else ""
    told = " ".join(found[:MOST_FLAGS])
    return [f"Some energy windows are marked, so their numbers are doubtful. {told}{rest}"]
