"""Converts a Hugging Face folder to GGUF with llama.cpp's own convert_hf_to_gguf.py.

    venv/bin/python llama_cpp_convert.py LLAMA_CPP_SOURCES MODEL_FOLDER --outtype f32 --outfile out.gguf [further options of the converter]

The converter recognises a pre-tokenizer by a hash of the ids of a fixed string, and knows the hashes of published models only.
The demo's pre-tokenizer is the one that llama.cpp calls `smollm` (digits one by one, then GPT-2's pattern), so that answer is given here;
everything else is the converter's. A folder without tokenizer.json is converted without a vocabulary.
Needs torch, transformers, sentencepiece, protobuf, pyyaml, tqdm, requests.
"""
import runpy, sys
from pathlib import Path

source = Path(sys.argv.pop(1)).resolve()
sys.path[:0] = [str(source), str(source / "gguf-py")]
from conversion import base

base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
if not (Path(sys.argv[1]) / "tokenizer.json").exists():
    from conversion import llama

    llama.LlamaModel.set_vocab = lambda self: self._set_vocab_none()
sys.argv[0] = str(source / "convert_hf_to_gguf.py")
runpy.run_path(sys.argv[0], run_name="__main__")
