"""One evaluation: from a network to results.json, row by row, resumed where it stopped."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advtrain.config import ConfigError
from advtrain.data.split import Split
from advtrain.evaluation import Row, Show, evaluate, rows
from advtrain.files import write_atomic, write_json
from advtrain.progress import Progress
from advtrain.records import VerdictLog, Verdicts
from advtrain.results import document, fingerprint, printable, row_record, warnings, worst_case
from advtrain.run_certification import certify
from advtrain.runs import Evaluation, Setting, parameters

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
    described = _describe(model, setting, facts, checkpoint, size)
    seen = fingerprint(digest(model), setting.config["model"], digest_of(examples, size))
    keys = row_keys(setting, seen, plan.batch_size)
    log = VerdictLog(setting.directory / "verdicts.jsonl")
    found: list[tuple[Row, Sequence[Verdicts]]] = []
    certified: dict[str, Any] | None = None

    def write() -> dict[str, Any]:
        records = [row_record(row, verdicts) for row, verdicts in found]
        seconds = sum(record["seconds"] for record in records)
        content = document(
            described,
            records,
            worst_case=worst_case(found),
            certified=certified,
            warnings=warnings(records),
            environment=environment(setting),
            seconds=round(seconds + (certified["seconds"] if certified else 0.0), 3),
        )
        write_json(setting.directory / "results.json", content)
        return content

    for row in rows(plan.attacks, keys):
        known = len(log.lines)
        with Progress(size, row.name, "img") as bar:

            def watch(verdicts: Verdicts, bar: Progress = bar) -> None:
                bar.advance(verdicts.examples)

            verdicts = evaluate(
                model,
                examples,
                row,
                log,
                size=size,
                batch_size=plan.batch_size,
                seed=setting.config["seed"],
                stop=stop,
                watch=watch,
                show=_keep_pictures(setting, row),
            )
            found.append((row, verdicts))
            if len(log.lines) > known:  # else all of it stands in results.json already
                write()
            bar.say(_line(row_record(row, verdicts)))
    if plan.certify is not None:
        certified = certify(model, setting, plan.certify, seen, stop)
    return write()


def row_keys(setting: Setting, seen: str, batch_size: int) -> dict[str, str]:
    """The fingerprint of each row: all that its verdicts depend on.

    `seen`: that of the network and the examples.
    """
    config = setting.config
    common = (seen, config["seed"], config["precision"], batch_size)
    attacks = config["eval"]["attacks"]
    if "clean" in attacks:
        raise ConfigError("eval.attacks.clean is refused: that name is the row without an attack.")
    return {"clean": fingerprint(*common)} | {
        name: fingerprint(*common, name, node) for name, node in attacks.items()
    }


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
    model: nn.Module, setting: Setting, facts: Mapping[str, Any], checkpoint: str, size: int
) -> dict[str, Any]:
    config, choices = setting.config, facts["choices"]
    threat = setting.build("threat")
    return {
        "name": config["name"],
        "dataset": {
            "name": choices.get("dataset"),
            "split": "test",
            "n": size,
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


def _keep_pictures(setting: Setting, row: Row) -> Show | None:
    """Saves the first images of the row that attacks with the training norm in several steps."""
    path = setting.directory / "examples.npz"
    norm = setting.build("threat").norm
    if row.threat is None or row.threat.norm != norm or row.settings.get("steps") is None:
        return None

    def show(x: Tensor, x_adv: Tensor, y: Tensor, clean: Tensor, adversarial: Tensor) -> None:
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
