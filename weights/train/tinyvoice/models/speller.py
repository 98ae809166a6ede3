"""Helper of the language model's training: the decoder also writes the phonemes of a text, which it has for every sentence of
the corpus, spoken or not. How words are read is learnt from far more text than could be spoken. Not exported."""
import torch
import torch.nn.functional as F
from torch import nn

from .llm import IGNORE, SOS, guide_loss


class Speller(nn.Module):
    def __init__(self, hidden, phonemes):
        super().__init__()
        self.count = phonemes
        self.task = nn.Parameter(0.02 * torch.randn(hidden))
        self.embedding = nn.Embedding(phonemes, hidden)
        self.head = nn.Linear(hidden, phonemes + 1)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def loss(self, model, rows):
        """(cross entropy, guide loss) of rows (text ids, phoneme ids, ordinal of the text token behind each phoneme)."""
        device = self.task.device
        size = max(len(text) + len(phonemes) for text, phonemes, _ in rows) + 2
        target, kind, ids, places = (torch.full((len(rows), size), IGNORE) for _ in range(4))
        for row, (text, phonemes, where) in enumerate(rows):
            first = 1 + len(text)
            last = first + len(phonemes) + 1
            kind[row, 0], kind[row, 1:first], kind[row, first], kind[row, first + 1:last] = 0, 1, 2, 3
            ids[row, 1:first], ids[row, first + 1:last] = torch.tensor(text), torch.tensor(phonemes)
            target[row, first:last] = torch.tensor([*phonemes, self.count])
            places[row, first:last - 1] = torch.tensor(where)
        target, kind, ids, places = (t.to(device) for t in (target, kind, ids, places))
        x = self.task * (kind == 2)[..., None] + model.llm_embedding.weight[SOS] * (kind == 0)[..., None]
        for k, table in ((1, model.decoder.embed_tokens), (3, self.embedding)):
            x = x + table(ids * (kind == k)) * (kind == k)[..., None]
        watched = []
        logits = self.head(model.decoder(x, watched=watched)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORE)
        return loss, guide_loss(watched, kind == 1, places, places >= 0)
