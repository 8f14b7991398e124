"""Small tokenizers trained on the spot, one for each family of chat templates."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEMPLATES = Path(__file__).parent / "templates"
SHARED = Path(__file__).parents[2].parent / "shared"
CORPUS = [
    "The patient was given 500 mg of aspirin twice a day; the fever went down. Questions? Ask the doctor!",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # three",
    "患者每天服用两次阿司匹林,体温下降。请问还有什么问题吗？医生说:多喝水，注意休息！",
    '{"name": "lookup", "arguments": {"city": "北京", "days": 3}}',
    "user assistant system model tool think answer question Instruction Response USER ASSISTANT",
] * 4

# What each template's family writes: (special tokens, added tokens that are not special, bos, eos)
CHATML = (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], None, "<|endoftext|>")
QWEN = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"],
    None,
    "<|im_end|>",
)
LLAMA = (
    [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
    ],
    [],
    "<|begin_of_text|>",
    "<|eot_id|>",
)
MISTRAL = (
    [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ],
    [],
    "<s>",
    "</s>",
)
GEMMA = (
    ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    ["\n\n", "\t\t", "<table>"],
    "<bos>",
    "<eos>",
)
PHI3 = (
    ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    [],
    "<s>",
    "<|endoftext|>",
)
PHI4 = (["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"], [], None, "<|im_end|>")
DEEPSEEK = (
    ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
    ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]
    + [f"<｜tool▁{what}｜>" for what in ("sep", "calls▁begin", "calls▁end", "call▁begin", "call▁end")]
    + [f"<｜tool▁{what}▁{end}｜>" for what in ("output", "outputs") for end in ("begin", "end")],
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
)
GLM = (
    ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
    [],
    None,
    "<|endoftext|>",
)
LLAMA2 = (["<unk>", "<s>", "</s>"], [], "<s>", "</s>")
FAMILIES = {
    "chatml": CHATML,
    "chatml-without-prompt": CHATML,
    "qwen2.5": QWEN,
    "qwen3": QWEN,
    "llama3.1": LLAMA,
    "mistral-v3": MISTRAL,
    "mistral-tekken": MISTRAL,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "phi3": PHI3,
    "phi4": PHI4,
    "deepseek-v3": DEEPSEEK,
    "deepseek-r1": DEEPSEEK,
    "chatglm4": GLM,
    "vicuna": LLAMA2,
    "alpaca": LLAMA2,
}
SENTENCEPIECE = {"mistral-v3", "gemma2", "gemma3", "phi3", "vicuna", "alpaca"}


def byte_level() -> Tokenizer:
    """A byte-level BPE of the GPT-2 kind, with Qwen's habit of taking whole words from the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_bpe(special: list[str], prefix: bool = True) -> Tokenizer:
    """A BPE of the Llama 2 kind: blanks as ▁, one put before every text (not by Gemma), bytes for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prepend, strip = ([normalizers.Prepend("▁")], [decoders.Strip(" ", 1, 0)]) if prefix else ([], [])
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[*special, *bytes_], show_progress=False)
    tokenizer.train_from_iterator([" ".join(CORPUS).replace("\n", " ")[:2000]], trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in bytes_]
    return Tokenizer.from_str(json.dumps(spec))


def unigram(special: list[str]) -> Tokenizer:
    """A Unigram of the XLM-R kind: its control tokens stand in the vocabulary like any piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False, initial_alphabet=list(map(chr, range(32, 127)))
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece(special: list[str]) -> Tokenizer:
    """A WordPiece of the BERT kind, split at blanks only, so that ``[CLS]`` could be a word of a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    cls, sep = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, template: str | None, named: dict[str, str | None]) -> Path:
    """Write a tokenizer as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def save_all(root: Path) -> dict[str, Path]:
    """Write a folder for each chat template, with a tokenizer of its family's kind."""
    folders = {}
    for name, (special, added, bos, eos) in FAMILIES.items():
        if name in SENTENCEPIECE:
            first = ["<unk>", *(token for token in special if token != "<unk>")]
            tokenizer = sentencepiece_bpe(first, prefix=not name.startswith("gemma"))
        else:
            tokenizer = byte_level()
            tokenizer.add_special_tokens(
                [AddedToken(token, special=True, normalized=False) for token in special]
            )
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
        template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        folders[name] = save(tokenizer, root / name, template, {"bos_token": bos, "eos_token": eos})
    return folders
