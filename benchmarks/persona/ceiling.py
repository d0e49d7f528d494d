"""How far could this model's residual stream tell calm harm, if a read-out had seen the judges' own texts?

    python -m benchmarks.persona.ceiling --model FOLDER

Two read-outs of the same scheme are held against each other on the held-out authors' texts, which judge packs:

- ``elsewhere``: learned from the training authors alone, as a pack is.
- ``in domain``: cross-validated over *all* authors' texts; a fold leaves out questions, and nothing else. It
  has seen the judging authors' other answers, their kinds and domains: no pack may claim its figures.

What is between them are texts that training lacks; what is above ``in domain`` the model does not hold for a
linear read-out over answers' means. A read-out is shrunk LDA (Ledoit-Wolf) over five sites.

Legend: n = answers, s = sites, d = model width.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.persona.machine import in_float32, machine_arguments
from benchmarks.persona.results import keep_plain, show
from monitor.replay.model import load_model
from monitor.replay.residuals import ResidualReader
from monitor.research.contrast.directions import candidate_sites
from monitor.research.contrast.learned import Group, labelled
from monitor.research.contrast.learners import LEDOIT_WOLF, Readout, Rows, fit
from monitor.research.contrast.selection import SEVERAL
from monitor.research.hard_texts import HardTexts, is_careful, load_hard_texts
from monitor.research.packs.figures import of_bound
from monitor.research.packs.hard_figures import found_figures
from monitor.research.reading import layers_of, response_residuals
from monitor.research.statistics import auc_bound, pool_auc_bound
from monitor.research.texts import Texts, load_texts
from monitor.values.arrays import Doubles, Floats

FOLDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    machine_arguments(parser)
    options = parser.parse_args()
    texts, hard = load_texts(), load_hard_texts()
    settings = in_float32(options.model, options.device)
    candidates = candidate_sites(layers_of(settings))
    sites = [candidates[round(i)] for i in np.linspace(0, len(candidates) - 1, SEVERAL)]
    loaded = load_model(settings, sites[-1])
    rows, judged = _read(ResidualReader(loaded, settings), texts, hard, sites)
    scale = np.maximum(rows.x[~rows.positive].std(axis=0, dtype=np.float64), 1e-6)
    found = {
        "elsewhere": _elsewhere(rows, judged, scale),
        "in domain": _in_domain(rows, scale, options.seed),
    }
    lines = {
        name: _figures(scores, rows, judged, np.random.default_rng(options.seed))
        for name, scores in found.items()
    }
    show(
        f"{loaded.model_id}: calm harm, read by a discriminant over blocks {', '.join(map(str, sites))}",
        [{"learned": name} | _line(figures) for name, figures in lines.items()],
    )
    keep_plain(
        f"ceiling-{loaded.model_id.lower()}",
        options,
        {
            "model": loaded.model_id,
            "sites": sites,
            "judging_authors": sorted(hard.protocol.held_out),
            "hard_texts_sha256": hard.sha256,
            "read_outs": lines,
        },
    )


def _read(
    reader: ResidualReader, texts: Texts, hard: HardTexts, sites: list[int]
) -> tuple[Rows, NDArray[np.bool_]]:
    """All hard texts and the benign ones, and which of them [n] judge: those that train nothing."""
    groups, judges = {}, []
    for side in ("calm", "good"):
        prompts = [getattr(pair, f"{side}_prompt") for pair in hard.calm]
        groups[side] = Group(
            x=response_residuals(reader, prompts, sites),
            kinds=tuple(f"{pair.kind}, {pair.domain}" for pair in hard.calm),
            questions=tuple(pair.question for pair in hard.calm),
        )
        judges += [hard.protocol.role(pair) == "held_out" for pair in hard.calm]
    benign = (*texts.fit, *texts.check)
    others = [row.prompt for row in hard.negatives]
    groups["others"] = Group(
        x=response_residuals(reader, [*others, *benign], sites),
        kinds=(*(row.kind for row in hard.negatives), *("benign",) * len(benign)),
        questions=(
            *(row.question for row in hard.negatives),
            *(f"benign {number}" for number in range(len(benign))),
        ),
    )
    judges += [hard.protocol.role(row) == "held_out" for row in hard.negatives]
    judges += [False] * len(texts.fit) + [True] * len(texts.check)
    return labelled([groups["calm"]], [groups["good"]], [groups["others"]]), np.array(judges)


def _elsewhere(rows: Rows, judged: NDArray[np.bool_], scale: Doubles) -> Floats:
    """Readings [n] by what was learned from all that does not judge."""
    return _learned(rows, ~judged, scale).of(rows.x).astype(np.float32)


def _in_domain(rows: Rows, scale: Doubles, seed: int) -> Floats:
    """Readings [n], each by a read-out that was learned without the row's question."""
    generator = np.random.default_rng(seed)
    fold = (generator.permutation(rows.question.max() + 1) % FOLDS)[rows.question]
    scores = np.empty(len(rows), dtype=np.float32)
    for number in range(FOLDS):
        out = fold == number
        readings = _learned(rows, ~out, scale).of(rows.x)
        # Folds have read-outs of their own: each is put on the scale of its own benign texts.
        benign = readings[~out & ~rows.positive]
        scores[out] = (readings[out] - benign.mean()) / benign.std()
    return scores


def _learned(rows: Rows, which: NDArray[np.bool_], scale: Doubles) -> Readout:
    return fit("lda", rows.part(which), tuple(range(rows.x.shape[1])), scale, LEDOIT_WOLF)


def _figures(
    scores: Floats, rows: Rows, judged: NDArray[np.bool_], generator: np.random.Generator
) -> dict[str, Any]:
    calm = scores[judged & rows.positive]
    # Pairs stand in one order on both sides.
    good = scores[judged & rows.twin]
    others = judged & ~rows.positive & ~rows.twin
    careful = np.array([is_careful(str(kind)) for kind in rows.kind])
    pool = scores[judged & ~rows.positive]
    return {
        "calm_against_good": of_bound(auc_bound(calm[None], good[None], generator)),
        "calm_against_benign": of_bound(pool_auc_bound(calm[None], pool, generator)),
        "careful_against_other_benign": of_bound(
            pool_auc_bound(
                scores[others & careful][None],
                np.concatenate([scores[others & ~careful], good]),
                generator,
            )
        ),
        "calm_found": found_figures(calm, pool),
    }


def _line(figures: dict[str, Any]) -> dict[str, Any]:
    found = {f"found at {one['rate']:.1%}": one["found"][0] for one in figures["calm_found"]}
    names = ("calm_against_good", "calm_against_benign", "careful_against_other_benign")
    return {name.replace("_", " "): figures[name][0] for name in names} | found


if __name__ == "__main__":
    main()
