"""Writes data/reference: two tiny encoders with random weights, and what transformers computes.

    pip install transformers tokenizers
    python data/make_reference.py

`bert` and `roberta` are folders as the Hub has them, in Hugging Face's own names; `bert` has its
vocabulary as vocab.txt, `roberta` as the tokenizer.json of transformers 5. In each,
expected.safetensors holds a padded batch, the hidden states behind the embeddings and behind each
layer, and the scores of the choices; texts.jsonl holds texts and their ids. The weights are ten
times as large as BERT starts with: with the usual ones attention is nearly the same everywhere,
and mistakes in it would hardly show.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertTokenizer,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMultipleChoice,
    RobertaTokenizer,
)

FOLDER = Path(__file__).resolve().parent / "reference"
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 40, "initializer_range": 0.2,
}  # fmt: skip
TEXTS = [
    "The owl eats mice at night.",
    "the OWL's nest isn't in the old oak; they'll see, I'd say",
    "naïve café, Ångström & ÉCOLE",
    "unhappily the owls unhunted",
    "2 owls + 10 mice = 12 animals (or 3.5 each?)",
    "夜 the owl 梟 hunts",
    "tabs\tand\nlines,  two  spaces   three ",
    " a space before, control\x00\x07 and zero\u200bwidth\ufeff",
    "emoji \U0001f989\U0001f3fd\u200d and ﬁ ½ ² Ⅷ ①",
    "ΣΊΣΥΦΟΣ İstanbul ẞ",
    "owl" * 40,
    "<mask> the [MASK] owl</s>[SEP]",
    "",
]
QUESTIONS = [
    ("what eats mice?", ["the owl", "the old oak in the night"]),
    ("the owls", ["unhappily hunted mice", "isn't"]),
    ("a nest at night", ["in 2 oaks", "naive"]),
]
PIECES = (
    "the owl owls mouse mice eat ##s hunt ##ed ##ing un ##hunt ##ed happy ##happi ##ly at night in "
    "old oak nest is isn t ll they see i d say na ##ive cafe angstrom ecole 1 2 3 5 10 12 animal "
    "each or a space before control and zero ##width width tabs lines two spaces three . , ; ' + = "
    "( ) ? & 夜 梟 σισυφοσ σισυφος istanbul ss ß emoji 🦉🏽 ﬁ fi ½ ² ⅷ ① < > / mask ##1 ##0 b c"
).split()


def bert() -> None:
    folder = FOLDER / "bert"
    folder.mkdir(parents=True, exist_ok=True)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(PIECES)]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    model = BertForMultipleChoice(BertConfig(vocab_size=len(vocab), **SIZES))
    write(folder, model, BertTokenizer(str(folder / "vocab.txt")))


def roberta() -> None:
    folder = FOLDER / "roberta"
    folder.mkdir(parents=True, exist_ok=True)
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(TEXTS, vocab_size=330, min_frequency=1, special_tokens=special)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, **SIZES)
    write(folder, RobertaForMultipleChoice(config), tokenizer)


@torch.no_grad()
def write(folder: Path, model: PreTrainedModel, tokenizer: BertTokenizer) -> None:
    """The model, three questions of two choices of different lengths, and what comes out."""
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and LayerNorms: off their zeros and ones
            parameter += 0.2 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    pairs = [(question, choice) for question, choices in QUESTIONS for choice in choices]
    batch = tokenizer(pairs, padding=True, return_tensors="pt")
    rows = {name: ids.view(3, 2, -1) for name, ids in batch.items()}
    out = model(**rows, output_hidden_states=True)
    hidden = {f"hidden.{i}": h.view(*rows["input_ids"].shape, -1) for i, h in enumerate(out[1])}
    save_file(rows | hidden | {"scores": out.logits}, folder / "expected.safetensors")
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    lines = [json.dumps({"text": t, "ids": i}) for t, i in zip(TEXTS, ids, strict=True)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    bert()
    roberta()
