"""One certificate per test example, into certify.tsv; goes on after the last line that is there."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from advtrain.certification.lines import claim
from advtrain.certification.log import Certificate, Writer, read, repair
from advtrain.certification.smoothing import Smoothed
from advtrain.certification.summary import summarise
from advtrain.digests import fingerprint
from advtrain.precision import full_precision
from advtrain.progress import Progress
from advtrain.runs import Certification, Setting
from advtrain.seeding import derive

AT_ONCE = 10  # images between two lines on disk, and between two looks at signals


def certify(
    model: nn.Module,
    setting: Setting,
    plan: Certification,
    seen: str,
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Certify the first `plan.size` test examples; the entry `certified` of results.json.

    Certificates are those of the network in fp32. idx is the place of an image among the test
    images of its data set; its noise depends on that and on the seed alone. `seen` names network
    and examples; certificates of others, told by certify.json, are replaced.
    """
    config, examples = setting.config, setting.data.test
    size = min(len(examples), plan.size or len(examples))
    asked = {"sigma": plan.sigma, "n0": plan.n0, "n": plan.n, "alpha": plan.alpha}
    key = fingerprint(seen, asked, config["seed"])
    log = setting.directory / "certify.tsv"
    header = setting.directory / "certify.json"
    claim(header, key, {**asked, "seed": config["seed"]}, [log])
    smoothed = Smoothed(model, len(setting.data.classes), plan.sigma, plan.batch_size)
    source = examples.source[:size].tolist()
    done = {each.index for each in repair(log).certificates}
    missing = [place for place in range(size) if source[place] not in done]
    bar = Progress(size, "certify", "img", done=size - len(missing))
    with full_precision(model), Writer(log) as writer, bar:
        for first in range(0, len(missing), AT_ONCE):
            stop()
            began = time.perf_counter()
            places = torch.tensor(missing[first : first + AT_ONCE])
            indices = examples.source[places].tolist()
            x, y = examples.batch(places)
            seeds = [derive(config["seed"], "certify", index) for index in indices]
            predictions, radii = smoothed.certify(
                x, n0=plan.n0, n=plan.n, alpha=plan.alpha, seeds=seeds
            )
            each = (time.perf_counter() - began) / len(indices)
            columns = zip(indices, y.tolist(), predictions.tolist(), radii.tolist(), strict=True)
            writer.write(Certificate(*values, each) for values in columns)
            bar.advance(len(indices))
        wanted = set(source)
        chosen = [each for each in read(log).certificates if each.index in wanted]
        summary = summarise(chosen, sigma=plan.sigma, n0=plan.n0, n=plan.n, alpha=plan.alpha)
        bar.say(
            f"{'certified':<12} {100 * summary['accuracy']:6.2f} %  at radius 0  "
            f"ACR {summary['acr']:.3f}  n {size}"
        )
    return {**summary, "seconds": round(sum(each.seconds for each in chosen), 3)}
