"""Likelihoods of many labels after one prompt, for decoders: a tree of tokens on the prompt's cache.

The prompt is computed once per row and its keys and values are kept. The labels' tokens form a tree
in which shared beginnings stand once; one further pass computes all of it, each node attending to
its prompt and its ancestors (a 4-D mask) at the position of its depth. A beginning that all prompts
of a call share is computed once. A label whose beginning is already less likely than a whole other
label cannot win, since further tokens only take away: where nobody asks for it, it is left out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from lifelong.core.encoding import pad, pad_token
from lifelong.core.labelled import BATCH_TOKENS, LOGITS_AT_ONCE, batches_by_length, logits_at
from lifelong.core.model import Model

SHARED = 8  # tokens; a shorter common beginning is not worth a pass of its own
UNKNOWN = -torch.inf

Labels = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Tree:
    """Labels as paths from a root, which is the prompt. Node i > 0 is a token that another token
    follows; a label's last token needs no node, since nothing is read there.
    """

    tokens: list[int]  # of node i; the root's is meaningless
    parents: list[int]  # of node i, smaller than i
    depths: list[int]  # of node i; the root's is 0
    follows: list[dict[int, int]]  # of node i: edge by the token that follows
    paths: list[list[int]]  # edges of each label
    ways: list[list[int]]  # nodes of each label, the root left out

    @property
    def num_edges(self) -> int:
        return sum(map(len, self.follows))


def tree_of(labels: Labels) -> Tree:
    tree = Tree([0], [0], [0], [{}], [], [])
    nodes: dict[tuple[int, ...], int] = {(): 0}
    num_edges = 0
    for label in labels:
        path, way, node = [], [], 0
        for depth, token in enumerate(label, start=1):
            if token not in tree.follows[node]:
                tree.follows[node][token] = num_edges
                num_edges += 1
            path.append(tree.follows[node][token])
            if depth == len(label):
                break
            beginning = tuple(label[:depth])
            if beginning not in nodes:
                nodes[beginning] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(node)
                tree.depths.append(depth)
                tree.follows.append({})
            node = nodes[beginning]
            way.append(node)
        tree.paths.append(path)
        tree.ways.append(way)
    return tree


def by_tree(
    model: Model, prompts: Sequence[list[int]], labels: Labels, references: Sequence[int] | None
) -> Tensor:
    """See `scoring.label_log_likelihoods`. Right for networks that honour a 4-D mask and position ids."""
    tree = tree_of(labels)
    shared = _shared(model, prompts)
    words = model.network.get_output_embeddings().weight.shape[0]
    rows = max(1, LOGITS_AT_ONCE // (words * len(tree.tokens)))
    scores = torch.empty(len(prompts), len(labels))
    lengths = [len(prompt) + len(tree.tokens) for prompt in prompts]
    for chosen in batches_by_length(lengths, BATCH_TOKENS, rows):
        asked = None if references is None else [references[i] for i in chosen]
        scores[chosen] = _Batch(model, [prompts[i] for i in chosen], tree, shared).scores(asked).cpu()
    return scores


def _shared(model: Model, prompts: Sequence[list[int]]) -> DynamicCache | None:
    """Keys and values of the beginning that all prompts share; each keeps a token of its own."""
    low, high = min(prompts), max(prompts)  # in lexical order: what these two share, all share
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    size = min(size, min(map(len, prompts)) - 1)
    if size < SHARED or len(prompts) < 2:
        return None
    cache = DynamicCache()
    ids = torch.tensor([low[:size]], device=model.device)
    ones = torch.ones_like(ids)
    nowhere = ids.new_zeros(1)
    logits_at(
        model.network, nowhere, input_ids=ids, attention_mask=ones, past_key_values=cache, use_cache=True
    )
    return cache


class _Batch:
    """Prompts whose keys and values are computed, and what is known of each edge of the tree."""

    def __init__(
        self, model: Model, prompts: Sequence[list[int]], tree: Tree, shared: DynamicCache | None
    ) -> None:
        self.network, self.device, self.tree = model.network, model.device, tree
        num = len(prompts)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)  # (B,)
        self.edges = torch.full(
            (num, tree.num_edges), UNKNOWN, device=self.device
        )  # (B, E) log-probabilities
        self.cache, start = DynamicCache(), 0
        if shared is not None:
            start = shared.get_seq_length()
            self.cache = DynamicCache(
                [(k.expand(num, -1, -1, -1), v.expand(num, -1, -1, -1)) for k, v, _ in shared]
            )
        # right padding: no position sees a pad behind it, so the mask may be all ones, which is the cheapest
        ids = pad([prompt[start:] for prompt in prompts], pad_token(model)).to(self.device)
        last = torch.arange(num, device=self.device) * ids.shape[1] + self.lengths - start - 1
        ones = ids.new_ones(num, start + ids.shape[1])
        logits = logits_at(
            self.network, last, input_ids=ids, attention_mask=ones, past_key_values=self.cache, use_cache=True
        )
        self._read(logits, [(row, 0) for row in range(num)])

    def scores(self, references: Sequence[int] | None) -> Tensor:  # (B, num_labels)
        tree, rows = self.tree, range(len(self.lengths))
        every = range(len(tree.paths))
        if references is None:
            self._visit({row: every for row in rows})
            return self._totals({row: every for row in rows})
        bounds = torch.stack([self.edges[:, path[0]] for path in tree.paths], dim=1)
        best = bounds.argmax(1).tolist()
        known = {row: {best[row], references[row]} for row in rows}
        self._visit(known)
        top = self._totals(known).amax(1, keepdim=True)
        may_win = (bounds >= top).tolist()
        open_labels = {row: {i for i in every if may_win[row][i]} - known[row] for row in rows}
        self._visit({row: labels for row, labels in open_labels.items() if labels})
        return self._totals({row: known[row] | open_labels[row] for row in rows})

    def _totals(self, known: Mapping[int, Collection[int]]) -> Tensor:
        totals = torch.stack([self.edges[:, path].double().sum(1) for path in self.tree.paths], dim=1)
        mask = torch.zeros_like(totals, dtype=torch.bool)
        for row, labels in known.items():
            mask[row, list(labels)] = True
        return totals.masked_fill(~mask, UNKNOWN).float()

    def _visit(self, wanted: Mapping[int, Collection[int]]) -> None:
        """One forward pass over the nodes of the wanted labels of some rows."""
        nodes = {
            row: sorted({n for i in labels for n in self.tree.ways[i]}) for row, labels in wanted.items()
        }
        rows = [row for row in nodes if nodes[row]]
        if not rows:
            return
        ids, depths, seen = (part.to(self.device) for part in self._layout([nodes[row] for row in rows]))
        chosen = torch.tensor(rows, device=self.device)
        some = slice(None) if len(rows) == len(self.lengths) else chosen
        cache = DynamicCache([(k[some], v[some]) for k, v, _ in self.cache])  # a copy
        length, width = cache.get_seq_length(), ids.shape[1]
        prompt = torch.arange(length, device=self.device) < self.lengths[chosen, None]  # (R, T)
        visible = torch.cat([prompt[:, None].expand(-1, width, -1), seen], dim=2)[:, None]  # (R, 1, U, T + U)
        dtype = next(iter(cache))[0].dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(~visible, torch.finfo(dtype).min)
        sites = [(row, node) for row in rows for node in nodes[row]]
        index = [at * width + k for at, row in enumerate(rows) for k in range(len(nodes[row]))]
        logits = logits_at(
            self.network, torch.tensor(index, device=self.device), input_ids=ids, attention_mask=mask,
            position_ids=self.lengths[chosen, None] + depths - 1, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        self._read(logits, sites)

    def _layout(self, nodes: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (R, U), depths (R, U) and who sees whom (R, U, U); pads see themselves."""
        tree, width = self.tree, max(map(len, nodes))
        ids, depths = (
            pad([[tree.tokens[n] for n in row] for row in nodes], 0),
            pad([[tree.depths[n] for n in row] for row in nodes], 1),
        )
        seen = torch.eye(width, dtype=torch.bool).repeat(len(nodes), 1, 1)
        for r, row in enumerate(nodes):
            at = {node: k for k, node in enumerate(row)}
            for k, node in enumerate(row):
                if tree.parents[node]:
                    seen[r, k] |= seen[r, at[tree.parents[node]]]  # a parent stands before its child
        return ids, depths, seen

    def _read(self, logits: Tensor, sites: list[tuple[int, int]]) -> None:
        """Log-probabilities of what follows each (row, node); logits (N, V)."""
        size = max(1, 2**22 // logits.shape[-1])
        norms = torch.cat([part.float().logsumexp(-1) for part in logits.split(size)])
        found = [
            (at, row, edge, token)
            for at, (row, node) in enumerate(sites)
            for token, edge in self.tree.follows[node].items()
        ]
        at, row, edge, token = torch.tensor(found, device=self.device).T
        self.edges[row, edge] = logits[at, token].float() - norms[at]
