"""Dimensions of the bundled model, in one place.

Every number that the official layout stores in `cosyvoice2.yaml` or `CosyVoice-BlankEN/config.json` comes from
here; the engine reads them back from those files and from tensor shapes. Budget: 24 MiB for the whole folder; these make 19.
"""
import ast
import pathlib
import re
from dataclasses import dataclass, field

SAMPLE_RATE = 24_000      # Hz, audio in and out
PROMPT_RATE = 16_000      # Hz, input of the speech tokenizer and of the speaker encoder
MEL_HOP = 480             # samples: 50 mel frames a second
TOKEN_RATE = 25           # speech tokens a second
MEL_BINS = 80
MEL_MEAN, MEL_STD = -6.0, 2.1     # of speech; between flow and vocoder a mel is (mel - MEL_MEAN) / MEL_STD
SPK_DIM = 192             # speaker embedding
GAIN = 0.7                # of the exported vocoder's output: vowels of low voices begin as high as 1.28 without it, the engine cuts at 0.99


@dataclass(frozen=True)
class TokenizerDims:
    """Speech tokenizer v2: log-mel [128, T] at 100 Hz -> indices [T/4] of an FSQ codebook of 3**fsq_dims."""
    n_mels: int = 128
    state: int = 128
    heads: int = 2            # of 64
    blocks: int = 3
    fsq_dims: int = 6
    positions: int = 768      # rotary table; 30 s need 750

    @property
    def codebook(self):
        return 3 ** self.fsq_dims


@dataclass(frozen=True)
class SpeakerDims:
    """CAM++: fbank [T, 80] -> embedding [192]."""
    head_channels: int = 16
    init_channels: int = 32
    growth: int = 8
    bottleneck: int = 4       # times growth
    layers: tuple = (6, 12, 8)
    dilations: tuple = (1, 2, 2)


@dataclass(frozen=True)
class LlmDims:
    """Qwen2 decoder over text and speech tokens."""
    hidden: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 640
    text_vocab: int = 1280    # rows of the text embedding, >= size of the tokenizer
    rope_theta: float = 1e6
    eps: float = 1e-6


@dataclass(frozen=True)
class FlowDims:
    """Conformer encoder (25 Hz, then 50 Hz) and causal U-Net estimator of the conditional flow."""
    dim: int = 128
    heads: int = 4
    linear: int = 256
    blocks: int = 2           # at 25 Hz; the architecture always has 4 more at 50 Hz
    channels: int = 128
    est_heads: int = 4
    est_head_dim: int = 32
    est_blocks: int = 1       # transformer blocks after each residual block
    est_mid: int = 2
    chunk: int = 25           # tokens a streaming chunk
    cfg_rate: float = 0.7     # of guidance, as upstream


@dataclass(frozen=True)
class HiftDims:
    """HiFT vocoder: mel [80, T] -> wave [480 T]."""
    base: int = 128
    f0_channels: int = 96
    harmonics: int = 47       # with f0 100 Hz: up to 4.8 kHz
    rates: tuple = (8, 15)
    kernels: tuple = (16, 31)
    n_fft: int = 16
    hop: int = 4
    res_kernels: tuple = (7,)
    res_dilations: tuple = (1, 3, 5)
    source_kernels: tuple = (3, 3)

    @classmethod
    def of(cls, folder):
        """Those of an exported folder, whose vocoder may be of other dimensions than is trained now: read from its `cosyvoice2.yaml`."""
        hift = re.search(r"(?ms)^hift:.*?(?=^\S)", (pathlib.Path(folder) / "cosyvoice2.yaml").read_text(encoding="utf-8") + "\nend")[0]
        value = lambda key: ast.literal_eval(re.search(rf"\b{key}: (.+?)\s*(#.*)?$", hift, re.MULTILINE)[1])
        return cls(value("base_channels"), value("cond_channels"), value("nb_harmonics"), tuple(value("upsample_rates")),
                   tuple(value("upsample_kernel_sizes")), value("n_fft"), value("hop_len"), tuple(value(r"(?<!source_)resblock_kernel_sizes")),
                   tuple(value(r"(?<!source_)resblock_dilation_sizes")[0]), tuple(value("source_resblock_kernel_sizes")))


@dataclass(frozen=True)
class VoiceDims:
    tokenizer: TokenizerDims = field(default_factory=TokenizerDims)
    speaker: SpeakerDims = field(default_factory=SpeakerDims)
    llm: LlmDims = field(default_factory=LlmDims)
    flow: FlowDims = field(default_factory=FlowDims)
    hift: HiftDims = field(default_factory=HiftDims)


DIMS = VoiceDims()
