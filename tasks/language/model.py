"""A small causal transformer that is trained in seconds on one core."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, LAYERS = 128, 4, 2


class Block(nn.Module):
    """Causal self-attention with normalised queries and keys, and a feed-forward layer; both begin as nothing."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.feed_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        last = nn.Linear(4 * WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), last)
        for weight in (self.project.weight, last.weight, last.bias):
            nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(n, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = (F.rms_norm(part, part.shape[-1:]) for part in (q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(attended.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.feed(self.feed_norm(x))


class CausalTransformer(nn.Module):
    """Scores of the next token, ``[n, length, vocabulary]``, from tokens ``[n, length]``.

    It begins as the frequencies of single tokens: the head is zero and its bias the log frequencies. From a usual
    initialisation so small a model first spends most of a short training on learning these, noise prolongs that, and
    whatever shortens it looks like a gain.

    Args:
        frequencies: ``[vocabulary]``, of the tokens of the training text; zeros allowed.
        length: most tokens it can see.
    """

    def __init__(self, frequencies: Tensor, length: int):
        super().__init__()
        vocabulary = len(frequencies)
        self.embedding = nn.Embedding(vocabulary, WIDTH)  # standard deviation 1
        self.position = nn.Parameter(0.1 * torch.randn(length, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(((frequencies + 1) / (frequencies + 1).sum()).log())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))
