"""Where a training starts: prompts that are tokens the network knows, and a head that is solved for its features.

A random head's first gradients distort the features before the head has learned to read them (Kumar et al., ICLR 2022,
https://arxiv.org/abs/2202.10054), and a short training is over before it has. A random prompt is unlike every token of
the network and turns its features away; a real one, entering the block where it was found, leaves them near.

Everything is a function of the seed and the training images, so nothing is kept for a process that is killed before
its first checkpoint: the next one computes the same bits.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from components.data.batches.loading import Samples
from components.models.encoders import PromptedEncoder
from components.models.engine import Engine
from components.models.network import Network
from components.models.prompts import gather_tokens
from components.training.evaluate import extract_features
from components.training.probe import solve, standardise
from components.training.recipe import Recipe

#: L2 strength of the first head. From 0.001 to 1 the scores of linear probes hardly differ (benchmarks/README.md,
#: Methods); a weaker one needs more steps, and leaves no loss to learn from where images are few.
STRENGTH = 0.1
PATCHES = 1  # a random number's purpose


def start(network: Network, train: Samples, recipe: Recipe, engine: Engine) -> None:
    """Put a fresh network, prepared by the engine, where its training starts.

    The head starts as the optimum for the features of the training images, not augmented, where it can be solved.
    """
    plain, batch_size = train.plain(), 2 * recipe.training.batch_size
    if isinstance(network.encoder, PromptedEncoder):
        place_prompts(network.encoder, plain, recipe.seed, engine, batch_size)
    if network.head.solvable:
        known = standardise(_extract_together(network, plain, engine, batch_size).astype(np.float64))
        problems = recipe.task.problems(plain.targets, len(recipe.classes))
        network.head.fill([solve(known, problem, STRENGTH) for problem in problems])


def place_prompts(encoder: PromptedEncoder, plain: Samples, seed: int, engine: Engine, batch_size: int) -> None:
    """Let every static prompt start as the token of a patch of a training image, as it enters the prompt's block.

    The prompts of a block come from as many images as there are; from one block to the next the patches differ.
    """
    prompts = encoder.static_prompts
    if prompts is None:
        return
    rng = np.random.default_rng([seed, PATCHES])
    layers, count, _ = prompts.tokens.shape
    height, width = encoder.vit.patch_embed.grid_size
    chosen = np.resize(rng.permutation(len(plain)), count)
    places = torch.from_numpy(rng.integers(height * width, size=(layers, count))).to(engine.device)
    tokens = []
    for first in range(0, count, batch_size):
        some = slice(first, first + batch_size)
        images = torch.stack([plain[int(index)][0] for index in chosen[some]])
        tokens.append(gather_tokens(encoder.vit, engine.normalise(images), places[:, some]))
    prompts.start_from(torch.cat(tokens, dim=1))


def _extract_together(network: Network, plain: Samples, engine: Engine, batch_size: int) -> NDArray[np.float32]:
    """Features (N, D), of which every process of the process group computes its share."""
    peers, count = engine.peers, len(plain)
    share = slice(peers.rank, count, peers.size)
    mine = Samples(plain.pixels, plain.rows[share], plain.targets[share], None)
    features = torch.from_numpy(extract_features(network, mine, engine, batch_size).features)
    if peers.size == 1:
        found: NDArray[np.float32] = features.numpy()
        return found
    whole = torch.zeros(count, features.shape[1])
    whole[share] = features
    together: NDArray[np.float32] = peers.total(whole).numpy()
    return together
