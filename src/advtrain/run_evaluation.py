"""One evaluation: from a network to results.json, row by row, resumed where it stopped."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advtrain import status
from advtrain.config import ConfigError
from advtrain.data.split import Split
from advtrain.digests import as_bytes, digest, fingerprint
from advtrain.evaluation import (
    EvaluationFailed,
    Outcome,
    Row,
    Show,
    Subject,
    evaluate,
    row_name,
    rows,
)
from advtrain.files import write_atomic, write_json
from advtrain.inference import swift
from advtrain.modes import crafting
from advtrain.precision import full_precision
from advtrain.probes import portrait, probe, recognised
from advtrain.progress import Progress
from advtrain.records import VerdictLog
from advtrain.reporting.writing import write_run
from advtrain.results import attack_name, document, printable, row_record, worst_case
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
LOG, PORTRAIT = "verdicts.jsonl", "portrait.npy"


def evaluate_model(
    model: nn.Module,
    setting: Setting,
    facts: Mapping[str, Any],
    checkpoint: str,
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Run every row of `eval`, then its certificate; results.json is rewritten after each.

    With resume=false nothing that was found in the directory before is used. Returns the content
    of results.json. EvaluationFailed: the network, the log or a row; tables and report then hold
    the rows before it.
    """
    plan: Evaluation = setting.build("eval")
    refuse_names(plan.attacks)
    if not setting.config["resume"]:
        for name in (LOG, PORTRAIT, "certify.json"):
            (setting.directory / name).unlink(missing_ok=True)
    with told():
        log = VerdictLog(setting.directory / LOG)
    examples = setting.data.test
    size = min(len(examples), plan.size or len(examples))
    examined = digest_of(examples, size)
    described = _describe(model, setting, facts, checkpoint, size, examined)
    subjects: dict[str, Subject] = {}
    planned: list[Row] = []
    shown: list[dict[str, str]] = []
    for view, looked in seen_through(model, plan).items():
        shown += probed(looked, setting, size)
        known = known_as(looked, setting, size, view)
        seen = fingerprint(digest(model), known, setting.config["model"], examined)
        with told():
            keys = row_keys(setting, seen, plan)
            planned += rows(plan.attacks, keys, len(setting.data.classes), view)
        probes = examples.batch(slice(0, min(size, PROBES)))[0]
        subjects[view] = Subject(looked, swift(looked, probes))
    alarms = [
        {"check": "training", "row": "model", "message": message}
        for message in facts.get("alarms", ())
    ]
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
            warnings=[*alarms, *shown, *contradictions(records, len(setting.data.classes))],
            environment=environment(setting),
            seconds=round(seconds + (certified["seconds"] if certified else 0.0), 3),
        )
        write_json(setting.directory / "results.json", content)
        return content

    def judge_row(row: Row, clean: Sequence[bool]) -> Outcome:
        known = len(log.lines)
        with Progress(size * max(len(row.members), 1), row.name, "img") as bar:
            with told(f"row {row.name}: "):
                subject = subjects[row.view]
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
            found.append(outcome)
            if len(log.lines) > known:  # else all of it stands in results.json already
                write()
            bar.say(_line(row_record(outcome)))
        return outcome

    try:
        clean: Sequence[bool] = [True] * size
        for row in planned:
            outcome = judge_row(row, clean if row.attack else [True] * size)
            clean = outcome.standing if row.attack is None else clean
    except EvaluationFailed as error:
        if found:
            write()
            status.write(setting.directory, "failed", str(error))
            write_run(setting.directory)
        raise
    if plan.certify is not None:
        certified = certify(model, setting, plan.certify, seen, stop)
    return write()


def seen_through(model: nn.Module, plan: Evaluation) -> dict[str, nn.Module]:
    """The network under each view; as it is, where there are none."""
    with told():
        return {name: view(model) for name, view in plan.views.items()} or {"identity": model}


@contextmanager
def told(before: str = "") -> Iterator[None]:
    """A ValueError inside becomes EvaluationFailed: its sentence, with `before` in front."""
    try:
        yield
    except ValueError as error:
        raise EvaluationFailed(f"{before}{error}") from error


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
        told(),
    ):
        found = probe(model, x, y, threat=threat, classes=classes)
    for warning in found:
        logger.warning("%s: %s", warning["check"], warning["message"])
    return found


def known_as(model: nn.Module, setting: Setting, size: int, view: str = "identity") -> str:
    """A name for what the network answers, which its weights leave open; see `recognised`."""
    x, _ = setting.data.test.batch(slice(0, min(size, PROBED)))
    threat = setting.build("threat")

    def drawn() -> Tensor:
        with stream(x.device, setting.config["seed"], "portrait"):
            return portrait(model, x, threat)

    with crafting(model, "eval"), full_precision(model), told():
        file = PORTRAIT if view == "identity" else f"portrait-{view}.npy"
        return recognised(drawn(), drawn(), setting.directory / file)


def refuse_names(attacks: Mapping[str, Attack | Combination]) -> None:
    """Raise ConfigError where two rows of an evaluation would have one name."""
    if "clean" in attacks:
        raise ConfigError("eval.attacks.clean is refused: that name is the row without an attack.")
    named = Counter(row_name(name, attack) for name, attack in attacks.items())
    for name, attack in attacks.items():
        shown = row_name(name, attack)
        if name != shown and named[shown] > 1:
            raise ConfigError(
                f"eval.attacks.{name} is refused: its row is named {shown} for its threat, as that "
                f"of eval.attacks.{shown} is. Give one of them another name, or leave it out."
            )


def row_keys(setting: Setting, seen: str, plan: Evaluation) -> dict[str, str]:
    """The fingerprint of each row: all that its verdicts depend on.

    `seen`: that of the network, with what it answers, and of the examples. Networks that an attack
    brings count by their weights.
    """
    config = setting.config
    common = (seen, config["seed"], config["precision"], plan.batch_size)
    return {"clean": fingerprint(*common)} | {
        name: fingerprint(*common, name, node, *_sources(plan.attacks[name]))
        for name, node in config["eval"]["attacks"].items()
    }


def _sources(attack: Attack | Combination) -> list[str]:
    settings = getattr(attack, "keywords", {}).values()
    return [digest(value) for value in settings if isinstance(value, nn.Module)]


def digest_of(examples: Split, size: int) -> str:
    """A name for the first `size` examples: their labels, and pixels of up to DIGESTED of them."""
    total = hashlib.blake2b(digest_size=16)
    total.update(as_bytes(examples.labels[:size]))
    total.update(as_bytes(examples.batch(slice(0, min(size, DIGESTED)))[0]))
    return total.hexdigest()


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
    """Saves the first images of the last row that attacks with the training norm, and not in one
    step: in several, or exactly.
    """
    path = setting.directory / "examples.npz"
    norm = setting.build("threat").norm
    fit = row.settings.get("steps") is not None or attack_name(row.attack) == "exact"
    if row.threat is None or row.threat.norm != norm or not fit:
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
    view = "" if record["view"] == "identity" else f"{record['view']:<12} "
    return (
        f"{view}{record['name']:<12} {100 * record['accuracy']:6.2f} %  "
        f"[{100 * low:.2f}, {100 * high:.2f}]  n {record['n']}  {record['seconds']:.1f} s"
    )
