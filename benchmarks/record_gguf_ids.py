"""Record the ids that llama.cpp gives to texts, for tests/models/formats/test_gguf_tokenizer.py.

Usage: ``pip install llama-cpp-python``, then ``python -m benchmarks.record_gguf_ids``.
"""

from __future__ import annotations

import ctypes
import json
import random
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from paged_stream.models.formats.gguf_pretokenizers import PRETOKENIZERS

RECORD = Path(__file__).parents[1] / "tests" / "models" / "formats" / "gguf_ids.json"
NUM_TEXTS = 600
DIGITS = string.digits + string.ascii_lowercase
CONTROL, USER_DEFINED, UNKNOWN, BYTE = 3, 4, 2, 6
# What texts are made of: each is where some rule splits and another does not.
FRAGMENTS = [
    *" \n\t\r", "  ", "   ", "\n\n", " \n", "\n ", "\r\n", "\t\t", " \t", "\x0b", "\x0c", "\x85",
    "\u00a0", "\u2003", "\u3000", "\u2028", "\u200b", "\ufeff", "\x00", "\x04", "\x1c", "\x7f",
    *"0159", "12", "123", "1234", "1234567", "3.14", "1,000", "\u0663\u0664", "\u00b2", "\u2167",
    "\u0967\u0968", "\U0001d7d9", "a", "I", "the", "The", "HTTPServer", "camelCase", "don", "x1y2",
    "hello", "world", "ignored", "'s", "'S", "'t", "'T", "'re", "'RE", "'Ve", "'m", "'ll", "'LL",
    "'d", "'D", "'x", "'", "''", "\u2019s", "'\u017f", "\u00e9", "na\u00efve", "\u00c9COLE",
    "Stra\u00dfe", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u041c\u0438\u0420", "\u03b1\u0392",
    "\u01c5", "\u02b0", "\u4e2d\u6587", "\u6771\u4eac", "\u3072\u3089", "\u30ab\u30bf", "\u30fc",
    "\ud55c\uad6d\uc5b4", "\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\u0627\u0644\u0644\u063a\u0629", "\u05e2\u05d1", "e\u0301", "\u0301", "o\u0308\u0304",
    "\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\u20ac",
    *"!?.,;:-_+=<>|~^`$%&*()[]{}/\\\"#@", "...", "--", "==", "!=", "->", "//", "/*", "://", "?!",
    "\u2026", "\u3002", "\uff0c", "\u060c", "\u0964", "\u2018", "\u201c", "\uff01", "\u00b5",
    "\u20dd", "\u00aa", "\u0378", "\ue000", "\ufffd", "\U000e0001", "<s>", "</s>", "<unk>",
    "<|im_start|>", "<|im_end|>", "<|im_", "<tool>", "</tool", "[INST]", "<0x41>", "\u2581",
    "aaaaa", "ababa", "-----", "=-=-=", "nanana", "IMGIMGABZ", "<sentinel:12>",
]  # fmt: skip
WHOLE = [
    "", " ", "  ", "\n", "\n\n1.", "1. One\n2. Two\n10. Ten\n", "Hello, world!", " leading",
    "trailing ", "  both  ", "for i in range(10):\n    print(i)\n\n\treturn", "I'm you're HE'LL",
    "2024-01-31T12:00:00Z", "0x1F +49 (0)30 123456", "<|im_start|>user\nHi<|im_end|>\n", "<s> <s>x",
    "[INST] do [/INST] </s>\u00a0", "http://example.org/a?b=c&d=%20", "\ufffd\ufffd", "\xff\xfe",
    "\u00c3\u00a9", "a\x00b", "tab\tand\x0bvt", "x" * 40, " " * 33 + "y", "\n" * 17, "7" * 20,
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0914\u0930 English 123", "ignored ignored", "!\x04!",
    "a" + " " * 12 + "b" + " " * 7 + "c      d   ",
    "<|endoftext|> \n x</s>\t y<s> z [INST]  \nq", "x'tan y'tan z'tan q'tanda 'Tan 'relan 'llan",
]  # fmt: skip


def texts() -> list[str]:
    """Every fragment by itself, between letters, and in random company."""
    source = random.Random(20)
    found = dict.fromkeys(WHOLE + FRAGMENTS + [f"b{fragment}c" for fragment in FRAGMENTS])
    while len(found) < NUM_TEXTS:
        found["".join(source.choices(FRAGMENTS, k=source.randint(2, 9)))] = None
    return list(found)[:NUM_TEXTS]


def vocabularies(corpus: list[str]) -> dict[str, dict[str, Any]]:
    """Metadata of small vocabularies by name, whose merges reach over every place to split."""
    names = ("bytes", "runs", "lacking")
    found = {name: _bytes(corpus, name) for name in names}
    return found | {name: _pieces(corpus, name) for name in ("pieces", "gemma", "shuffled", "tied")}


def _bytes(corpus: list[str], name: str) -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if name == "lacking":  # as of SmolLM, some bytes that text hardly has
        alphabet = [letter for letter in alphabet if letter not in "\u0100\u0104\u00f0\u011d"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split("\u0100", "removed"),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 600, initial_alphabet=alphabet, show_progress=False
    )
    own = set(alphabet)
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    kept = [text for text in corpus if text and own.issuperset(encode(text)[0][0])]
    # Words to begin with what may be a contraction.
    trained.train_from_iterator(kept + ["tanda relan llan sabah"] * 40, trainer)
    model = json.loads(trained.to_str())["model"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    pairs = [pair for pair in pairs if own.issuperset("".join(pair))]
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "<tool>"]
    types = [UNKNOWN] + [CONTROL] * 5 + [USER_DEFINED]
    if name == "runs":
        specials += ["  ", "    ", "\n\n", "-----"]
        types += [USER_DEFINED] * 4
    words = ["\u0120hello", "ignored", "\u0120ignored", "123", "\u0120the", "worldx"]
    merged = ["".join(pair) for pair in pairs]
    tokens = list(dict.fromkeys(specials + alphabet + merged + words))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [1] * (len(tokens) - len(types)),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _pieces(corpus: list[str], name: str) -> dict[str, Any]:
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False)
    trained.train_from_iterator([text for text in corpus if text], trainer)
    learned = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    # Characters that are no token fall back to bytes. To llama.cpp, NUL ends a token.
    rare = {letter for letter in learned if len(letter) == 1 and ord(letter) > 0x2600} | {"\0"}
    learned = [token for token in learned if rare.isdisjoint(token) and "0x" not in token]
    specials = ["<unk>", "<s>", "</s>"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256
    specials += [f"<0x{byte:02X}>" for byte in range(256)]
    more = ["<|im_start|>", "<|im_end|>", "[INST]", "<tool>"]
    added = [CONTROL] * 3 + [USER_DEFINED]
    if name == "gemma":
        more += ["\n\n", "\n\n\n", "  ", "    "]
        added += [USER_DEFINED] * 4
    runs = []
    if name == "tied":  # as in Llama 2
        runs = ["\u2581" * count for count in range(2, 9)]
        learned = [token for token in learned if set(token) != {"\u2581"} or len(token) == 1]
    tokens = list(dict.fromkeys(specials + more + learned + runs))
    types += added
    ranks = list(range(len(tokens)))
    if name == "shuffled":  # scores that do not fall as tokens grow
        random.Random(3).shuffle(ranks)
    scores = [
        0.0 if kind == BYTE else -1e9 if token in runs else -float(rank)
        for token, rank, kind in zip(tokens, ranks, types + [1] * len(tokens), strict=False)
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + [1] * (len(tokens) - len(types)),
        "tokenizer.ggml.scores": scores,
    }


def cases() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Of each: the vocabulary, more metadata, and whether special tokens in text are parsed."""
    for name in sorted(PRETOKENIZERS):
        yield "bytes", {"tokenizer.ggml.pre": name}, True
    yield "bytes", {}, True
    for name in ("gpt-2", "llama-bpe"):
        pre = {"tokenizer.ggml.pre": name}
        yield "bytes", pre, False
        yield "runs", pre, True
        yield "runs", pre, False
        yield "lacking", pre, True
    ends = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
    yield "bytes", {"tokenizer.ggml.pre": "tekken"} | ends, True
    yield "bytes", {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": True}, True
    yield "pieces", {}, True
    yield "pieces", {}, False
    yield "pieces", ends, True
    yield "shuffled", {}, True
    yield "tied", {}, True
    for vocabulary in ("pieces", "gemma"):
        yield vocabulary, {"tokenizer.ggml.add_space_prefix": False}, True
    ids = {"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 9**9}
    yield "pieces", ids | ends | {"tokenizer.ggml.add_bos_token": True}, True


class LlamaCpp:
    """The vocabulary of a file, loaded by llama.cpp."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        import llama_cpp

        self._lib = llama_cpp
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            _write(metadata, path)
            params = llama_cpp.llama_model_default_params()
            params.vocab_only = True
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, "llama.cpp refuses the file"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, parse: bool) -> list[int]:
        data = text.encode()
        out = (ctypes.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), out, len(out), True, parse)
        assert count >= 0, text
        return list(out[:count])

    def close(self) -> None:
        self._lib.llama_model_free(self._model)


def _write(metadata: dict[str, Any], path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    kinds = {bool: "bool", int: "uint32", str: "string", list: "array"}
    for key, value in metadata.items():
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    corpus = texts()
    vocabulary_of = vocabularies(corpus)
    found: list[list[list[int]]] = [[] for _ in corpus]  # per text, the different answers
    recorded = []
    for vocabulary, metadata, parse in cases():
        model = LlamaCpp(vocabulary_of[vocabulary] | metadata)
        answers = [model.encode(text, parse=parse) for text in corpus]
        model.close()
        for answer, different in zip(answers, found, strict=True):
            if answer not in different:
                different.append(answer)
        which = [different.index(a) for a, different in zip(answers, found, strict=True)]
        recorded.append([vocabulary, metadata, parse, "".join(DIGITS[index] for index in which)])
    record = {"vocabularies": vocabulary_of, "texts": corpus, "answers": found, "cases": recorded}
    lines = [
        f'"{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in record.items()
    ]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


if __name__ == "__main__":
    main()
