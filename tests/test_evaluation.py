"""The referee: whom an attack is run on, what counts, and that nothing is done twice."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from advtrain.attacks.clean import clean
from advtrain.attacks.pgd import fgsm, pgd
from advtrain.attacks.worst_of import WorstOf
from advtrain.evaluation import Row, Subject, evaluate, rows
from advtrain.records import VerdictLog
from advtrain.results import row_record, worst_case
from advtrain.threat import L2, Linf

EPS = Linf(0.2)


class Brightness(nn.Module):
    """Two classes: 1 where the mean pixel exceeds a half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class Levels:
    """Images (1, 2, 2) of one grey level each; the label is always 0."""

    def __init__(self, *levels: float) -> None:
        self.x = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], torch.zeros(len(indices), dtype=torch.int64)


EXAMPLES = Levels(0.1, 0.35, 0.45, 0.7, 0.2)
RIGHT = [True, True, True, False, True]


class Raise:
    """An attack that brightens, and counts the images that it was asked about."""

    def __init__(self, by: float) -> None:
        self.by = by
        self.asked = 0
        self.keywords = {"threat": EPS}

    def __call__(self, model, x, y, **overrides):
        self.asked += len(x)
        return x + self.by


def referee(row: Row, log: VerdictLog, stop=lambda: None, **changes):
    model = Brightness()
    given = {"clean": RIGHT, "batch_size": 2, "seed": 0, "watch": lambda done: None} | changes
    return evaluate(Subject(model, model), EXAMPLES, row, log, stop=stop, **given)


def row_of(attack, name: str = "row") -> Row:
    (_, row) = rows({name: attack}, {"clean": "c", name: "k"}, 2)
    return row


@pytest.fixture
def log(tmp_path):
    return VerdictLog(tmp_path / "verdicts.jsonl")


def test_a_row_runs_on_all_examples_and_a_combination_on_those_that_stand(log):
    weak, strong = Raise(0.1), Raise(0.18)
    alone = referee(row_of(partial(weak, threat=EPS)), log)
    assert weak.asked == 5 and alone.standing == (True, True, False, False, True)
    weak.asked = 0
    both = referee(row_of(WorstOf({"weak": weak, "strong": strong}), "both"), log)
    assert (weak.asked, strong.asked) == (4, 3)
    assert both.standing == (True, False, False, False, True)
    assert [stage.name for stage in both.stages] == ["weak", "strong"]
    record = row_record(both)
    assert record["accuracy"] == record["accuracy_at_proposals"] == 0.4
    assert record["robust"] == "10001" and record["norm"] == "linf"
    assert [(s["name"], s["accuracy"], s["n"]) for s in record["stages"]] == [
        ("weak", 0.6, 4),
        ("strong", 0.4, 3),
    ]
    assert worst_case([alone, both]) == {"linf": 0.4, "l2": None}


def test_a_combination_goes_on_after_the_last_batch_that_was_judged(log):
    class Enough(Exception):
        pass

    def whole() -> Row:
        attacks = {"weak": Raise(0.1), "strong": Raise(0.18)}
        return row_of(WorstOf(attacks), "both")

    def stopping(batches: int):
        left = iter(range(batches))

        def stop() -> None:
            if next(left, None) is None:
                raise Enough

        return stop

    expected = referee(whole(), VerdictLog(log.path.with_name("other.jsonl")))
    for _ in range(3):
        with pytest.raises(Enough):
            referee(whole(), VerdictLog(log.path), stopping(1))
    row = whole()
    found = referee(row, VerdictLog(log.path), stopping(1))
    assert found.standing == expected.standing
    assert [attack.asked for attack in row.members.values()] == [0, 1]


def test_the_progress_of_a_combination_ends_at_its_whole(log):
    done: list[int] = []
    row = row_of(WorstOf({"weak": Raise(0.1), "strong": Raise(0.18)}))
    referee(row, log, watch=done.append)
    assert sum(done) == 2 * len(EXAMPLES)


@pytest.mark.parametrize(
    ("cheat", "counts"),
    [
        (lambda x: x + 0.3, "outside"),  # beyond eps
        (lambda x: x - 0.2, "outside"),  # out of the box, where the image is dark
        (lambda x: x * torch.nan, "outside"),
    ],
    ids=["beyond eps", "out of the box", "not a number"],
)
def test_the_referee_refuses_a_cheat(log, cheat, counts):
    attack = partial(lambda model, x, y, threat: cheat(x), threat=EPS)
    outcome = referee(row_of(attack), log)
    record = row_record(outcome)
    assert outcome.standing == tuple(RIGHT) and record[counts] > 0


class Overflowing(Brightness):
    """Right where it is asked about images, and not a number between their grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        on_grid = ((20 * x - (20 * x).round()).abs() < 1e-3).flatten(1).all(1, keepdim=True)
        return torch.where(on_grid, super().forward(x), torch.nan)


def test_an_example_falls_to_logits_that_are_not_finite(log):
    model = Overflowing()
    attack = partial(lambda model, x, y, threat: x + 0.01, threat=EPS)
    given = {"clean": RIGHT, "batch_size": 2, "seed": 0}
    quiet = {"stop": lambda: None, "watch": lambda done: None}
    outcome = evaluate(Subject(model, model), EXAMPLES, row_of(attack), log, **given, **quiet)
    record = row_record(outcome)
    assert outcome.standing == (False,) * 5
    assert record["accuracy"] == record["accuracy_at_proposals"] == 0
    assert record["non_finite"] == 5 and record["outside"] == 0


def test_an_example_that_an_attack_makes_right_is_not_robust(log):
    attack = partial(lambda model, x, y, threat: (x - 0.2).clamp(0, 1), threat=Linf(0.3))
    record = row_record(referee(row_of(attack), log))
    assert record["accuracy"] == 0.8 and record["accuracy_at_proposals"] == 1.0


def test_errors_of_networks_are_told_and_those_of_an_attack_pass(log):
    def transferred(model, x, y, threat):
        return nn.Linear(3, 2)(x.flatten(1))

    def careless(model, x, y, threat):
        return {}["x"]

    with pytest.raises(ValueError, match=r"the attack brings fails .* \(2, 1, 2, 2\): RuntimeErr"):
        referee(row_of(partial(transferred, threat=EPS)), log)
    with pytest.raises(KeyError):
        referee(row_of(partial(careless, threat=EPS)), log)


def test_passes_are_those_of_the_attack_and_one_look(log):
    row = row_of(partial(fgsm, threat=EPS))
    (stage,) = referee(row, log).stages
    assert sum(each.forward_passes for each in stage.verdicts) == 2 * len(EXAMPLES)
    assert sum(each.backward_passes for each in stage.verdicts) == len(EXAMPLES)


def test_a_row_called_pgd_is_named_for_its_norm():
    attacks = {
        "pgd": partial(pgd, threat=L2(0.5), steps=1, step_size=0.1),
        "none": partial(clean),
    }
    keys = dict.fromkeys(["clean", "pgd", "none"], "k")
    assert [row.name for row in rows(attacks, keys, 10)] == ["clean", "pgd_l2", "none"]
