"""One evaluation: from a network to results.json, row by row, resumed where it stopped."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from advtrain import findings, status
from advtrain.averaged import rewrapped, single
from advtrain.certification.soundness import unsound
from advtrain.data.split import Split
from advtrain.digests import as_bytes, digest
from advtrain.evaluation import (
    EvaluationFailed,
    Outcome,
    Row,
    Subject,
    evaluate,
    row_name,
)
from advtrain.exchange import of_leader
from advtrain.files import write_json
from advtrain.fingerprints import fingerprint
from advtrain.foreign import MAX_RESULTS, read_json
from advtrain.inference import swift
from advtrain.modes import crafting
from advtrain.planning import Scene, fitted, named, refuse_names, scenes, viewed
from advtrain.plans import Evaluation
from advtrain.precision import full_precision
from advtrain.probes import portrait, probe, recognised
from advtrain.programs import at_rest
from advtrain.progress import Progress
from advtrain.records import VerdictLog
from advtrain.reporting.writing import write_run
from advtrain.results import document, printable, row_record, worst_case
from advtrain.rooms import Rooms
from advtrain.run_certification import doubted
from advtrain.run_guarantees import ABSENT, guarantees, require_provable
from advtrain.run_pictures import keep_pictures
from advtrain.runs import Setting, parameters
from advtrain.seeding import stream
from advtrain.world import here, leads

logger = logging.getLogger(__name__)

PROBES = 16  # images on which the network that is attacked is held against the one judged
PROBED = 128  # images that tell whether the network can be trusted with an evaluation
DIGESTED = 1000  # images whose pixels tell one set of examples from another
LOG, PORTRAIT = "verdicts.jsonl", "portrait.npy"
HEADERS = (
    "certify.json",
    "soundness.json",
    "predict/study.json",
)  # without which logs are not used


def evaluate_model(
    model: nn.Module,
    setting: Setting,
    facts: Mapping[str, Any],
    checkpoint: str,
    stop: Callable[[], None],
) -> dict[str, Any]:
    """Run every row of `eval` under each of its views, then what it proves, which is of the network
    under the first view; results.json is rewritten after each.

    With resume=false nothing that was found in the directory before is used. Returns the content
    of results.json. EvaluationFailed: the network, the log or a row, in which case tables and
    report hold the rows before it; or certificates that an attack has broken, which they tell.
    """
    plan: Evaluation = setting.build("eval")
    refuse_names(plan.attacks)
    with told():
        log = of_leader(partial(_log, setting))
    examples = setting.data.test
    size = min(len(examples), plan.size or len(examples))
    examined = digest_of(examples, size)
    described = _describe(model, setting, facts, checkpoint, size, examined)
    plan = replace(plan, views=named(plan.views))
    with told():
        views = viewed(model, plan.views)
    first, *others = _distinct(views)
    shown = of_leader(partial(probed, first, setting, size))
    lost = {id(first)} if learned_nothing(shown) else set()
    if plan.certify is not None:
        seen_so_far = {warning["check"] for warning in shown}
        shown += of_leader(partial(doubted, first, setting, seen_so_far))
    for each in others:
        further = of_leader(partial(probed, each, setting, size))
        lost |= {id(each)} if learned_nothing(further) else set()
        shown += further
    stochastic = any(warning["check"] == "stochastic" for warning in shown)
    with told():
        plan, views, spared = fitted(plan, views, stochastic)
    for warning in spared:
        logger.warning("%s: %s", warning["check"], warning["message"])
    lucky = {name for name, judged in views.items() if id(single(judged)) in lost}
    alike = int(examples.labels[:size].bincount().max()) / size
    known = of_leader(partial(known_as, first, setting, size))
    seen = fingerprint(digest(model), known, setting.config["model"], examined)
    looks = plan.draws if stochastic else 0
    with told():
        planned = scenes(plan, views, setting, seen, looks)
    with told("exact: "):
        require_provable(first, setting, plan)
    naive = row_name(plan.naive, plan.attacks[plan.naive]) if plan.naive else None
    rooms = Rooms(of_leader(partial(_portion_before, setting, planned)))
    fast: dict[int, nn.Module] = {}  # of the networks under the views, some of which share one
    alarms = [
        {"check": "training", "row": "model", "message": message}
        for message in facts.get("alarms", ())
    ]
    told_before = [*alarms, *shown, *spared]
    found: list[Outcome] = []
    proven = dict(ABSENT)

    def write() -> dict[str, Any]:
        records = [row_record(outcome) for outcome in found]
        said = findings.warnings(
            found, alike=alike, lucky=lucky, stochastic=stochastic, naive=naive
        )
        certified, predicted = proven["certified"] or {}, proven["predict_study"]
        parts = [*records, *filter(None, (certified, certified.get("soundness"), predicted))]
        content = document(
            described,
            records,
            worst_case=worst_case(found),
            **proven,
            warnings=[*unsound(proven["certified"]), *told_before, *said],
            environment={**environment(setting), "portion": rooms.least},
            seconds=round(sum(part["seconds"] for part in parts), 3),
            **findings.entries(found, naive=naive),
        )
        if leads():
            write_json(setting.directory / "results.json", content)
        return content

    def judge_row(subject: Subject, row: Row, clean: Sequence[bool]) -> Outcome:
        known = len(log.lines)
        with Progress(size * max(len(row.members), 1), row.name, "img") as bar:
            with told(f"row {row.name}: "):
                outcome = evaluate(
                    subject,
                    examples,
                    row,
                    log,
                    clean=clean,
                    batch_size=plan.at_once,
                    seed=setting.config["seed"],
                    stop=stop,
                    watch=bar.advance,
                    show=keep_pictures(setting, subject, row),
                    looks=looks,
                )
            rooms.note()
            found.append(outcome)
            if len(log.lines) > known:  # else all of it stands in results.json already
                write()
            bar.say(_line(row_record(outcome)))
        return outcome

    try:
        for scene in planned:
            inside = single(scene.judged)
            if id(inside) not in fast:
                fast[id(inside)] = swift(inside, examples.batch(slice(0, min(size, PROBES)))[0])
            subject = Subject(
                scene.judged, rewrapped(scene.judged, fast[id(inside)]), rooms.attacks
            )
            clean = judge_row(subject, scene.rows[0], [True] * size).standing
            for row in scene.rows[1:]:
                judge_row(subject, row, clean)
        with told():
            for found_out in guarantees(first, setting, plan, seen, stop, rooms):
                rooms.note()
                proven |= found_out
                write()
        for refuted in unsound(proven["certified"]):
            raise EvaluationFailed(refuted["message"])
    except EvaluationFailed as error:
        if found:
            write()
        if found and leads():
            status.write(setting.directory, "failed", str(error))
            write_run(setting.directory)
        raise
    return write()


def _log(setting: Setting) -> VerdictLog:
    """What was found in the directory before, unless the run is to begin anew."""
    if not setting.config["resume"]:
        for name in (LOG, PORTRAIT, *HEADERS):
            (setting.directory / name).unlink(missing_ok=True)
    return VerdictLog(setting.directory / LOG)


def _portion_before(setting: Setting, planned: Sequence[Scene]) -> int | None:
    """`environment.portion` of results.json, if that is of rows which are planned again."""
    if not setting.config["resume"]:
        return None
    try:
        known = read_json(setting.directory / "results.json", MAX_RESULTS)
        rows = {row["key"] for row in known["rows"]}
        portion = known["environment"]["portion"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or none of ours
        return None
    kept = any(row.key in rows for scene in planned for row in scene.rows)
    return portion if kept and type(portion) is int else None


def _distinct(views: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The networks under the views, each once: several views average draws of the same one."""
    return list({id(single(view)): single(view) for view in views.values()}.values())


def learned_nothing(shown: Sequence[Mapping[str, str]]) -> bool:
    return any(warning["check"] == "chance" for warning in shown)


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
        at_rest(),
        crafting(model, "eval"),
        full_precision(model),
        stream(x.device, setting.config["seed"], "probe"),
        told(),
    ):
        found = probe(model, x, y, threat=threat, classes=classes)
    for warning in found:
        logger.warning("%s: %s", warning["check"], warning["message"])
    return found


def known_as(model: nn.Module, setting: Setting, size: int) -> str:
    """A name for what the network answers, which its weights leave open; see `recognised`."""
    x, _ = setting.data.test.batch(slice(0, min(size, PROBED)))
    threat = setting.build("threat")

    def drawn() -> Tensor:
        with stream(x.device, setting.config["seed"], "portrait"):
            return portrait(model, x, threat)

    with at_rest(), crafting(model, "eval"), full_precision(model), told():
        return recognised(drawn(), drawn(), setting.directory / PORTRAIT)


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
        "training": facts.get("training"),
        "choices": dict(choices),
        "overrides": list(facts.get("overrides", [])),
        "config": printable(dict(config)),
    }


def environment(setting: Setting) -> dict[str, Any]:
    device = setting.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "advtrain": own_version(),
        "torch": str(torch.__version__),
        "device": name,
        "precision": setting.config["precision"],
        "threads": torch.get_num_threads(),
        "processes": here().size,
    }


def own_version() -> str:
    """That of the package; of sources that are run without being installed nobody knows it."""
    try:
        return version("advtrain")
    except PackageNotFoundError:
        return "not installed"


def _line(record: Mapping[str, Any]) -> str:
    low, high = record["ci95"]
    draws = record.get("draws")
    view = "" if record["view"] == "identity" else f"  {record['view']}"
    sd = f" ± {100 * draws['sd']:.2f}" if draws and draws["sd"] is not None else ""
    single = f"  one draw {100 * draws['mean']:.2f}{sd} %" if draws else ""
    return (
        f"{record['name']:<12} {100 * record['accuracy']:6.2f} %  "
        f"[{100 * low:.2f}, {100 * high:.2f}]  n {record['n']}  {record['seconds']:.1f} s"
        f"{view}{single}"
    )
