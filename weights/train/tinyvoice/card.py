"""The model card of an exported folder: what was trained on what, for how long, and how it scores."""
import json
import pathlib
import string

import torch

PARTS = {"vocoder": "HiFT vocoder", "tokenizer": "speech tokenizer", "speaker": "speaker encoder", "flow": "flow",
         "llm": "language model"}
UNSCORED = "Not scored yet: run `evaluate.py` as below with `--json scores/NAME.json`, then export again."
COMMANDS = """
```bash
cd weights/train
python synthesize.py --binary ../../target/release/cosyvoice --model ../tiny --sentences eval_sentences.txt --count 40 \\
    --voice pretrained_voice_001 --out OUT
python evaluate.py OUT/list.tsv --json WORK/data/scores/pretrained_voice_001.json
# the clone: 20 sentences
python synthesize.py --binary ../../target/release/cosyvoice --model ../tiny --sentences eval_sentences.txt --count 20 \\
    --prompt ../tiny/prompt.wav --prompt-text "$(cat ../tiny/prompt.txt)" --out CLONES
python evaluate.py CLONES/list.tsv --ref ../tiny/prompt.wav --json WORK/data/scores/clone.json
```"""


def write_card(path, ckpt, data, voices, prompt_speaker, seconds):
    """`voices`: {name: speaker}; scores are read from DATA/scores/*.json as evaluate.py writes them."""
    rows = []
    for part, title in PARTS.items():
        state = torch.load(ckpt / f"{part}.pt", map_location="cpu", weights_only=True)
        size = sum(v.numel() for v in state["average"].values())
        rows.append(f"| {title} | {size / 1e6:.2f} M | {state['step']:,} | {state['seconds'] / 60:.0f} |")
    scores = []
    for file in sorted((data / "scores").glob("*.json")):
        s = json.loads(file.read_text())
        scores.append(f"| {file.stem} | {s['utterances']} | {100 * s['wer']:.1f} % | {s['dnsmos']} | {s['similarity'] or '–'} |")
    table = "| what | sentences | WER | DNSMOS | similarity |\n|---|---|---|---|---|\n" + "\n".join(scores)
    template = string.Template((pathlib.Path(__file__).parent / "model_card.md.in").read_text())
    path.write_text(template.substitute(
        voices="\n".join(f"| `{name}` | {speaker} |" for name, speaker in voices.items()), parts="\n".join(rows),
        prompt_speaker=prompt_speaker, hours=f"{seconds / 3600:.1f}", scores=(table if scores else UNSCORED) + "\n" + COMMANDS))
