"""The exported folder, run by the PyTorch modules: what the engine does, for checks before it is built.

`Voice(folder).speak(text, speaker)` and `.clone(text, prompt_text, prompt_wav)` -> float32 wave at 24 kHz.
"""
import pathlib

import onnxruntime
import torch

from .audio import fbank_16k, log_mel_16k, mel_24k, resample
from .bpe import Bpe
from .config import DIMS, PROMPT_RATE, SAMPLE_RATE, HiftDims
from .models.flow import Flow
from .models.hift import HiftGenerator
from .models.llm import SpeechLm
from .teachers import read_wav


def _session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Voice:
    def __init__(self, folder, dims=DIMS):
        folder = pathlib.Path(folder)
        self.bpe = Bpe.load(folder / "CosyVoice-BlankEN")
        self.llm = SpeechLm(dims.llm, dims.tokenizer.codebook).eval()
        self.flow = Flow(dims.flow, dims.tokenizer.codebook).eval()
        self.hift = HiftGenerator(HiftDims.of(folder)).eval()
        for model, name in ((self.llm, "llm"), (self.flow, "flow"), (self.hift, "hift")):
            state = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
            state.pop("llm.model.lm_head.weight", None)
            model.load_state_dict({k: v.float() for k, v in state.items()})
        self.speakers = torch.load(folder / "spk2info.pt", weights_only=True)
        self.tokenizer = _session(folder / "speech_tokenizer_v2.onnx")
        self.encoder = _session(folder / "campplus.onnx")

    def prompt(self, path):
        """(speech ids [1, P], mel [1, 2P, 80], embedding [1, 192]) of a recording."""
        audio, rate = read_wav(str(path))
        high = torch.from_numpy(resample(audio, rate, SAMPLE_RATE))[None]
        low = torch.from_numpy(resample(audio, rate, PROMPT_RATE))[None]
        feats = log_mel_16k(low).numpy()
        length = torch.tensor([feats.shape[2]], dtype=torch.int32).numpy()
        ids = torch.from_numpy(self.tokenizer.run(None, {"feats": feats, "feats_length": length})[0]).long()
        mel = mel_24k(high).transpose(1, 2)
        count = min(mel.shape[1] // 2, ids.shape[1])
        embedding = torch.from_numpy(self.encoder.run(None, {"input": fbank_16k(low).numpy()})[0])
        return ids[:, :count], mel[:, :2 * count], embedding

    @torch.inference_mode()
    def _render(self, ids, embedding, prompt_ids=None, prompt_mel=None):
        mel = self.flow.synthesize(torch.tensor([ids]), embedding, prompt_ids, prompt_mel)
        return self.hift(mel)[0][0].numpy()

    def speak(self, text, speaker, seed=0):
        ids = self.llm.generate(self.bpe.encode(text), seed=seed)
        return self._render(ids, self.speakers[speaker]["embedding"].float())

    def clone(self, text, prompt_text, prompt_wav, seed=0):
        prompt_ids, prompt_mel, embedding = self.prompt(prompt_wav)
        words = self.bpe.encode(text)
        ids = self.llm.generate(self.bpe.encode(prompt_text) + words, prompt_ids[0].tolist(), len(words), seed)
        return self._render(ids, embedding, prompt_ids, prompt_mel)

    def reread(self, path, speaker):
        """Tokens of a recording spoken by a named speaker: what the flow and the vocoder can do without the LLM."""
        return self._render(self.prompt(path)[0][0].tolist(), self.speakers[speaker]["embedding"].float())
