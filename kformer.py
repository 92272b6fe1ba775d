"""Kformer: knowledge injected into the feed-forward layers of a BERT-style encoder, in one file.

Yao, Huang, Dong, Wei, Chen, Zhang: "Kformer: Knowledge Injection in Transformer Feed-Forward
Layers", 2022, https://arxiv.org/abs/2201.05742; their code is https://github.com/zjunlp/Kformer,
here "the release".

An FFN is a memory (Geva et al. 2021, arXiv 2012.14913): the columns of W1 are keys that a token is
compared with, the rows of W2 are values that are added up, each as strongly as its key fired.
Kformer gives that memory N more entries, one for each fact that was retrieved for the question:

    K = F Wk + bk,  V = F Wv + bv              a key and a value for every fact         (N, D)
    FFN(x) = gelu(x W1 + b1) W2 + b2           what BERT does                           (T, D)
           + gelu(x Kᵀ) V                      what Kformer adds: N more hidden neurons

Two rivals get the same facts: "attention" puts K and V in front of the keys and values of
self-attention, "concat" puts the words of the facts behind the input. "none" gets no facts.

Shapes. B questions, C choices, T tokens, N facts, L tokens in a fact, D hidden size, M FFN width,
H heads. "..." stands for the rows of a batch, (B,) or (B, C): nothing below mixes two rows, so no
class needs to know how many leading dimensions there are. Facts that all choices of a question
share have a 1 in the place of C: they are embedded and projected once, and broadcast.

Read it from top to bottom, in the order in which data meets the parts: config, embeddings,
facts, attention, FFN, block, encoder with pooler, multiple choice. It needs torch alone.
"""

from copy import deepcopy
from dataclasses import dataclass, fields
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


@dataclass
class KformerConfig:
    """Sizes and switches. Up to `pad_token_id` the names are those of a Hugging Face config.json.

    Raises ValueError for values that can't make a model.
    """

    vocab_size: int = 30522
    hidden_size: int = 768  # D
    num_hidden_layers: int = 12
    num_attention_heads: int = 12  # H
    intermediate_size: int = 3072  # M
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # segments
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    sep_token_id: int = 102  # closes the segment of facts in "concat"
    model_type: str = "bert"  # or "roberta": they differ in how positions are counted
    inject: str = "none"  # or "concat", "attention", "ffn"
    inject_layers: tuple[int, ...] | None = None  # from 0, at the bottom; None: the top ones
    num_facts: int = 5  # N, how many of the candidate facts are kept

    def __post_init__(self) -> None:
        self.check_numbers()
        if self.inject_layers is None:  # the top three, the paper's best; never the bottom one too
            top = min(3, max(1, self.num_hidden_layers - 1))
            self.inject_layers = tuple(range(self.num_hidden_layers))[-top:]
        self.inject_layers = tuple(self.inject_layers)
        if self.model_type not in ("bert", "roberta"):
            raise ValueError(f'model_type is "{self.model_type}", must be "bert" or "roberta"')
        if self.inject not in ("none", "concat", "attention", "ffn"):
            raise ValueError(f'inject is "{self.inject}", must be none, concat, attention or ffn')
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} can't be divided among "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if not set(self.inject_layers) <= set(range(self.num_hidden_layers)):
            raise ValueError(
                f"inject_layers {self.inject_layers} must lie between 0 and "
                f"{self.num_hidden_layers - 1}: num_hidden_layers is {self.num_hidden_layers}"
            )
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"pad_token_id {self.pad_token_id} must be below vocab_size {self.vocab_size}"
            )
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no room for a token"
            )

    def check_numbers(self) -> None:
        """A config.json that somebody wrote may hold anything."""
        for field in fields(self):
            value = getattr(self, field.name)
            most = 1000 if field.name == "num_hidden_layers" else 1_000_000
            least = 0 if field.name.endswith("token_id") else 1
            if field.type is int and (type(value) is not int or not least <= value <= most):
                raise ValueError(
                    f"{field.name} is {value!r}, must be a whole number from {least} to {most:,}"
                )
            if field.type is float and (type(value) not in (int, float) or not 0 <= value < 1):
                raise ValueError(f"{field.name} is {value!r}, must be at least 0 and below 1")

    @property
    def max_tokens(self) -> int:
        """The longest input. RoBERTa's first pad_token_id + 1 positions are never used."""
        unused = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - unused


# ------------------------------------------------------------------------ dropout, embeddings


class Dropout(nn.Dropout):
    """What torch's does, but on a CPU one random number of 64 bits decides over four entries.

    Torch draws one for each, a seventh of the time that a training step in bfloat16 takes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu":
            return super().forward(x)
        dice = torch.randint(-(2**63), 2**63 - 1, (x.numel() // 4 + 1,)).view(torch.int16)
        keep = dice[: x.numel()].view(x.shape) >= round(2**16 * self.p) - 2**15
        return x * keep / (1 - self.p)


def sinusoids(length: int, D: int) -> Tensor:
    """(length, D): sine and cosine of the position, in wavelengths from short to long."""
    angle = torch.arange(length).unsqueeze(-1) * torch.exp(-4 * torch.arange(0, D, 2) / D)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[:, :D]


class Embeddings(nn.Module):
    """Token ids (..., T) -> x (..., T, D): word + position + segment, LayerNorm, dropout."""

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        self.config = config
        D = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, D)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.position_embeddings.weight.data = sinusoids(config.max_position_embeddings, D)
        self.token_type_embeddings.weight.data /= 2  # what and where count more than which segment

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        if input_ids.shape[-1] > self.config.max_tokens:
            raise ValueError(
                f"input_ids has {input_ids.shape[-1]} tokens, but with max_position_embeddings "
                f"{self.config.max_position_embeddings} there is room for {self.config.max_tokens}"
            )
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(self.positions(input_ids))
        return self.dropout(self.norm(x))

    def positions(self, input_ids: Tensor) -> Tensor:
        """BERT counts 0, 1, 2, ...; RoBERTa counts from pad_token_id + 1 and leaves padding out."""
        pad = self.config.pad_token_id
        if self.config.model_type == "bert":
            return torch.arange(input_ids.shape[-1], device=input_ids.device)
        real = (input_ids != pad).long()
        return pad + real.cumsum(-1) * real


# --------------------------------------------------------------------------------------- facts


def mean_embedding(table: nn.Embedding, ids: Tensor, real: Tensor) -> Tensor:
    """(..., L) -> (..., D): the mean over the real tokens; zero, not 0/0, where there are none."""
    total = (table(ids) * real.unsqueeze(-1)).sum(-2)
    return total / real.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def nearest_facts(
    fact_ids: Tensor, table: nn.Embedding, question: Tensor, config: KformerConfig
) -> Tensor:
    """Of S candidates keep the `num_facts` nearest to the question, in the order they came in.

    Nearest is the largest dot product with the mean word embedding of the question's input (paper,
    section 3.2; transformer_sentence_encoder.py of the release). Between equals the first one wins;
    empty slots come last.

    fact_ids (..., S, L), question (..., D) -> (..., N, L), N = num_facts
    """
    real = fact_ids != config.pad_token_id
    # A dot product with a mean is the mean of dot products: the question's with every word of the
    # vocabulary, (..., V), are enough, and no (..., S, L, D) of all candidates is ever there.
    products = torch.take_along_dim(question @ table.weight.T, fact_ids.flatten(-2), -1)
    products = products.unflatten(-1, fact_ids.shape[-2:])  # (..., S L) -> (..., S, L)
    relevance = (products * real).sum(-1) / real.sum(-1)  # (..., S)
    relevance = relevance.masked_fill(~real.any(-1), -torch.inf)
    best = relevance.argsort(dim=-1, descending=True, stable=True)[..., : config.num_facts]
    return torch.take_along_dim(fact_ids, best.sort(-1).values.unsqueeze(-1), dim=-2)


def append_facts(
    input_ids: Tensor, mask: Tensor, token_type_ids: Tensor, fact_ids: Tensor, config: KformerConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Concat: [CLS] question [SEP] choice [SEP] fact fact ... [SEP], all padding behind.

    The facts are a segment of their own if the model has a third one. What doesn't fit into the
    longest input is cut off at the end.

    ids, mask and segments (..., T), fact_ids (..., N, L) -> the same three (..., T + N L + 1), less
    the columns in which all is padding
    """
    facts = fact_ids.flatten(-2).expand(*input_ids.shape[:-1], -1)  # (..., N L)
    real = facts != config.pad_token_id
    closed = real.any(-1, keepdim=True)  # no facts, no separator
    separator = torch.where(closed, config.sep_token_id, config.pad_token_id)
    segment = torch.full_like(facts, min(2, config.type_vocab_size - 1))

    ids = torch.cat([input_ids, facts, separator], -1)
    mask = torch.cat([mask, real, closed], -1)
    segments = torch.cat([token_type_ids, segment, segment[..., :1]], -1)

    longest = max(input_ids.shape[-1], int(mask.sum(-1).max()))
    places = mask.int().argsort(dim=-1, descending=True, stable=True)  # first all that is real
    places = places[..., : min(longest, config.max_tokens)]
    return ids.gather(-1, places), mask.gather(-1, places), segments.gather(-1, places)


# ----------------------------------------------------------------------------------- attention

Knowledge = tuple[Tensor, Tensor, Tensor]  # K (..., N, D), V (..., N, D), what isn't empty (..., N)


def hide(scores: Tensor, real: Tensor) -> Tensor:
    """Scores (..., H, T, S) of what isn't real (..., S) become the lowest number there is.

    Not -inf: where nothing is real, the softmax of -inf would be 0/0.
    """
    return scores.masked_fill(~real[..., None, None, :], torch.finfo(scores.dtype).min)


def log_sum_exp(scores: Tensor, probs: Tensor) -> Tensor:
    """log Σ exp(s) over the last dimension, from p = softmax(s): (..., S), (..., S) -> (..., 1).

    It is Σ p (s - log p), since each p = exp(s - log_sum_exp). On a CPU torch.logsumexp is several
    times slower where scores are hidden: exp underflows there.
    """
    p = probs.detach()  # the gradient for s is p; what would come to it through p adds up to 0
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    return (p * (scores - log_p)).sum(-1, keepdim=True)


class SelfAttention(nn.Module):
    """x (..., T, D) -> (..., T, D): softmax(q kᵀ / sqrt(D/H)) v in H heads, then a linear layer.

    With a prefix, every token also attends to the facts, as if K and V stood in front of k and v.
    Of the results only the first `wanted` are worked out, None: all T.
    `fact_scores` (..., T, N) is the share of the attention that each fact got, mean of the heads.
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.output = nn.Linear(D, D)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.fact_scores: Tensor | None = None
        for linear in (self.query, self.key, self.value, self.output):
            linear.weight.data.mul_(0.3).diagonal().add_(1)  # near I: q kᵀ starts as likeness

    def forward(
        self, x: Tensor, mask: Tensor, prefix: Knowledge | None = None, wanted: int | None = None
    ) -> Tensor:
        self.fact_scores = None
        q = self.heads(self.query(x[..., :wanted, :]))
        k, v = self.heads(self.key(x)), self.heads(self.value(x))
        q = q / sqrt(q.shape[-1])
        scores = hide(q @ k.mT, mask)  # (..., H, T, D/H) -> (..., H, T, T)
        probs = scores.softmax(-1)
        out = self.dropout(probs) @ v  # -> (..., H, T, D/H)

        if prefix is not None:
            K, V, real = prefix
            fact_scores = hide(q @ self.heads(K).mT, real)  # -> (..., H, T, N)
            # In softmax(q [Kᵀ kᵀ]) [V; v] the tokens together count as much as one fact would whose
            # score is the log-sum-exp of theirs (He et al. 2022, arXiv 2110.04366, section 3.1).
            # Written like this, empty slots get the share 0, and not a bit of the rest changes.
            tokens = log_sum_exp(scores, probs)  # -> (..., H, T, 1)
            # (Transposed, since softmax over a last dimension as short as 1 + N is slow on a CPU.)
            shares = torch.cat([tokens, fact_scores], -1).mT.softmax(-2).mT  # -> (..., H, T, 1 + N)
            out = shares[..., :1] * out + self.dropout(shares[..., 1:]) @ self.heads(V)
            self.fact_scores = shares[..., 1:].detach().mean(-3)

        return self.output(out.transpose(-3, -2).flatten(-2))  # (..., H, T, D/H) -> (..., T, D)

    def heads(self, x: Tensor) -> Tensor:  # (..., T, D) -> (..., H, T, D/H)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


# ----------------------------------------------------------------------------------------- FFN


class FFN(nn.Module):
    """x (..., T, D) -> (..., T, D): gelu(x W1 + b1) W2 + b2, and with facts + gelu(x Kᵀ) V.

    `fact_scores` (..., T, N) is gelu(x Kᵀ): how strongly each fact fired at each token.
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        self.W1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.W2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.fact_scores: Tensor | None = None

    def forward(self, x: Tensor, neurons: Knowledge | None = None) -> Tensor:
        self.fact_scores = None
        out = self.W2(gelu(self.W1(x)))  # (..., T, D) -> (..., T, M) -> (..., T, D)
        if neurons is not None:
            K, V, real = neurons
            # x Kᵀ, then fired V; @ would copy K and V for each choice that shares them
            fired = gelu(torch.einsum("...td,...nd->...tn", x, K)) * real.unsqueeze(-2)
            out = out + torch.einsum("...tn,...nd->...td", fired, V)
            self.fact_scores = fired.detach()
        return out


# --------------------------------------------------------------------------------------- block


class Block(nn.Module):
    """One layer of the encoder, LayerNorm behind each half as in BERT. Here the facts come in.

    How it starts, where no checkpoint says otherwise: Wk and Wv at a multiple of the identity, the
    matrices of attention near it, so that a token first looks for words like itself. In trained
    models query times key looks like that (Trockman and Kolter 2023, arXiv 2305.09828). The release
    draws all from N(0, 0.02); from there the toy world isn't learned in minutes, see README.
    """

    def __init__(self, config: KformerConfig, injected: bool) -> None:
        super().__init__()
        D = config.hidden_size
        self.inject = config.inject if injected else "none"
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.ffn = FFN(config)
        self.ffn_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        if self.inject in ("attention", "ffn"):
            self.Wk, self.Wv = nn.Linear(D, D), nn.Linear(D, D)  # kfc1 and kfc2 of the release
            start = 1.0 if self.inject == "ffn" else 6.0  # softmax(q Kᵀ / sqrt(D/H)) needs larger K
            for linear in (self.Wk, self.Wv):
                linear.weight.data = start * torch.eye(D)
                linear.bias.data.zero_()

    def forward(
        self, x: Tensor, mask: Tensor, facts: Tensor | None, real: Tensor | None,
        wanted: int | None = None,
    ) -> Tensor:
        prefix = neurons = None
        if facts is not None and self.inject in ("attention", "ffn"):
            knowledge = self.Wk(facts), self.Wv(facts), real  # K = F Wk + bk, V = F Wv + bv
            if self.inject == "attention":
                prefix = knowledge
            else:
                neurons = knowledge
        attended = self.dropout(self.attention(x, mask, prefix, wanted))
        x = self.attention_norm(x[..., :wanted, :] + attended)
        return self.ffn_norm(x + self.dropout(self.ffn(x, neurons)))


class Encoder(nn.Module):
    """The blocks, one after the other. `layer[i].ffn.fact_scores` is there to be looked at.

    Where only the first tokens' states are `wanted`, the top block works out no others.
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            Block(config, i in config.inject_layers) for i in range(config.num_hidden_layers)
        )

    def forward(
        self, x: Tensor, mask: Tensor, facts: Tensor | None, real: Tensor | None, wanted: int
    ) -> Tensor:
        *lower, top = self.layer
        for block in lower:
            x = block(x, mask, facts, real)
        return top(x, mask, facts, real, wanted)


# ----------------------------------------------------------------------- the model and its head


class Kformer(nn.Module):
    """Token ids, and the ids of candidate facts -> last hidden states.

    input_ids (..., T); attention_mask (..., T), 1 for a token and 0 for padding, by default what
    isn't `pad_token_id`; token_type_ids (..., T), by default 0; fact_ids (..., S, L), padded with
    `pad_token_id`, an all-padding row is an empty slot -> (..., T, D), or (..., wanted, D) where
    only the states of the first `wanted` tokens are of use

    `kept_facts` (..., N, L) are the ids of the facts that were kept of the last ones.
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.kept_facts: Tensor | None = None
        if config.inject in ("attention", "ffn"):  # a copy, trained on its own (paper, section 3.2)
            self.fact_embeddings = deepcopy(self.embeddings.word_embeddings)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, fact_ids: Tensor | None = None,
        wanted: int | None = None,
    ) -> Tensor:
        pad, T = self.config.pad_token_id, input_ids.shape[-1]
        mask = input_ids != pad if attention_mask is None else attention_mask.bool()
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        facts = real = self.kept_facts = None
        if fact_ids is not None and fact_ids.dim() != input_ids.dim() + 1:
            raise ValueError(
                f"fact_ids {tuple(fact_ids.shape)} must have one dimension more than input_ids "
                f"{tuple(input_ids.shape)}: for each row of tokens, facts and their tokens"
            )
        if fact_ids is not None and self.config.inject != "none":
            concat, words = self.config.inject == "concat", self.embeddings.word_embeddings
            table = words if concat else self.fact_embeddings
            if fact_ids.shape[-2] > self.config.num_facts:
                question = mean_embedding(words, input_ids, mask)
                fact_ids = nearest_facts(fact_ids, table, question, self.config)
            self.kept_facts = fact_ids
            if concat:
                input_ids, mask, segments = append_facts(
                    input_ids, mask, segments, fact_ids, self.config
                )
            else:
                facts = mean_embedding(table, fact_ids, fact_ids != pad)
                real = (fact_ids != pad).any(-1)
        x = self.embeddings(input_ids, segments)
        return self.encoder(x, mask, facts, real, T if wanted is None else wanted)


class KformerForMultipleChoice(Kformer):
    """One score for each choice; train it with softmax and cross entropy over the choices.

    Each choice is encoded on its own: [CLS] -> dense -> tanh -> one number, as in BERT.
    input_ids, attention_mask, token_type_ids (B, C, T); fact_ids (B, S, L), shared by the choices,
    or (B, C, S, L), a set for each -> (B, C)

    The scores come from [CLS] alone, so with `scores_only` the top layer works out nothing else:
    the same scores, a seventh faster in six layers; its `fact_scores` are then (B, C, 1, N).
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, fact_ids: Tensor | None = None,
        scores_only: bool = False,
    ) -> Tensor:
        if fact_ids is not None and fact_ids.dim() == 3:
            fact_ids = fact_ids.unsqueeze(1)  # (B, S, L) -> (B, 1, S, L)
        wanted = 1 if scores_only else None
        x = super().forward(input_ids, attention_mask, token_type_ids, fact_ids, wanted)
        pooled = torch.tanh(self.pooler(x[..., 0, :]))  # (B, C, T, D) -> (B, C, D)
        return self.classifier(self.dropout(pooled)).squeeze(-1)  # -> (B, C)
