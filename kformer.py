"""Kformer: knowledge injected into the feed-forward layers of a BERT-style encoder, in one file.

Yao, Huang, Dong, Wei, Chen, Zhang: "Kformer: Knowledge Injection in Transformer Feed-Forward
Layers", 2022, https://arxiv.org/abs/2201.05742; their code is https://github.com/zjunlp/Kformer,
here "the release".

An FFN is a memory (Geva et al. 2021, arXiv 2012.14913). It compares a token with M keys, the
columns of W1, and adds up M values, the rows of W2, each as strongly as its key fired. Kformer
gives this memory N more entries, one for each fact that is kept for the question:

    FFN(x) = gelu(x W1 + b1) W2 + b2           what BERT does
           + gelu(x Kᵀ) V                      what Kformer adds: N more hidden neurons

    K = F Wk + bk,  V = F Wv + bv              a key and a value from each fact

A fact, a row of F, is the mean of the embeddings of its words. Two rivals get the facts in other
ways, and the plain model gets none:

    inject       what becomes of the facts                                    where
    -----------  -----------------------------------------------------------  ----------------
    "none"       nothing                                                      Kformer
    "concat"     their words follow the input, as further tokens              append_facts
    "attention"  K and V stand before the keys and values of self-attention   SelfAttention
    "ffn"        K and V are N more hidden neurons                            FFN

Shapes. B questions, C choices, T tokens, S candidate facts, N facts kept, L tokens in a fact,
D hidden size, M FFN width, H heads. "..." is the batch, (B,) or (B, C). Facts that all choices of a
question share are (B, 1, ...), and are broadcast.

Read from top to bottom: the parts, the whole model (`Kformer`), what training starts from. It needs
torch alone; `python kformer.py` teaches a tiny model to read facts, in a few seconds.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

VARIANTS = ("none", "concat", "attention", "ffn")
MODEL_TYPES = ("bert", "roberta")


@dataclass
class KformerConfig:
    """Sizes and switches, checked. Up to `pad_token_id` the names are Hugging Face's."""

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
    sep_token_id: int = 102  # closes the facts in "concat"
    model_type: str = "bert"  # one of MODEL_TYPES, which differ in how positions are counted
    inject: str = "none"  # one of VARIANTS
    inject_layers: tuple[int, ...] | None = None  # counted from 0, the bottom; None: the top three
    num_facts: int = 5  # N: of more candidates, the nearest are kept

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            least = 0 if name.endswith("token_id") else 1
            most = 1000 if name == "num_hidden_layers" else 1_000_000
            if field.type is int and (type(value) is not int or not least <= value <= most):
                what = f"a whole number from {least} to {most:,}"
                raise ValueError(f"{name} is {value!r}, must be {what}")
            if field.type is float and (type(value) not in (int, float) or not 0 <= value < 1):
                raise ValueError(f"{name} is {value!r}, must be at least 0 and below 1")
        for name, known in (("inject", VARIANTS), ("model_type", MODEL_TYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name} is "{getattr(self, name)}", must be {" or ".join(known)}')
        depth, layers = self.num_hidden_layers, self.inject_layers
        if layers is None:  # the top three, the paper's best
            layers = range(depth)[-3:]
        numbers = isinstance(layers, Collection) and all(type(i) is int for i in layers)
        if not numbers or not layers or not {*layers} <= {*range(depth)}:
            raise ValueError(f"inject_layers is {layers}, must be numbers from 0 to {depth - 1}")
        self.inject_layers = tuple(layers)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} can't be divided among "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def max_tokens(self) -> int:
        """The longest input. RoBERTa's first pad_token_id + 1 positions are no word's."""
        unused = self.pad_token_id + 1 if self.model_type == "roberta" else 0
        return self.max_position_embeddings - unused


# ---------------------------------------------------------------------------------- embeddings


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
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(self.positions(input_ids))
        return self.dropout(self.norm(x))

    def positions(self, input_ids: Tensor) -> Tensor:
        """BERT counts 0, 1, 2, ...; RoBERTa counts from pad_token_id + 1 and leaves padding out."""
        pad = self.config.pad_token_id
        if self.config.model_type == "bert":
            return torch.arange(input_ids.shape[-1], device=input_ids.device)
        mask = (input_ids != pad).long()
        return pad + mask.cumsum(-1) * mask


# --------------------------------------------------------------------------------------- facts

Facts = tuple[Tensor, Tensor]  # F (..., N, D), and a mask (..., N) that is 0 for an empty slot
Knowledge = tuple[Tensor, Tensor, Tensor]  # K (..., N, D), V (..., N, D), and the same mask


def mean_embedding(table: nn.Embedding, ids: Tensor, mask: Tensor) -> Tensor:
    """(..., L) -> (..., D): the mean of the words that the mask keeps, 0 if it keeps none."""
    total = (table(ids) * mask.unsqueeze(-1)).sum(-2)
    return total / mask.sum(-1, keepdim=True).clamp(min=1)


@torch.no_grad()
def nearest_facts(
    fact_ids: Tensor, table: nn.Embedding, text: Tensor, config: KformerConfig
) -> tuple[Tensor, Tensor]:
    """Keeps the `num_facts` of S candidates that are nearest to a text, in their old order: their
    ids, and their places among the candidates.

    Nearest is the largest dot product of the two mean embeddings (paper, section 3.2; the release's
    transformer_sentence_encoder.py). Of facts that are equally near, up to rounding, the first is
    kept. Empty slots come last.

    fact_ids (..., S, L), text (..., D), of a question and a choice -> (..., N, L) and (..., N)
    """
    if fact_ids.dim() != text.dim() + 1:
        raise ValueError(
            f"fact_ids {tuple(fact_ids.shape)} must have one dimension more than input_ids: for "
            "each row of tokens, facts and their tokens"
        )
    if fact_ids.shape[-2] <= config.num_facts:
        places = torch.arange(fact_ids.shape[-2], device=fact_ids.device)
        return fact_ids, places.expand(fact_ids.shape[:-1])
    mask = fact_ids != config.pad_token_id
    # The dot product with a mean is the mean of dot products. So we take the product with each word
    # of the vocabulary once, and look it up: to embed thousands of candidates takes gigabytes.
    with torch.autocast(text.device.type, enabled=False):  # bfloat16 would choose other facts
        products = text @ table.weight.T  # (..., vocabulary)
    products = products.take_along_dim(fact_ids.flatten(-2).long(), -1)  # (..., S L)
    products = products.unflatten(-1, fact_ids.shape[-2:]) * mask  # (..., S, L)
    relevance = products.sum(-1) / mask.sum(-1)  # (..., S)
    relevance = relevance.masked_fill(~mask.any(-1), -torch.inf)
    best = relevance.argsort(dim=-1, descending=True, stable=True)[..., : config.num_facts]
    places = best.sort(-1).values
    return fact_ids.take_along_dim(places.unsqueeze(-1), dim=-2), places


def append_facts(
    input_ids: Tensor, mask: Tensor, token_type_ids: Tensor, fact_ids: Tensor, config: KformerConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Concat: [CLS] question [SEP] choice [SEP] fact fact ... [SEP], and then the padding.

    The facts are segment 2, or the last one that the model has. Ids, mask and segments grow from
    (..., T) to at most (..., T + N L + 1). Words beyond `max_tokens` are left out, from the end:
    the facts that are returned, (..., N, L), lack them.
    """
    facts = fact_ids.flatten(-2).expand(*input_ids.shape[:-1], -1)  # (..., N L)
    room = config.max_tokens - 1 - mask.sum(-1, keepdim=True)
    facts_mask = facts != config.pad_token_id
    facts_mask = facts_mask & (facts_mask.cumsum(-1) <= room)
    facts = facts.masked_fill(~facts_mask, config.pad_token_id)
    any_fact = facts_mask.any(-1, keepdim=True)  # without a fact there is no last [SEP] either
    sep = torch.where(any_fact, config.sep_token_id, config.pad_token_id)
    segment = torch.full_like(facts, min(2, config.type_vocab_size - 1))

    ids = torch.cat([input_ids, facts, sep], -1)
    mask = torch.cat([mask, facts_mask, any_fact], -1)
    segments = torch.cat([token_type_ids, segment, segment[..., :1]], -1)

    longest = max(input_ids.shape[-1], int(mask.sum(-1).max()))
    order = mask.int().argsort(dim=-1, descending=True, stable=True)[..., :longest]  # padding last
    ids, mask, segments = (rows.gather(-1, order) for rows in (ids, mask, segments))
    return ids, mask, segments, facts.unflatten(-1, fact_ids.shape[-2:])


# ----------------------------------------------------------------------------------- attention


def hide(scores: Tensor, mask: Tensor) -> Tensor:
    """Where mask (..., keys) is 0, scores (..., H, T, keys) become the lowest number there is.

    It isn't -inf: where everything is hidden, the softmax of -inf would be 0/0.
    """
    return scores.masked_fill(~mask[..., None, None, :], torch.finfo(scores.dtype).min)


class SelfAttention(nn.Module):
    """softmax(q kᵀ / sqrt(D/H)) v in H heads, then a linear layer: x (..., T, D) -> (..., T, D).

    q comes from x, k and v from context, (..., T', D): x itself or, where x is [CLS] alone, the
    whole text. With knowledge they become [K; k] and [V; v], as if N more tokens stood first.

    `fact_scores` (..., T, N) is the attention that each token gave each fact, mean of the heads,
    before dropout; None without knowledge.
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.output = nn.Linear(D, D)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.fact_scores: Tensor | None = None

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, knowledge: Knowledge | None = None
    ) -> Tensor:
        self.fact_scores = None
        q, k, v = self.query(x), self.key(context), self.value(context)
        if knowledge is not None:
            K, V, fact_mask = knowledge
            batch = k.shape[:-2]  # facts that choices share are repeated for each of them
            k = torch.cat([K.expand(*batch, -1, -1), k], -2)  # -> (..., N + T', D)
            v = torch.cat([V.expand(*batch, -1, -1), v], -2)
            mask = torch.cat([fact_mask.expand(*batch, -1), mask], -1)
        q, k, v = self.heads(q), self.heads(k), self.heads(v)  # -> (..., H, tokens, D/H)
        scores = q @ k.mT / sqrt(q.shape[-1])  # -> (..., H, T, N + T')
        probs = hide(scores, mask).softmax(-1)
        out = self.dropout(probs) @ v  # -> (..., H, T, D/H)
        if knowledge is not None:
            self.fact_scores = probs[..., : K.shape[-2]].detach().mean(-3)
        return self.output(out.transpose(-3, -2).flatten(-2))  # -> (..., T, D)

    def heads(self, x: Tensor) -> Tensor:  # (..., T, D) -> (..., H, T, D/H)
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


# ----------------------------------------------------------------------------------------- FFN


class FFN(nn.Module):
    """gelu(x W1 + b1) W2 + b2, and with knowledge + gelu(x Kᵀ) V: (..., T, D) -> (..., T, D)

    torch's nn.Linear multiplies with its weight transposed: the keys, columns of W1 in the paper,
    are the rows of `W1.weight`, and the values are the columns of `W2.weight`.

    `fact_scores` (..., T, N) is gelu(x Kᵀ), and 0 in an empty slot: how strongly each fact fired at
    each token. None without knowledge.
    """

    def __init__(self, config: KformerConfig) -> None:
        super().__init__()
        self.W1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.W2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.fact_scores: Tensor | None = None

    def forward(self, x: Tensor, knowledge: Knowledge | None = None) -> Tensor:
        self.fact_scores = None
        out = self.W2(gelu(self.W1(x)))  # (..., T, D) -> (..., T, M) -> (..., T, D)
        if knowledge is not None:
            K, V, fact_mask = knowledge
            fired = gelu(x @ K.mT) * fact_mask.unsqueeze(-2)  # -> (..., T, N)
            out = out + fired @ V
            self.fact_scores = fired.detach()
        return out


# --------------------------------------------------------------------------------------- block


class Block(nn.Module):
    """One layer of the encoder: attention, then the FFN, each followed by LayerNorm as in BERT.

    In an injected layer one of the two gets knowledge. Wk and Wv are the release's kfc1 and kfc2.
    """

    def __init__(self, config: KformerConfig, layer: int) -> None:
        super().__init__()
        D = config.hidden_size
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.ffn = FFN(config)
        self.ffn_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.inject = config.inject if layer in config.inject_layers else "none"
        if self.inject in ("attention", "ffn"):
            self.Wk, self.Wv = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, facts: Facts | None) -> Tensor:
        for_attention = self.project(facts) if self.inject == "attention" else None
        for_ffn = self.project(facts) if self.inject == "ffn" else None
        x = self.attention_norm(x + self.dropout(self.attention(x, context, mask, for_attention)))
        return self.ffn_norm(x + self.dropout(self.ffn(x, for_ffn)))

    def project(self, facts: Facts | None) -> Knowledge | None:
        """K = F Wk + bk, V = F Wv + bv"""
        if facts is None:
            return None
        F, fact_mask = facts
        return self.Wk(F), self.Wv(F), fact_mask


# ----------------------------------------------------------------------- the model and its head


class Kformer(nn.Module):
    """Token ids (..., T) and ids of candidate facts (..., S, L) -> last hidden states (..., T, D).

    attention_mask (..., T) is 1 for tokens and 0 for padding, by default 0 where input_ids has
    `pad_token_id`; token_type_ids (..., T) are 0 by default. A fact of padding alone is an empty
    slot, which changes nothing. In "concat" T grows. Raises ValueError for more than `max_tokens`,
    and for another attention_mask than one of 0 and 1.

    With `cls_only` the top layer computes the state of [CLS], the first token, alone: (..., 1, D),
    from the same context. The head needs no other.

    Afterwards `kept_facts` (..., N, L) has the ids of the nearest facts, in "concat" as far as
    there is room, and `kept_places` (..., N) their places among the candidates;
    `encoder.layer[i].ffn.fact_scores` or `.attention.fact_scores` says what they did.
    """

    def __init__(self, config: KformerConfig, from_scratch: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})  # so that it's encoder.layer[i], as in BERT
        if config.inject in ("attention", "ffn"):  # a table of their own (paper, section 3.2)
            self.fact_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.kept_facts: Tensor | None = None
        self.kept_places: Tensor | None = None
        if from_scratch:  # otherwise the parameters come from a file
            initialize(self)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, fact_ids: Tensor | None = None,
        cls_only: bool = False,
    ) -> Tensor:
        pad, config = self.config.pad_token_id, self.config
        if input_ids.shape[-1] > config.max_tokens:
            raise ValueError(
                f"input_ids has {input_ids.shape[-1]} tokens, but with max_position_embeddings "
                f"{config.max_position_embeddings} there is room for {config.max_tokens}"
            )
        mask = input_ids != pad
        if attention_mask is not None:
            mask = attention_mask.bool().expand_as(input_ids)
            if (attention_mask != mask).any():
                raise ValueError("attention_mask must be 1 for tokens and 0 for padding alone")
        segments = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        facts = self.kept_facts = self.kept_places = None
        if fact_ids is not None and config.inject != "none":
            words = self.embeddings.word_embeddings
            table = words if config.inject == "concat" else self.fact_embeddings
            text = mean_embedding(words, input_ids, mask)
            fact_ids, self.kept_places = nearest_facts(fact_ids, table, text, config)
            if config.inject == "concat":
                input_ids, mask, segments, fact_ids = append_facts(
                    input_ids, mask, segments, fact_ids, config
                )
            else:
                real_words = fact_ids != pad
                facts = mean_embedding(table, fact_ids, real_words), real_words.any(-1)
            self.kept_facts = fact_ids

        x = self.embeddings(input_ids, segments)
        *lower, top = self.encoder.layer
        for block in lower:
            x = block(x, x, mask, facts)
        return top(x[..., :1, :] if cls_only else x, x, mask, facts)


class KformerForMultipleChoice(Kformer):
    """A question, its choices and its facts -> one score for each choice, (B, C).

    Each choice is encoded on its own, and scored as in BERT: [CLS] -> dense -> tanh -> one number.
    input_ids, attention_mask, token_type_ids (B, C, T); fact_ids (B, S, L), shared by the choices,
    or (B, C, S, L). Without dropout, `cls_only` changes no score.
    """

    def __init__(self, config: KformerConfig, from_scratch: bool = True) -> None:
        super().__init__(config, from_scratch)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, fact_ids: Tensor | None = None,
        cls_only: bool = False,
    ) -> Tensor:
        if fact_ids is not None and fact_ids.dim() == 3:
            fact_ids = fact_ids.unsqueeze(1)  # (B, S, L) -> (B, 1, S, L)
        x = super().forward(input_ids, attention_mask, token_type_ids, fact_ids, cls_only)
        pooled = torch.tanh(self.pooler(x[..., 0, :]))  # (B, C, T, D) -> (B, C, D)
        return self.classifier(self.dropout(pooled)).squeeze(-1)  # -> (B, C)


# ------------------------------------------------------------------- what training starts from


def sinusoids(length: int, D: int) -> Tensor:
    """(length, D): sine and cosine of the position, in wavelengths from short to long."""
    angle = torch.arange(length).unsqueeze(-1) * torch.exp(-4 * torch.arange(0, D, 2) / D)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[:, :D]


@torch.no_grad()
def initialize_projections(block: Block, gain: float) -> None:
    """Fills Wk and Wv of a block with injection. Both have no bias at first.

    "ffn": Wk = Wv = I. Key and value are the fact itself: its product with a token that is one of
    its words is large, and there the fact is added.

    "attention": Wk is 4 gain times the block's own query matrix, Wv 4 gain times its value matrix.
    What meets a fact's key is a token's query, so keys are made as queries are: again the product
    is large where token and fact share words. `gain` is the length of a state over that of a word
    in the table; and a mean of words is shorter than one of them, hence the 4.
    """
    is_prefix, own = block.inject == "attention", (block.attention.query, block.attention.value)
    for new, old in zip((block.Wk, block.Wv), own, strict=True):
        new.weight.copy_(4 * gain * old.weight if is_prefix else torch.eye(len(new.weight)))
        new.bias.zero_()


@torch.no_grad()
def initialize(model: Kformer, missing: Collection[str] | None = None) -> None:
    """From scratch, gives the encoder its start; after a checkpoint, fills the parameters that it
    lacks, those of the head too: their names are in `missing`.

    The release draws all from N(0, 0.02), as BERT does. A fact's key then has nothing to do with
    its words, and facts are hardly used (docs/results.md has the figures). So here the fact table
    starts as the word table, and `initialize_projections` fills Wk and Wv.

    From scratch, words are at right angles (as far as D dimensions have room for them), so that the
    overlap of two texts counts their common words alone. Attention's matrices are near I: a token
    first looks for words like itself (Trockman and Kolter 2023, arXiv 2305.09828). Positions are
    sinusoids, and segments are halved. The rest is as torch draws it.
    """
    from_scratch, words = missing is None, model.embeddings.word_embeddings.weight
    for name, parameter in model.named_parameters():
        module, kind = name.split(".")[-2:]
        if not from_scratch and name not in missing:
            continue
        if module == "fact_embeddings":  # the word table comes first, and is ready
            parameter.copy_(words)
        elif module in ("Wk", "Wv"):
            continue
        elif not from_scratch:  # the head: pooler and classifier
            parameter.normal_(std=0.02) if kind == "weight" else parameter.zero_()
        elif module == "word_embeddings":
            nn.init.orthogonal_(parameter)  # then each word gets the length sqrt(D)
            parameter.mul_(sqrt(model.config.hidden_size) / parameter.norm(dim=-1, keepdim=True))
        elif module == "position_embeddings":
            parameter.copy_(sinusoids(*parameter.shape))
        elif module == "token_type_embeddings":
            parameter.div_(2)
        elif kind == "weight" and module in ("query", "key", "value", "output"):
            parameter.mul_(0.3).diagonal().add_(1)
    gain = model.embeddings.norm.weight.norm() / words.norm(dim=-1).mean()
    for i, block in enumerate(model.encoder.layer):
        new = from_scratch or f"encoder.layer.{i}.Wk.weight" in missing
        if new and block.inject in ("attention", "ffn"):
            initialize_projections(block, float(gain))


def demo() -> None:
    """Who lives in which room? A fact says it, "ann 3". The test asks for other pairs."""
    CLS, SEP, NAMES, ROOMS = 1, 2, 3, 13  # ids: 0 is padding, ten names start at 3, rooms at 13
    torch.manual_seed(0)
    model = KformerForMultipleChoice(KformerConfig(
        inject="ffn", inject_layers=(0, 1), sep_token_id=SEP, vocab_size=23, hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, hidden_dropout_prob=0.0,
    ))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def questions(count: int, odd: int) -> tuple[Tensor, Tensor]:
        """Choices "[CLS] ann 3", "[CLS] ann 7" (count, 2, 3) and facts "ann 3", "bob 7" (count, 2,
        2). In training all sums of name and room are even, in the test odd: no pair is in both.
        """
        names = 2 * torch.rand(count, 5).argsort()[:, :2] + torch.randint(2, (count, 1))
        rooms = (names + 2 * torch.randint(5, (count, 1)) + odd) % 10
        asked = names[:, :1].expand(-1, 2)
        choices = torch.stack([torch.full_like(asked, CLS), NAMES + asked, ROOMS + rooms], -1)
        return choices, torch.stack([NAMES + names, ROOMS + rooms], -1)

    for _ in range(250):
        input_ids, fact_ids = questions(64, odd=0)
        scores = model(input_ids, fact_ids=fact_ids)  # (64, 2)
        loss = -scores.log_softmax(-1)[:, 0].mean()  # choice 0 is right; none knows its place
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    input_ids, fact_ids = questions(1000, odd=1)
    for what, facts in (("with its facts", fact_ids), ("without", None)):
        right = (model.eval()(input_ids, fact_ids=facts).argmax(-1) == 0).float().mean()
        print(f"{model.config.inject}, {what}: {right:.1%} right of 1,000 questions on other pairs")


if __name__ == "__main__":
    demo()
