import torch

from lit_rlhf import ranks
from tests.support.two_processes import run_in_two_processes


def ask_everything():
    number = ranks.rank()
    own = torch.tensor([1.0 + number, 10.0])
    total = ranks.sum_over_ranks(own)
    return {
        "place": (number, ranks.world_size()),
        "sum": total.tolist(),
        "own": own.tolist(),
        "largest": ranks.largest_over_ranks(-3.0 * number, own.device),
        "from zero": ranks.from_rank_zero({"said by": number}),
    }


def test_processes_agree_on_sums_and_largest_values():
    shared = {"sum": [3.0, 20.0], "largest": 0.0, "from zero": {"said by": 0}}
    assert run_in_two_processes(ask_everything) == [
        {"place": (number, 2), "own": [1.0 + number, 10.0], **shared} for number in range(2)
    ]


def test_a_process_by_itself_is_its_own_sum():
    alone = {"sum": [1.0, 10.0], "largest": 0.0, "from zero": {"said by": 0}}
    assert ask_everything() == {"place": (0, 1), "own": [1.0, 10.0], **alone}
