"""One evaluation: from a network to results.json, row by row, resumed where it stopped."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advtrain.config import ConfigError
from advtrain.data.split import Split
from advtrain.evaluation import (
    EvaluationFailed,
    Outcome,
    Row,
    Show,
    Subject,
    evaluate,
    rows,
)
from advtrain.files import write_atomic, write_json
from advtrain.inference import swift
from advtrain.modes import crafting
from advtrain.precision import full_precision
from advtrain.probes import probe
from advtrain.progress import Progress
from advtrain.records import VerdictLog
from advtrain.results import document, fingerprint, printable, row_record, worst_case
from advtrain.run_certification import certify
from advtrain.runs import Evaluation, Setting, parameters
from advtrain.seeding import stream
from advtrain.trust import contradictions
from advtrain.types import Attack, Combination

logger = logging.getLogger(__name__)

PROBES = 16  # images on which the network that is attacked is held against the one judged
PROBED = 128  # images that tell whether the network can be trusted with an evaluation
PICTURES = 8  # adversarial examples kept for the report
DIGESTED = 1000  # images whose pixels tell one set of examples from another


def evaluate_model(
    model: nn.Module,
    setting: Setting,
    facts: Mapping[str, Any],
    checkpoint: str,
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Run every row of `eval`, then its certificate; results.json is rewritten after each.

    Returns the content of results.json.
    """
    plan: Evaluation = setting.build("eval")
    examples = setting.data.test
    size = min(len(examples), plan.size or len(examples))
    examined = digest_of(examples, size)
    described = _describe(model, setting, facts, checkpoint, size, examined)
    seen = fingerprint(digest(model), setting.config["model"], examined)
    keys = row_keys(setting, seen, plan)
    log = VerdictLog(setting.directory / "verdicts.jsonl")
    shown = probed(model, setting, size)
    subject = Subject(model, swift(model, examples.batch(slice(0, min(size, PROBES)))[0]))
    found: list[Outcome] = []
    certified: dict[str, Any] | None = None

    def write() -> dict[str, Any]:
        records = [row_record(outcome) for outcome in found]
        seconds = sum(record["seconds"] for record in records)
        content = document(
            described,
            records,
            worst_case=worst_case(found),
            certified=certified,
            warnings=[*shown, *contradictions(records)],
            environment=environment(setting),
            seconds=round(seconds + (certified["seconds"] if certified else 0.0), 3),
        )
        write_json(setting.directory / "results.json", content)
        return content

    clean: Sequence[bool] = [True] * size
    for row in rows(plan.attacks, keys, len(setting.data.classes)):
        known = len(log.lines)
        with Progress(size * max(len(row.members), 1), row.name, "img") as bar:
            try:
                outcome = evaluate(
                    subject,
                    examples,
                    row,
                    log,
                    clean=clean,
                    batch_size=plan.batch_size,
                    seed=setting.config["seed"],
                    stop=stop,
                    watch=bar.advance,
                    show=_keep_pictures(setting, subject, row),
                )
            except ValueError as error:
                raise EvaluationFailed(f"row {row.name}: {error}") from error
            clean = outcome.standing if row.attack is None else clean
            found.append(outcome)
            if len(log.lines) > known:  # else all of it stands in results.json already
                write()
            bar.say(_line(row_record(outcome)))
    if plan.certify is not None:
        certified = certify(model, setting, plan.certify, seen, stop)
    return write()


def probed(model: nn.Module, setting: Setting, size: int) -> list[dict[str, str]]:
    """What the network shows on a few images, before hours are spent; said at once.

    EvaluationFailed: nothing it says could be judged.
    """
    x, y = setting.data.test.batch(slice(0, min(size, PROBED)))
    threat, classes = setting.build("threat"), len(setting.data.classes)
    with (
        crafting(model, "eval"),
        full_precision(model),
        stream(x.device, setting.config["seed"], "probe"),
    ):
        try:
            found = probe(model, x, y, threat=threat, classes=classes)
        except ValueError as error:
            raise EvaluationFailed(str(error)) from error
    for warning in found:
        logger.warning("%s: %s", warning["check"], warning["message"])
    return found


def row_keys(setting: Setting, seen: str, plan: Evaluation) -> dict[str, str]:
    """The fingerprint of each row: all that its verdicts depend on.

    `seen`: that of the network and the examples. Networks that an attack brings count by their
    weights.
    """
    config = setting.config
    common = (seen, config["seed"], config["precision"], plan.batch_size)
    attacks = config["eval"]["attacks"]
    if "clean" in attacks:
        raise ConfigError("eval.attacks.clean is refused: that name is the row without an attack.")
    return {"clean": fingerprint(*common)} | {
        name: fingerprint(*common, name, node, *_sources(plan.attacks[name]))
        for name, node in attacks.items()
    }


def _sources(attack: Attack | Combination) -> list[str]:
    settings = getattr(attack, "keywords", {}).values()
    return [digest(value) for value in settings if isinstance(value, nn.Module)]


def digest(model: nn.Module) -> str:
    """A name for the weights of `model`: equal weights and buffers, equal name."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def digest_of(examples: Split, size: int) -> str:
    """A name for the first `size` examples: their labels, and pixels of up to DIGESTED of them."""
    total = hashlib.blake2b(digest_size=16)
    total.update(_bytes(examples.labels[:size]))
    total.update(_bytes(examples.batch(slice(0, min(size, DIGESTED)))[0]))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _describe(
    model: nn.Module,
    setting: Setting,
    facts: Mapping[str, Any],
    checkpoint: str,
    size: int,
    examined: str,
) -> dict[str, Any]:
    config, choices = setting.config, facts["choices"]
    threat = setting.build("threat")
    return {
        "name": config["name"],
        "dataset": {
            "name": choices.get("dataset"),
            "split": "test",
            "n": size,
            "examples": examined,
            **{
                f"{k}_images" if k in ("train", "validation", "test") else f"data_{k}": v
                for k, v in setting.data.summary().items()
            },
        },
        "model": {"name": choices.get("model"), "parameters": parameters(model)},
        "defense": choices.get("defense"),
        "threat": {"norm": threat.norm, "eps": threat.eps},
        "seed": config["seed"],
        "checkpoint": checkpoint,
        "selected_on": facts.get("selected_on"),
        "choices": dict(choices),
        "overrides": list(facts.get("overrides", [])),
        "config": printable(dict(config)),
    }


def environment(setting: Setting) -> dict[str, Any]:
    device = setting.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "advtrain": version("advtrain"),
        "torch": str(torch.__version__),
        "device": name,
        "precision": setting.config["precision"],
        "threads": torch.get_num_threads(),
    }


def _keep_pictures(setting: Setting, subject: Subject, row: Row) -> Show | None:
    """Saves the first images of the row that attacks with the training norm in several steps."""
    path = setting.directory / "examples.npz"
    norm = setting.build("threat").norm
    if row.threat is None or row.threat.norm != norm or row.settings.get("steps") is None:
        return None

    def show(x: Tensor, x_adv: Tensor, y: Tensor, adversarial: Tensor) -> None:
        with crafting(subject.model, "eval"), torch.no_grad():
            clean = subject.model(x[:PICTURES])
        arrays = {
            "clean": x,
            "adversarial": x_adv,
            "labels": y,
            "predicted_clean": clean.argmax(1),
            "predicted_adversarial": adversarial.argmax(1),
        }
        content = {name: value[:PICTURES].cpu().numpy() for name, value in arrays.items()}
        content |= {"row": np.array(row.name), "classes": np.array(setting.data.classes)}
        write_atomic(path, lambda stream: np.savez(stream, allow_pickle=False, **content))

    return show


def _line(record: Mapping[str, Any]) -> str:
    low, high = record["ci95"]
    return (
        f"{record['name']:<12} {100 * record['accuracy']:6.2f} %  "
        f"[{100 * low:.2f}, {100 * high:.2f}]  n {record['n']}  {record['seconds']:.1f} s"
    )
