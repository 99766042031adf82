"""What a row of results.json says about its attack."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks import objectives, starts
from advtrain.attacks.autoattack import AutoAttack
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.square import square
from advtrain.attacks.transfer import transfer
from advtrain.attacks.worst_of import WorstOf
from advtrain.evaluation import Outcome, Stage, rows
from advtrain.records import Verdicts
from advtrain.results import STRENGTH, attack_name, confusion, row_record, spelled
from advtrain.threat import L2, Linf

EPS = Linf(8 / 255)
PGD = partial(pgd, threat=EPS, steps=20, step_size=0.01)


def record(attack, name="anything"):
    (_, row) = rows({name: attack}, {"clean": "c", name: "k"}, 10)
    return row_record(Outcome(row, tuple(Stage(each, ()) for each in row.members), (True,) * 4))


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (None, None),
        (PGD, "pgd"),
        (partial(PGD, steps=3), "pgd"),
        (fgsm, "fgsm"),
        (partial(square, threat=EPS), "square"),
        (partial(transfer, threat=EPS, attack=PGD), "transfer"),
        (AutoAttack(EPS), "AutoAttack"),
        (WorstOf({"a": PGD}), "WorstOf"),
    ],
)
def test_an_attack_is_called_by_its_function_or_class(attack, name):
    assert attack_name(attack) == name


def test_a_row_says_what_it_is_whatever_it_is_called():
    told = record(partial(PGD, keep="any", objective=objectives.margin), "CE_20")
    assert (told["name"], told["attack"], told["steps"]) == ("CE_20", "pgd", 20)
    assert (told["step_size"], told["keep"], told["objective"]) == (0.01, "any", "margin")
    assert (told["restarts"], told["start"]) == (1, "uniform")  # the defaults


def test_stages_of_a_combination_say_what_they_are():
    told = record(AutoAttack(EPS, steps=7))
    assert [(s["attack"], s["loss"], s["steps"]) for s in told["stages"]] == [
        ("apgd", "ce", 7),
        ("apgd", "dlr_targeted", 7),
        ("fab", None, 7),
        ("square", None, None),
    ]


def test_equal_attacks_have_one_configuration_and_different_ones_two():
    same = [PGD, partial(PGD, keep="last"), partial(PGD, objective=objectives.cross_entropy)]
    same += [partial(PGD, start=partial(starts.uniform)), partial(PGD, threat=Linf(0.03137255))]
    assert len({record(attack)["configuration"] for attack in same}) == 1
    draws = [objectives.expected(objective=objectives.margin, samples=n) for n in (2, 3)]
    changes = [{"steps": 21}, {"step_size": 0.02}, {"keep": "any"}, {"threat": L2(8 / 255)}]
    changes += [{"threat": Linf(8 / 255, low=-1.0)}, *({"objective": draw} for draw in draws)]
    others = [PGD, *(partial(PGD, **change) for change in changes), WorstOf({"a": PGD})]
    others += [WorstOf({"a": partial(PGD, steps=5)}), AutoAttack(EPS), AutoAttack(EPS, "plus")]
    assert len({record(attack)["configuration"] for attack in others}) == len(others)


def test_a_method_is_the_same_at_any_strength():
    stronger = partial(PGD, threat=Linf(0.5), steps=100, step_size=0.02, restarts=5)
    assert record(stronger)["method"] == record(PGD)["method"]
    assert record(partial(PGD, keep="any"))["method"] != record(PGD)["method"]
    shorter, longer = (WorstOf({"a": attack}) for attack in (PGD, stronger))
    assert (
        spelled(shorter, STRENGTH)
        == spelled(longer, STRENGTH)
        == (
            "WorstOf(attacks={a: pgd(keep=last, objective=cross_entropy, start=uniform, "
            "targeted=False)})"
        )
    )


def test_networks_are_told_by_their_weights():
    torch.manual_seed(0)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    crafted = [partial(transfer, threat=EPS, attack=PGD, source=net) for net in (first, second)]
    assert record(crafted[0])["configuration"] != record(crafted[1])["configuration"]
    second.load_state_dict(first.state_dict())
    assert record(crafted[0])["configuration"] == record(crafted[1])["configuration"]


def test_a_function_of_someone_else_is_told_with_its_module():
    def climbing(model: object, x: Tensor, y: Tensor, *, threat: Linf) -> Tensor:
        return x

    assert attack_name(climbing) == "climbing"
    assert spelled(partial(climbing, threat=EPS)).startswith(f"{__name__}.climbing(threat=")


def verdicts(at, labels=(), answers=()):
    bits = "0" * len(at)
    return Verdicts("k", at, bits, bits, 0, 0, 0, 0, 0.0, labels=labels, answers=answers)


def test_confusion_counts_the_answer_at_the_last_proposal_for_each_example():
    first = verdicts((0, 1, 2, 3), (0, 0, 1, 2), (1, 0, 1, -1))
    later = verdicts((1, 2), (0, 1), (2, 1))
    assert confusion([first]) == {"confusion": [[1, 1, 0], [0, 1, 0], [0, 0, 0]]}
    assert confusion([first, later]) == {"confusion": [[0, 1, 1], [0, 1, 0], [0, 0, 0]]}


@pytest.mark.parametrize(
    "found", [[], [verdicts((0,))], [verdicts((0,), (20,), (1,))]], ids=["none", "old", "many"]
)
def test_no_confusion_without_answers_or_of_too_many_classes(found):
    assert confusion(found) == {}
