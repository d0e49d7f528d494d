"""Detectors side by side on the same scores: false alarms in 30 days, and prompts until a share of a persona is seen.

    python -m benchmarks.detectors [--seeds 5] [--evidently PYTHON] [--nannyml PYTHON] [--json FILE] [--markdown FILE]

Law: a benign prompt scores as a standard normal, a persona's as a normal of mean 3 and deviation 1, each on its own;
20 prompts a minute; a baseline of 20,000. Every detector is as it comes: the monitor's default rules, and what each
other one's makers or textbooks set. Those without windows of their own get one hour (1,200 prompts). A run of a share has
an ordinary day behind it and lasts a week at most. Nothing drifts by itself here, and prompts do not depend on each
other, which flatters all. `benchmarks.persona.traffic` has real readings, and sets every detector to the same silence.

An alarm of the monitor is an alert that fires (after two minutes), and it is begun anew behind each; of one that judges
windows, a flagged window; of ADWIN, a detection. The trivial detectors say at what ends the scale lies.

Legend: n = prompts, m = minutes, p = prompts a minute, w = windows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from benchmarks.persona.minutes import START, Binned, Minutes
from benchmarks.persona.simulated import BASELINE_ID, World, first_page
from monitor.drift.baseline import capture, intervals
from monitor.drift.bets import bets_on
from monitor.drift.histogram import EDGES, histogram_of, psi
from monitor.settings import DriftRule, DriftSettings, Thresholds
from monitor.values.arrays import Counts, Doubles
from monitor.values.features import Calibration, Feature
from monitor.values.identity import BaselineFingerprint

PER_MINUTE = 20
HOUR, DAY, WEEK, MONTH = 60, 24 * 60, 7 * 24 * 60, 30 * 24 * 60
WINDOW = HOUR * PER_MINUTE
BASELINE = 20_000
PERSONA = 3.0
SHARES = (0.20, 0.05, 0.01)
FEATURE = Feature(
    name="persona",
    kind="direction",
    site=0,
    region="response",
    pooling="mean",
    weight=np.ones(1, dtype=np.float32),
    calibration=Calibration(tokens=(1,), means=(0,), deviations=(1,)),
)
SETTINGS = DriftSettings()
SLOW = DriftRule(name="slow", windows=("24h",), severities={"warning": Thresholds(shift=0.05)})
MONITORS = {
    "the monitor's default rules": SETTINGS.rules,
    "the monitor, shift > 0.05 in 24 h": (SLOW,),
}


@dataclass(frozen=True, kw_only=True)
class Streams:
    """One seed's scores: every detector sees the same."""

    scores: Doubles
    """Of all prompts that are drawn from, the baseline's first [n]."""
    benign: Counts
    """Minutes of ordinary traffic [m, p], as places in ``scores``."""
    shares: Mapping[float, Counts]
    """By share, a week of traffic that holds it; an ordinary day lies before."""

    @classmethod
    def drawn(cls, seed: int) -> Streams:
        generator = np.random.default_rng(seed)
        total = BASELINE + (MONTH + DAY + WEEK) * PER_MINUTE
        ordinary = generator.normal(size=total)
        persona = generator.normal(PERSONA, 1.0, size=WEEK * PER_MINUTE)
        places = np.arange(BASELINE, total).reshape(-1, PER_MINUTE)
        benign, rest = places[:MONTH], places[MONTH:]
        theirs = total + np.arange(WEEK * PER_MINUTE).reshape(-1, PER_MINUTE)
        coin = generator.random((WEEK, PER_MINUTE))
        return cls(
            scores=np.concatenate([ordinary, persona]),
            benign=benign,
            shares={
                share: np.concatenate([rest[:DAY], np.where(coin < share, theirs, rest[DAY:])])
                for share in SHARES
            },
        )


Detector = Callable[[Counts, int], Iterable[int]]
"""Takes minutes [m, p] and how many lie before what is watched; the watched minutes after which it alarms, in
their order, each found when it is asked for."""


# --- the monitor ---------------------------------------------------------------------------------


def world_of(streams: Streams) -> World:
    """The monitor with a baseline of the first prompts, as `monitor baseline capture` takes it."""
    features = (FEATURE,)
    binned = _Known(streams.scores[:, None].astype(np.float32), features)
    texts = np.arange(BASELINE).reshape(-1, PER_MINUTE)
    minutes = Minutes.of(binned, texts, 0, SETTINGS)
    end = START + len(texts) * SETTINGS.bucket
    approved = capture(
        (
            minutes.window(*(int((at - START) / SETTINGS.bucket) for at in part))
            for part in intervals(START, end, SETTINGS.bucket)
        ),
        features,
        confidence=SETTINGS.confidence,
        baseline_id=BASELINE_ID,
        pack_id="simulated",
        name="simulated",
        start=START,
        end=end,
        created_at=START,
        fingerprint=BaselineFingerprint(facts={}),
        min_n=SETTINGS.min_baseline_n,
    )
    return World(
        features=features,
        settings=SETTINGS,
        bets=bets_on(approved, features, SETTINGS),
        watched=binned,
        raw=binned,
        adjusted=frozenset(),
    )


class _Known(Binned):
    """`Binned` for a million scores: bins of all at once."""

    def counted(self, feature: int) -> tuple[Counts, Doubles]:
        if feature not in self._counted:
            own = self.scores[:, feature]
            bins = np.searchsorted(EDGES, own, side="right")
            self._counted[feature] = (
                bins,
                np.stack([own, own**2, FEATURE.in_tail(own)], axis=1),
            )
        return self._counted[feature]


def monitor(world: World, rules: Sequence[DriftRule]) -> Detector:
    def detect(texts: Counts, before: int) -> Iterator[int]:
        passed = 0
        while (page := first_page(world, texts, before, rules)) is not None:
            yield passed + page[0]
            passed += page[0] + 1
            texts, before = texts[before + page[0] + 1 :], 0
            if not len(texts):
                break

    return detect


# --- the others ----------------------------------------------------------------------------------


def windowed(streams: Streams, flags: Callable[[Doubles], bool]) -> Detector:
    """One that judges every full hour by itself."""

    def detect(texts: Counts, before: int) -> Iterator[int]:
        hours = hours_of(streams, texts, before)
        yield from ((w + 1) * HOUR - 1 for w, hour in enumerate(hours) if flags(hour))

    return detect


def hours_of(streams: Streams, texts: Counts, before: int) -> Doubles:
    """The watched hours [w, WINDOW]."""
    watched = texts[before:]
    found: Doubles = streams.scores[watched[: len(watched) // HOUR * HOUR].reshape(-1, WINDOW)]
    return found


def adwin(streams: Streams) -> Detector:
    """River's (extra `benchmarks`), after it saw two thousand prompts of the baseline."""
    from river.drift import ADWIN

    def detect(texts: Counts, before: int) -> Iterator[int]:
        detector = ADWIN()
        for value in streams.scores[:2_000]:
            detector.update(value)
        for number, value in enumerate(streams.scores[texts[before:].ravel()]):
            detector.update(value)
            if detector.drift_detected:
                yield number // PER_MINUTE

    return detect


def detectors(streams: Streams) -> dict[str, Detector]:
    baseline = streams.scores[:BASELINE]
    binned = histogram_of(baseline)
    mean, deviation = float(baseline.mean()), float(baseline.std())
    world = world_of(streams)

    def rolling_z(hour: Doubles) -> bool:
        return bool(abs(float(hour.mean()) - mean) > 3 * deviation / math.sqrt(WINDOW))

    def always(texts: Counts, before: int) -> Sequence[int]:
        return range(len(texts) - before)

    def never(texts: Counts, before: int) -> Sequence[int]:
        return ()

    return {
        **{name: monitor(world, rules) for name, rules in MONITORS.items()},
        "KS, p < 0.05, one hour": windowed(
            streams, lambda hour: bool(ks_2samp(hour, baseline).pvalue < 0.05)
        ),
        "PSI > 0.2, one hour": windowed(
            streams, lambda hour: psi(histogram_of(hour), binned) > 0.2
        ),
        "ADWIN (River, delta 0.002)": adwin(streams),
        "z-test, 3 deviations, one hour": windowed(streams, rolling_z),
        "always fires": always,
        "never fires": never,
    }


def of_peer(peer: str, python: Path, streams: Streams) -> tuple[dict[str, Sequence[int]], str]:
    """Alarms by stream (``benign``, or a share), and the peer's version."""
    with tempfile.TemporaryDirectory() as folder:
        scores, flags = Path(folder) / "scores.npz", Path(folder) / "flags.json"
        given: dict[str, Any] = {
            "reference": streams.scores[:BASELINE],
            "benign": hours_of(streams, streams.benign, 0),
        }
        given |= {f"{s:g}": hours_of(streams, texts, DAY) for s, texts in streams.shares.items()}
        np.savez(scores, **given)
        script = Path(__file__).with_name("drift_peers.py")
        subprocess.run(
            [python, "-I", script, peer, scores, flags], check=True, stdout=subprocess.DEVNULL
        )
        told = json.loads(flags.read_text(encoding="utf-8"))
    alarms: dict[str, Sequence[int]] = {
        name: [(w + 1) * HOUR - 1 for w, flagged in enumerate(row) if flagged]
        for name, row in told["flags"].items()
    }
    return alarms, str(told["version"])


# --- what they take ------------------------------------------------------------------------------


def measure(seeds: int, peers: Mapping[str, Path]) -> dict[str, Any]:
    """By detector: false alarms in 30 days, and prompts until each share is seen, of every seed."""
    rows: dict[str, dict[str, list[float]]] = {}
    versions = {"river": version("river"), "scipy": version("scipy")}

    def keep(name: str, alarms: Mapping[str, Iterable[int]]) -> None:
        row = rows.setdefault(name, {key: [] for key in ("benign", *(f"{s:g}" for s in SHARES))})
        row["benign"].append(float(sum(1 for _ in alarms["benign"])))
        for share in SHARES:
            first = next(iter(alarms[f"{share:g}"]), None)
            row[f"{share:g}"].append(math.inf if first is None else (first + 1.0) * PER_MINUTE)

    for seed in range(seeds):
        streams = Streams.drawn(seed)
        for name, detect in detectors(streams).items():
            alarms = {f"{s:g}": detect(texts, DAY) for s, texts in streams.shares.items()}
            keep(name, {"benign": detect(streams.benign, 0), **alarms})
            print(f"seed {seed}: {name}", flush=True)
        for peer, python in peers.items():
            found, versions[peer] = of_peer(peer, python, streams)
            keep(f"{PEERS[peer]} (defaults), one hour", found)
            print(f"seed {seed}: {peer}", flush=True)
    return {
        "law": f"benign N(0, 1), persona N({PERSONA:g}, 1), independent",
        "per_minute": PER_MINUTE,
        "baseline": BASELINE,
        "window_prompts": WINDOW,
        "longest_days": timedelta(minutes=WEEK).days,
        "seeds": seeds,
        "versions": versions,
        "detectors": {name: summary(row) for name, row in rows.items()},
    }


PEERS = {"evidently": "Evidently", "nannyml": "NannyML"}


def summary(row: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians over the seeds, and how many of them saw it; null where the median one did not."""
    return {
        "false_alarms_in_30_days": statistics.median(row["benign"]),
        **{
            f"{share:g}": {
                "median_prompts": median if math.isfinite(median) else None,
                "seen": sum(map(math.isfinite, row[f"{share:g}"])),
            }
            for share in SHARES
            for median in (statistics.median(row[f"{share:g}"]),)
        },
    }


def table(result: Mapping[str, Any]) -> str:
    """The result in Markdown."""
    head = ["detector", "false alarms in 30 days", *(f"{s:.0%} seen after" for s in SHARES)]
    lines = [head, ["---"] * len(head)]
    for name, row in result["detectors"].items():
        cells = []
        for share in SHARES:
            one = row[f"{share:g}"]
            median = one["median_prompts"]
            shown = "not in a week" if median is None else f"{median:,.0f}"
            cells.append(f"{shown} ({one['seen']} of {result['seeds']})")
        lines.append([name, f"{row['false_alarms_in_30_days']:,g}", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=5)
    for peer, name in PEERS.items():
        parser.add_argument(
            f"--{peer}", type=Path, help=f"Python of an environment that holds {name}"
        )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    peers = {peer: python for peer in PEERS if (python := getattr(options, peer)) is not None}
    result = measure(options.seeds, peers)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    main()
