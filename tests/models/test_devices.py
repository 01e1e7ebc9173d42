import torch

from lit_rlhf.models import packing
from lit_rlhf.models.devices import width_multiple
from lit_rlhf.models.policy import PolicyModel
from tests.models.examples import lively_model, random_rows


def test_a_wrapped_model_never_computes_with_cudnn_attention():
    torch.backends.cuda.enable_cudnn_sdp(True)
    PolicyModel(lively_model())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_packed_widths_are_multiples_of_a_block_on_gpus_alone():
    assert width_multiple(torch.device("cuda", 1)) == 128
    assert width_multiple(torch.device("cpu")) == 1


def test_rows_in_wider_packed_rows_are_what_they_are_alone(monkeypatch):
    monkeypatch.setattr(packing, "width_multiple", lambda device: 128)
    model, rows = (
        PolicyModel(lively_model(), packing_width=256),
        random_rows([60, 12, 12, 3] * 2, [20, 30, 8, 20] * 2),
    )
    packed = packing.pack_rows(
        rows.input_ids, rows.lengths, rows.response_mask.int().argmax(1), 256
    )
    assert packed.input_ids.shape[1] % 128 == 0
    plain = PolicyModel(model.model, packing_width=None)(rows).logprobs
    torch.testing.assert_close(model(rows).logprobs, plain, atol=1e-5, rtol=1e-5)
