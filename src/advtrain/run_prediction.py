"""The PREDICT study, into predict/: a log of predictions for each number of draws, and the gold."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from advtrain.certification.lines import claim
from advtrain.certification.prediction import (
    PREDICTIONS,
    Prediction,
    PredictStudy,
    Shares,
    categorise,
)
from advtrain.certification.smoothing import Smoothed
from advtrain.exchange import divided, of_leader
from advtrain.fingerprints import fingerprint
from advtrain.portions import Room
from advtrain.precision import full_precision
from advtrain.progress import Progress
from advtrain.run_certification import AT_ONCE
from advtrain.runs import Setting
from advtrain.seeding import derive
from advtrain.world import here, leads


def study(
    model: nn.Module,
    setting: Setting,
    plan: PredictStudy,
    seen: str,
    stop: Callable[[], None],
    room: Room,
) -> dict[str, Any]:
    """Predict the first `plan.size` test examples; the entry `predict_study` of results.json.

    N_100.tsv holds what PREDICT said with 100 draws, in Cohen's format, and gold.tsv the class
    counted most often in `plan.gold_draws` (the first of them at a tie). Noise depends on the seed,
    the log and the place of the image among those of its data set alone, so no two logs share any.
    They are flushed every few images, and go on after their last lines. `seen` names network and
    examples; logs of others, told by study.json, are replaced.
    """
    config, examples = setting.config, setting.data.test
    size = min(len(examples), plan.size or len(examples))
    asked = {"sigma": plan.sigma, "alpha": plan.alpha, "gold_draws": plan.gold_draws}
    folder = setting.directory / "predict"
    folder.mkdir(parents=True, exist_ok=True)
    key = fingerprint(seen, asked, config["seed"])

    def claimed() -> None:
        logs = [*folder.glob("N_*.tsv"), folder / "gold.tsv"]
        claim(folder / "study.json", key, {**asked, "seed": config["seed"]}, logs)

    of_leader(claimed)
    classes = len(setting.data.classes)
    smoothed = Smoothed(model, classes, plan.sigma, plan.batch_size, room=room)
    source = examples.source[:size].tolist()

    def logged(
        name: str,
        answer: Callable[[Tensor, list[int]], Tensor],
        told: Callable[[list[Prediction]], str],
    ) -> list[Prediction]:
        """The predictions of all examples in the log `name`, by `answer` where they are missing."""
        path = folder / f"{name}.tsv"
        done = of_leader(lambda: {each.index for each in PREDICTIONS.repair(path).lines})
        missing = [place for place in range(size) if source[place] not in done]
        bar = Progress(size, f"predict {name}", "img", done=size - len(missing))

        def predicted(places: Sequence[int]) -> Iterator[list[Prediction]]:
            began = time.perf_counter()
            indices = examples.source[list(places)].tolist()
            x, y = examples.batch(torch.tensor(places))
            seeds = [derive(config["seed"], "predict", name, index) for index in indices]
            classes = answer(x, seeds).tolist()
            each = (time.perf_counter() - began) / len(indices)
            columns = zip(indices, y.tolist(), classes, strict=True)
            yield [Prediction(*values, each) for values in columns]

        at_once = max(1, min(AT_ONCE, ceil(len(missing) / here().size)))
        pieces = [missing[i : i + at_once] for i in range(0, len(missing), at_once)]
        with PREDICTIONS.writer(path) if leads() else nullcontext() as writer, bar:
            for lines in divided(pieces, predicted, stop):
                if writer is not None:
                    writer.write(lines)
                bar.advance(len(lines))
            wanted, log = set(source), of_leader(partial(PREDICTIONS.read, path))
            found = [each for each in log.lines if each.index in wanted]
            bar.say(f"{f'predict {name}':<14} {told(found)}")
        return found

    rows: list[Shares] = []
    with full_precision(model):
        gold = logged(
            "gold",
            lambda x, seeds: smoothed.counts(x, plan.gold_draws, seeds=seeds).argmax(1),
            lambda found: f"{100 * sum(e.correct for e in found) / size:6.2f} %  correct",
        )
        accurate = {each.index: each.prediction for each in gold}
        for n in plan.n:
            found = logged(
                f"N_{n}",
                partial(_predicted, smoothed, n, plan.alpha),
                partial(_line, n, accurate),
            )
            rows.append(categorise(n, found, accurate))
    taken = sum(each.seconds for each in gold) + sum(each["seconds"] for each in rows)
    return {**asked, "examples": size, "rows": rows, "seconds": round(taken, 3)}


def _predicted(smoothed: Smoothed, n: int, alpha: float, x: Tensor, seeds: list[int]) -> Tensor:
    return smoothed.predict(x, n, alpha, seeds=seeds)


def _line(n: int, gold: Mapping[int, int], found: Sequence[Prediction]) -> str:
    row = categorise(n, found, gold)
    correct = row["correct_accurate"] + row["correct_inaccurate"]
    wrong = row["correct_inaccurate"] + row["incorrect_inaccurate"]
    return (
        f"{100 * correct:6.2f} %  correct  {100 * wrong:.2f} % inaccurate  "
        f"{100 * row['abstain']:.2f} % abstain"
    )
