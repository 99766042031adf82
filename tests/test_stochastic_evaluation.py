"""eval=stochastic and views of an evaluation, on digits whose every draw is known."""

import json
from math import sqrt

import pytest
import torch
from running import run
from stochastic_cases import SWITCHES, Jittered, Plain, Scores

from advtrain.evaluation import Outcome, Row, Stage
from advtrain.models import views
from advtrain.records import Verdicts
from advtrain.results import looks, spread

SIZE = 60
SMALL = (
    *("eval.attacks.naive.attack.steps=10", "eval.attacks.eot.attack.steps=10"),
    "eval.attacks.square.attack.queries=10",
    *("eval.attacks.square.view.draws=2", "threat.eps=0.2"),
)
MEAN = "{_target_: advtrain.models.views.mean_of, _partial_: true, draws: 9}"
VOTE = MEAN.replace("mean_of", "majority")


@pytest.fixture(autouse=True)
def _switches(monkeypatch):
    monkeypatch.setattr(views, "lwta", SWITCHES)


def evaluation(directory, *overrides, of=Scores):
    torch.save({"state_dict": of().state_dict()}, directory / "w.pt")
    status = run(
        directory / "out",
        *("job=eval", "model=custom", f"model.factory=stochastic_cases.{of.__name__}"),
        *(f"checkpoint={directory / 'w.pt'}", "logger=none", "device=cpu"),
        *(f"dataset.test_size={SIZE}", *overrides),
    )
    path = directory / "out" / "results.json"
    return status, json.loads(path.read_text()) if path.exists() else {}


def said(found, check):
    return [w for w in found["warnings"] if w["check"] == check]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "lwta", SWITCHES)
        directory = tmp_path_factory.mktemp("stochastic")
        status, found = evaluation(directory, "eval=stochastic", *SMALL)
    assert status["state"] == "done", status["error"]
    return directory, found


def rows(found):
    return {(row["name"], row["view"]): row for row in found["rows"]}


def test_every_row_is_judged_by_the_mean_over_draws(whole):
    _, found = whole
    names = ["clean", "naive", "eot", "trained_at", "noise_free", "square"]
    assert [(r["name"], r["view"]) for r in found["rows"]] == [(n, "draws=20") for n in names]
    assert [r.get("through") for r in found["rows"]] == [
        *(None, "identity", "mean_of(draws=20)"),
        *("at_temperature(tau=train)", "noise_free", "mean_of(draws=2)"),
    ]
    assert [r["attack"] for r in found["rows"]] == [None, *["pgd"] * 4, "square"]


def test_passes_are_counted_draw_by_draw(whole):
    _, found = whole
    judged = 20 + 10  # by the mean, and by single draws
    spent = {r["name"]: (r["forward_passes"], r["backward_passes"]) for r in found["rows"]}
    assert spent["clean"] == (SIZE * judged, 0)
    assert spent["naive"] == spent["noise_free"] == (SIZE * (10 + judged), SIZE * 10)
    assert spent["eot"] == (SIZE * (200 + judged), SIZE * 200)


def test_single_draws_are_told_by_their_mean_and_spread(whole):
    """Each draw of an image is right with the probability softmax(scores)_y."""
    _, found = whole
    p = probabilities()
    mean = float(p.mean())
    draws = found["rows"][0]["draws"]
    assert draws["n"] == 10
    assert draws["mean"] == pytest.approx(mean, abs=4 * sqrt(0.25 / SIZE / 10))
    assert draws["sd"] == pytest.approx(float((p * (1 - p)).sum().sqrt() / SIZE), rel=1)
    assert draws["all"] == pytest.approx(float((p**10).mean()), abs=0.12)
    assert draws["all"] < draws["mean"] - 0.05


def probabilities():
    """Of the label, of the test images of the run: the last of the digits."""
    from running import configuration

    from advtrain.runs import setting

    config = configuration(f"dataset.test_size={SIZE}", "device=cpu", "logger=none")
    x, y = setting(config, None, ()).data.test.batch(slice(0, SIZE))
    with torch.no_grad():
        return Plain()(x).softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)


def test_how_far_single_draws_overstate_is_an_entry_and_a_warning(whole):
    _, found = whole
    (entry,) = found["single_draw"]
    naive, worst = rows(found)["naive", "draws=20"], found["worst_case"]["linf"]
    assert entry["n"] == SIZE and entry["naive"]["mean"] == naive["draws"]["mean"] > 0.4
    assert entry["adaptive"]["accuracy"] == worst < 0.05
    low, high = entry["overstated"]["ci95"]
    assert low < entry["overstated"]["mean"] < high
    assert entry["overstated"]["mean"] == pytest.approx(naive["draws"]["mean"] - worst)
    assert entry["control"]["accuracy"] == found["rows"][0]["draws"]["all"]
    (warning,) = said(found, "single_draw")
    assert warning["row"] == "naive" and f"n = {SIZE}" in warning["message"]


def test_only_the_row_that_takes_the_network_for_a_fixed_one_is_warned_of(whole):
    _, found = whole
    about = {w["row"]: w["message"] for w in said(found, "stochastic")}
    assert about.keys() == {"model", "naive"} and "as if the network drew nothing" in about["naive"]


def test_an_evaluation_goes_on_with_its_draws(whole):
    directory, found = whole
    lines = (directory / "out" / "verdicts.jsonl").read_text()
    _, again = evaluation(directory, "eval=stochastic", *SMALL)
    assert again["rows"] == found["rows"]
    assert (directory / "out" / "verdicts.jsonl").read_text() == lines


def test_tables_show_the_view_and_the_spread(whole):
    directory, _ = whole
    table = (directory / "out" / "table.md").read_text()
    assert "draws=20" in table
    page = (directory / "out" / "report.html").read_text()
    assert "too high by" in page and "through noise_free" in page


def test_rand_and_a_sweep_of_temperatures_are_a_word_away(tmp_path):
    size = 20
    status, found = evaluation(
        *(tmp_path, "eval=stochastic_full", *SMALL, f"eval.size={size}", "eval.draws=5"),
        "eval.attacks.rand.attack.steps=2",
    )
    assert status["state"] == "done", status["error"]
    seen = rows(found)
    rand, clean = seen["rand", "draws=20"], seen["clean", "draws=20"]
    assert seen["at_tau_0_1", "draws=20"]["through"] == "at_temperature(tau=0.1)"
    assert seen["at_tau_1", "draws=20"]["accuracy"] <= seen["naive", "draws=20"]["accuracy"]
    assert (rand["version"], rand["through"]) == ("rand", "identity")
    assert rand["accuracy"] < clean["accuracy"] and rand["draws"]["n"] == 5
    attacked = [stage["n"] for stage in rand["stages"]]
    judged = sum(attacked) * (20 + 5)  # by the mean, and by single draws
    assert rand["forward_passes"] > judged and rand["stages"][0]["name"] == "apgd_ce"
    assert {warning["row"] for warning in said(found, "stochastic")} == {"model", "naive"}


def test_single_draws_of_a_combination_are_at_the_points_that_it_leaves():
    def verdicts(at: tuple[int, ...], robust: str, *draws: str) -> Verdicts:
        return Verdicts("k", at, robust, robust, 0, 0, 0, 0, 0.0, draws=draws)

    stages = (
        Stage("first", (verdicts((0, 1), "01", "10", "11"), verdicts((3,), "0", "0", "0"))),
        Stage("second", (verdicts((1,), "1", "1", "0"),)),
    )
    row = Row("both", "k", None, {"first": None, "second": None}, draws=3)
    found = Outcome(row, stages, (False, True, False, False))  # 2 was wrong without an attack
    assert looks(found) == [(True, True), (True, False), (False, False), (False, False)]
    told = spread(found)["draws"]
    assert (told["n"], told["mean"], told["all"]) == (2, 0.375, 0.25)
    assert told["sd"] == pytest.approx(sqrt(2) * 0.125)


def test_examples_of_another_network_are_a_word_away(tmp_path):
    torch.save({"state_dict": Plain().state_dict()}, tmp_path / "other.pt")
    status, found = evaluation(
        *(tmp_path, "eval=stochastic_transfer", *SMALL, "eval.size=20"),
        f"eval.attacks.transfer.source.checkpoint={tmp_path / 'other.pt'}",
        "eval.attacks.transfer.source.model={_target_: advtrain.models.custom.custom, "
        "_partial_: true, factory: stochastic_cases.Plain, arguments: {}}",
        *("packages=[stochastic_cases]", "~eval.attacks.square", "eval.attacks.eot.view.draws=2"),
    )
    assert status["state"] == "done", status["error"]
    seen = rows(found)
    assert seen["transfer", "draws=20"]["accuracy"] < seen["naive", "draws=20"]["accuracy"]
    assert "transfer" in found["single_draw"][0]["adaptive"]["rows"]


def test_a_network_that_draws_nothing_is_told_so_and_spared(tmp_path):
    status, found = evaluation(tmp_path, "eval=stochastic", *SMALL, of=Plain)
    assert status["state"] == "done"
    assert [(r["name"], r["view"]) for r in found["rows"]] == [
        ("clean", "identity"),
        ("naive", "identity"),
    ]
    assert found["rows"][0]["forward_passes"] == SIZE and "draws" not in found["rows"][0]
    (told,) = said(found, "not_stochastic")
    assert "answers the same every time" in told["message"] and "eot" in told["message"]


def test_a_row_is_run_under_each_view(tmp_path):
    status, found = evaluation(
        *(tmp_path, "eval=quick", "scale.steps=2", "eval.draws=2"),
        *(
            f"+eval.views={{mean: {MEAN}, votes: {VOTE}}}",
            "~eval.attacks.pgd",
            "~eval.attacks.fgsm",
        ),
        "+eval.attacks.eot={_target_: advtrain.attacks.through.through, _partial_: true, threat: "
        "'${threat}', view: '${eval.views.mean}', attack: {_target_: advtrain.attacks.pgd.fgsm, "
        "_partial_: true, threat: '${threat}'}}",
    )
    assert status["state"] == "done", status["error"]
    assert list(rows(found)) == [
        (name, view) for view in ("identity", "draws=9", "votes=9") for name in ("clean", "eot")
    ]
    assert len({row["key"] for row in found["rows"]}) == 6
    assert list(found["worst_case_by_view"]) == ["identity", "draws=9", "votes=9"]
    concerned = {(w["row"], w["view"]) for w in said(found, "stochastic") if "view" in w}
    assert concerned == {("clean", "identity"), ("eot", "identity")}
    assert "fresh ones are right on" in said(found, "stochastic")[1]["message"]


def test_every_row_of_a_stochastic_network_under_the_usual_evaluation_is_warned_of(tmp_path):
    _, found = evaluation(
        *(tmp_path, "eval=standard", "scale.steps=2", "scale.certified=2", "scale.draws=100"),
        "eval.certify.alpha=0.01",
    )
    warned = {w["row"] for w in said(found, "stochastic")}
    assert warned == {"model", "clean", "fgsm", "pgd_linf", "pgd_l2", "certified"}
    assert found["certified"]["view"] == "identity"


def test_rows_through_what_the_layers_of_a_network_do_not_know_are_left_out(tmp_path):
    status, found = evaluation(
        *(tmp_path, "eval=stochastic", *SMALL, "eval.size=20", "eval.views.mean.draws=3"),
        *("~eval.attacks.square", "eval.attacks.eot.view.draws=2", "eval.naive=noise_free"),
        of=Jittered,
    )
    assert status["state"] == "done", status["error"]
    assert [r["name"] for r in found["rows"]] == ["clean", "naive", "eot"]
    told = {w["row"]: w["message"] for w in said(found, "left_out")}
    assert told.keys() == {"trained_at", "noise_free"}
    assert "no layer of the network" in told["trained_at"] and "single_draw" not in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("eval.views.mean.draws=0", "eval.views.mean.draws=0 is refused"),
        (
            f"+eval.views.other={MEAN.replace('9', '0')}",
            "draws=0 is refused",
        ),
        ("eval.naive=nobody", "naive=nobody is no row"),
        ("eval.draws=0", "eval.draws=0 is refused"),
        ("eval.attacks.trained_at.view.tau=hot", "view.tau=hot is refused"),
    ],
)
def test_bad_input_is_named(tmp_path, override, expected):
    status, _ = evaluation(tmp_path, "eval=stochastic", override)
    assert status["exit_code"] == 2 and expected in status["error"], status["error"]


def test_gradients_of_votes_are_refused_in_a_sentence(tmp_path):
    status, _ = evaluation(
        *(tmp_path, "eval=quick", f"+eval.views.votes={VOTE}", "~eval.views.identity"),
        "eval.draws=1",
    )
    assert status["exit_code"] == 1 and "row fgsm" in status["error"]
    assert "Craft through the mean" in status["error"]
