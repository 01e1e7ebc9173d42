"""Log-probabilities of tokens and entropies of the distributions they were drawn from.

They come from hidden states and the vocabulary matrix, without ever holding the `[S, V]` logits,
which otherwise dominate the memory of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_rlhf.objectives.precision import at_least_float32, product_dtype
from lit_rlhf.ranges import require

# p * log p is 0 in the limit, but 0 * -inf is NaN. exp(-1e4) is exactly 0 in every floating
# type, so cutting the logarithm here changes no product.
_LOWEST_LOGPROB = -1e4

# Elements of a float32 block of logits on a CPU: small enough (2 MiB) to stay in cache from
# one element-wise pass to the next, large enough to hide the cost of a call.
_BLOCK_ELEMENTS = 2**19


class VocabularyScores(NamedTuple):
    """What is read off the distributions over the vocabulary.

    Attributes:
        logprobs: `[S]`, log-probability of each target, float32 (float64 for float64).
        entropy: `[S]` nats, or None if it was not asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None


def chunked_logprobs(  # noqa: PLR0913 - every form of logits that our models use
    hidden: Float[Tensor, "S H"],
    weight: Float[Tensor, "V H"],
    targets: Int[Tensor, " S"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_size: int = 512,
    with_entropy: bool = False,
) -> VocabularyScores:
    """Compute log-probabilities from hidden states, holding one chunk of logits at a time.

    `raw = scale * (hidden @ weight.T + bias)`,
    `z = softcap * tanh(raw / softcap) / temperature` (without `softcap`: `raw / temperature`),
    `logprobs = z[target] - logsumexp(z)`,
    `entropy = -sum(p * log p)` with `p = softmax(z)` and `0 log 0 = 0`.
    The temperature is the one that sampled, so that these are the probabilities that the tokens
    were drawn with. Gradients flow to `hidden`, `weight` and `bias`; the backward pass computes
    the logits a second time.

    Matrix products run in the type of `hidden`, or in that of an active autocast; softmax,
    logarithms and all sums over tokens in float32 (float64 for float64).

    Args:
        hidden: last hidden states, one for each target that counts; `S` may be 0.
        weight: the vocabulary matrix, any floating type.
        targets: token ids in `[0, V)`.
        bias: of the vocabulary projection.
        temperature: > 0.
        softcap: > 0, bound of the logits (Gemma 2), or None.
        scale: multiplies the logits (Cohere's `logit_scale`).
        chunk_size: a chunk holds `chunk_size * V` logits; 512 keeps the matrix products
            large and the chunk small beside the model.
        with_entropy: whether the entropy is wanted; it costs further passes.

    Returns:
        Log-probabilities and, if asked for, entropies.

    Raises:
        ConfigError: if `temperature`, `softcap` or `chunk_size` is not positive.
        ValueError: if the shapes do not fit.
    """
    require("temperature", temperature, above=0)
    require("chunk_size", chunk_size, least=1)
    require("softcap", softcap, above=0, is_optional=True)
    _check_projection(hidden, weight, targets, bias)
    form = _LogitForm(temperature, softcap, scale, chunk_size, product_dtype(hidden))
    scores = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        hidden, weight, bias, targets, form, with_entropy
    )
    return VocabularyScores(*scores)


def logprobs_of_logits(
    logits: Float[Tensor, "S V"],
    targets: Int[Tensor, " S"],
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> VocabularyScores:
    """Compute what `chunked_logprobs` does from logits that are there already.

    Args:
        logits: one row for each target; `S` may be 0.
        targets: token ids in `[0, V)`.
        temperature: > 0.
        with_entropy: whether the entropy is wanted.

    Returns:
        Log-probabilities and, if asked for, entropies.
    """
    logprobs = (at_least_float32(logits) / temperature).log_softmax(-1)
    picked = logprobs.gather(-1, targets[:, None]).squeeze(-1)
    if not with_entropy:
        return VocabularyScores(picked, None)
    return VocabularyScores(picked, -(logprobs.exp() * logprobs.clamp(min=_LOWEST_LOGPROB)).sum(-1))


class _LogitForm(NamedTuple):
    """How a product with the vocabulary matrix becomes logits, and in which pieces."""

    temperature: float
    softcap: float | None
    scale: float
    chunk_size: int
    product_dtype: torch.dtype

    def logits(self, products: Tensor, bias: Tensor | None) -> Tensor:
        """Turn a block of products into temperature-scaled logits, in place if it may."""
        logits = at_least_float32(products)
        if bias is not None:
            logits.add_(bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        return logits

    def capped_slope(self, logits: Tensor) -> Tensor | None:
        """Return the derivative of the softcap, `1 - tanh^2`, or None without one."""
        if self.softcap is None:
            return None
        return 1.0 - (logits * (self.temperature / self.softcap)).square()


class _ChunkedLogprobs(torch.autograd.Function):
    """Forward over chunks of rows, backward over columns of the vocabulary.

    The forward needs whole rows, to normalise them. The backward, which knows each row's
    normaliser, takes all rows and a slice of the vocabulary at a time: each slice of the
    weight's gradient is then one matrix product, written once, where chunks of rows would
    add a full `[V, H]` float32 matrix to itself for every chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it that knows saved_tensors
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        form: _LogitForm,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        vocabulary = weight.to(form.product_dtype).t()  # [H, V], cast once
        result_dtype = torch.promote_types(form.product_dtype, torch.float32)
        logprobs = hidden.new_empty(hidden.shape[0], dtype=result_dtype)
        normalizers = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs) if with_entropy else None
        with torch.autocast(hidden.device.type, enabled=False):
            for chunk in _even_slices(hidden.shape[0], form.chunk_size):
                products = hidden[chunk].to(form.product_dtype) @ vocabulary  # [chunk, V]
                for block in _cache_blocks(products):
                    rows = slice(chunk.start + block.start, chunk.start + block.stop)
                    logits = form.logits(products[block], bias)
                    normalizers[rows] = normalizer = logits.logsumexp(dim=-1)
                    picked = logits.gather(1, targets[rows, None]).squeeze(1)
                    logprobs[rows] = picked - normalizer
                    if entropy is not None:
                        log_p = logits.sub_(normalizer[:, None])
                        p = log_p.exp()
                        entropy[rows] = -(p * log_p.clamp_(min=_LOWEST_LOGPROB)).sum(dim=-1)
        ctx.form = form
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers, entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        grad_logprobs: Tensor | None,
        grad_entropy: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers, entropy = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = torch.zeros_like(normalizers)
        row_state = _RowState(targets, normalizers, entropy, grad_logprobs, grad_entropy)
        form: _LogitForm = ctx.form
        inputs = hidden.to(form.product_dtype)
        result_dtype = torch.promote_types(form.product_dtype, torch.float32)
        needs = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=result_dtype) if needs[0] else None
        grad_weight = torch.empty_like(weight) if needs[1] else None
        grad_bias = torch.empty_like(bias) if bias is not None and needs[2] else None
        num_slices = max(1, -(-hidden.shape[0] // form.chunk_size))
        with torch.autocast(hidden.device.type, enabled=False):
            for columns in _even_slices(weight.shape[0], -(-weight.shape[0] // num_slices)):
                vocabulary = weight[columns].to(form.product_dtype)  # [v, H]
                products = inputs @ vocabulary.t()  # [S, v]
                for block in _cache_blocks(products):
                    logits = form.logits(products[block], None if bias is None else bias[columns])
                    some = row_state.select(block)
                    products[block] = _logit_gradient(logits, some, form, columns.start)
                if grad_hidden is not None:
                    grad_hidden += products @ vocabulary
                if grad_weight is not None:
                    grad_weight[columns] = products.t() @ inputs
                if grad_bias is not None:
                    grad_bias[columns] = products.sum(dim=0, dtype=result_dtype)
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


class _RowState(NamedTuple):
    """What the backward knows of each row: `[S]` tensors, the last two may be absent."""

    targets: Tensor
    normalizers: Tensor
    entropy: Tensor | None
    grad_logprobs: Tensor
    grad_entropy: Tensor | None

    def select(self, rows: slice) -> _RowState:
        """Return the same for some of the rows."""
        return _RowState(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]  # None where it was


def _logit_gradient(
    logits: Tensor, row_state: _RowState, form: _LogitForm, first_column: int
) -> Tensor:
    """Return the gradient of the products `[b, v]`, overwriting `logits`.

    For logits `z`, with `g`, `e` the incoming gradients of log-probability and entropy `H`:
    `dz = g * (onehot - p) - e * p * (log p + H)`.
    """
    slope = form.capped_slope(logits)
    factor = form.scale / form.temperature
    grad_logprobs = (row_state.grad_logprobs * factor)[:, None]  # [b, 1]
    log_p = logits.sub_(row_state.normalizers[:, None])
    if row_state.grad_entropy is None or row_state.entropy is None:
        grad = log_p.exp_().mul_(-grad_logprobs)
    else:
        p = log_p.exp()
        grad_entropy = (row_state.grad_entropy * factor)[:, None]
        grad = log_p.clamp_(min=_LOWEST_LOGPROB).add_(row_state.entropy[:, None])
        grad.mul_(grad_entropy).add_(grad_logprobs).mul_(p).neg_()
    column = row_state.targets[:, None] - first_column
    is_here = (column >= 0) & (column < grad.shape[1])
    grad.scatter_add_(1, column.clamp(0, grad.shape[1] - 1), grad_logprobs * is_here)
    return grad if slope is None else grad.mul_(slope)


def _even_slices(total: int, at_most: int) -> Iterator[slice]:
    """Cut `range(total)` into the fewest slices of `at_most`, as equal as they can be.

    A short last slice would make a matrix product too small to run at full speed.
    """
    num_slices = -(-total // at_most)
    for index in range(num_slices):
        yield slice(total * index // num_slices, total * (index + 1) // num_slices)


def _cache_blocks(products: Tensor) -> Iterator[slice]:
    """Cut rows into blocks whose float32 copy stays in a CPU's cache; elsewhere, one block."""
    num_rows, num_columns = products.shape
    block_rows = num_rows
    if products.device.type == "cpu":
        block_rows = max(1, _BLOCK_ELEMENTS // num_columns)
    return _even_slices(num_rows, max(1, block_rows))


def _check_projection(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    tensors = (hidden, weight, targets, weight[:, 0] if bias is None else bias)
    shapes = [list(tensor.shape) for tensor in tensors]
    (num_rows, width), (vocabulary, _), *_ = shapes
    if shapes != [[num_rows, width], [vocabulary, width], [num_rows], [vocabulary]]:
        raise ValueError(
            "expected hidden [S, H], weight [V, H], targets [S] and bias [V] or None, got "
            f"{', '.join(map(str, shapes))}"
        )
