import pytest
import torch

from advtrain.functional import cross_entropy, dlr, kl, margin

Z = torch.tensor([[1.0, 3.0, -2.0, 0.5], [-5.0, -4.0, -9.0, -7.0]])
Y = torch.tensor([1, 0])


def test_the_margin_is_negative_exactly_while_the_label_wins() -> None:
    assert torch.equal(margin(Z, Y), torch.tensor([-2.0, 1.0]))


def test_the_dlr_is_the_margin_over_the_spread_of_the_top_three() -> None:
    assert torch.allclose(dlr(Z, Y), torch.tensor([-2.0 / 2.5, 1.0 / 3.0]))


def test_the_dlr_does_not_see_shift_or_scale() -> None:
    assert torch.allclose(dlr(100 * Z + 7, Y), dlr(Z, Y))


def test_the_dlr_refuses_two_classes() -> None:
    with pytest.raises(ValueError, match="dlr needs three classes"):
        dlr(Z[:, :2], Y)


def test_cross_entropy_is_minus_the_log_of_the_softmax() -> None:
    expected = -Z.softmax(1).gather(1, Y[:, None]).log().squeeze(1)
    assert torch.allclose(cross_entropy(Z, Y), expected)


def test_kl_is_the_sum_of_p_log_p_over_q() -> None:
    p, q = Z.softmax(1), Z.flip(0).softmax(1)
    assert torch.allclose(kl(Z, Z.flip(0)), (p * (p / q).log()).sum(1))
    assert torch.equal(kl(Z, Z), torch.zeros(2))


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr])
def test_half_precision_logits_are_judged_in_float32(loss) -> None:
    assert loss(Z.bfloat16(), Y).dtype == torch.float32
    assert loss(Z.double(), Y).dtype == torch.float64


def test_smoothed_labels_share_their_part_over_all_classes() -> None:
    log_p = torch.log_softmax(Z, 1)
    target = torch.full_like(Z, 0.1 / 4) + 0.9 * torch.nn.functional.one_hot(Y, 4)
    torch.testing.assert_close(cross_entropy(Z, Y, 0.1), -(target * log_p).sum(1))
