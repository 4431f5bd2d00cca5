# %% [markdown]
# # I-JEPA, piece by piece
#
# Hide a part of a picture and ask a network what is there. A *masked autoencoder* answers in pixels, so it has to care
# about every blade of grass. A **joint-embedding predictive architecture** (JEPA) answers in *features*: it predicts what
# another network would say about the hidden part. Detail that nobody could predict, that other network is free to
# leave out.
#
# I-JEPA ([Assran et al. 2023](https://arxiv.org/abs/2301.08243)) does this for images with five parts:
#
# ```text
#             context tokens                          positions of the targets
#            ┌──────────────► context encoder ──────► predictor ──────► predicted features ──┐
#            │                       ┆                                                       │
#  picture ──┤                       ┆ moving average of the weights                        loss
#            │                       ▼                                                       │
#            └──────────────► target encoder ───────► pick the targets ► target features ────┘
#             all tokens                              (no gradient on this road)
# ```
#
# This page builds them one after the other from the parts of `jepa_lightning` and trains them in a loop written by hand. It
# takes about a minute on a laptop, without GPU or download. You should know PyTorch and roughly what a Vision Transformer (ViT) is.

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.patheffects import withStroke

import jepa_lightning as jl
from jepa_lightning.callbacks.pictures import show_only
from jepa_lightning.data import CleanTransform, DigitScenes, ImageDataModule
from jepa_lightning.masking import MaskedBatch, MultiBlock, gather_tokens
from jepa_lightning.models import ema_update, frozen_copy
from jepa_lightning.schedules import Constant

plt.rcParams.update({"figure.dpi": 80, "image.interpolation": "nearest"})
torch.set_num_threads(1)  # so small a model gains little from more, and loses much on a busy machine
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. From a picture to tokens
#
# The package brings its own pictures: real handwritten digits in front of dark pieces of real photographs. They
# are written to `~/.cache/jepa_lightning` once. Digits and photographs of the training split never appear in the
# validation split.

# %%
source = DigitScenes()
source.prepare()
scenes = source.split("val")
numbers = [0, 120, 360, 480, 720, 840]
clean = CleanTransform((48, 48))  # the middle of the picture, as all evaluations see it
pixels = torch.stack([clean(scenes.image(i)) for i in numbers])
masks = partial(MultiBlock, min_keep=3)
data = ImageDataModule(source, masks=masks, batch_size=32, num_workers=0, seed=0, img_size=48, patch_size=8)
images = data.normalize(pixels)  # uint8 -> float, mean 0, standard deviation 1 or so
pixels.shape, images.dtype


# %%
def show(rows, titles=(), names=(), size=1.5, **options):
    """Draw rows of pictures (each a list of (3, H, W) or (H, W) tensors)."""
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(size * len(rows[0]), size * len(rows)), squeeze=False)
    for axis, picture in zip(axes.flat, (picture for row in rows for picture in row), strict=True):
        axis.imshow(picture.permute(1, 2, 0) if picture.ndim == 3 else picture, **options)
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, fontsize=9)
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.set_ylabel(name, fontsize=9)
    figure.tight_layout(pad=0.4)
    return axes


_ = show([pixels], [f"a {scenes.classes[scenes.labels[i]]}" for i in numbers])

# %% [markdown]
# A ViT does not see pixels one by one. It cuts the 48x48 picture into patches of 8x8, and these make a 6x6 grid of
# **tokens**, numbered in raster order. From here on a token is only called by its number.

# %%
axis = show([pixels[:1]], size=4)[0, 0]
outline = [withStroke(linewidth=2, foreground="black")]
for edge in range(0, 49, 8):
    axis.axhline(edge - 0.5, color="white", linewidth=0.6)
    axis.axvline(edge - 0.5, color="white", linewidth=0.6)
for token in range(36):
    row, column = divmod(token, 6)
    axis.text(8 * column + 3.5, 8 * row + 3.5, token, color="white", path_effects=outline, ha="center", va="center")

# %% [markdown]
# The patch embedding is one linear map, the same for every patch, from the 3·8·8 = 192 numbers of a patch to the
# $D$ channels of a token. A convolution whose stride equals its kernel does just that:

# %%
encoder = jl.VisionTransformer(
    img_size=48, patch_size=8, embed_dim=96, depth=4, num_heads=3, init_std=None, patch_init_std=0.375
)
patches = F.unfold(images, kernel_size=8, stride=8).transpose(1, 2)  # (B, 36, 192)
weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
tokens = patches @ weight.flatten(1).T + bias  # (B, 36, 96)
torch.testing.assert_close(tokens, encoder.patch_embed(images), atol=1e-4, rtol=1e-4)
tokens.shape, encoder.grid

# %% [markdown]
# `grid` is (time, height, width): for a picture time is 1, for a video it is not, and the rest of the code is the same.
#
# A Transformer treats its tokens as a set, so each token is told where it comes from by a fixed vector of sines and cosines
# that is added to it. Below is the similarity of one position's vector with those of all the others: near is alike, far is
# not, and row and column are told apart.

# %%
position = F.normalize(encoder.pos_embed[0], dim=1)  # (36, 96)
chosen = [0, 14, 29]
_ = show([[(position @ position[t]).view(6, 6) for t in chosen]], [f"similarity to {t}" for t in chosen], size=2)

# %% [markdown]
# ## 2. What is shown and what is asked
#
# For each picture, *multi-block masking* (section 3 of the paper) draws
#
# * four **target blocks**, each 15 to 20 % of the picture with an aspect ratio from 0.75 to 1.5; they may overlap;
# * one large **context block**, a square with 85 to 100 % of the picture, from which all four targets are taken out.
#
# The choice matters. Targets have to be large, or they can be guessed from the patches next to them and nothing about
# objects needs to be known; the context has to be large and spread out, or there is nothing to guess from.
#
# A mask is nothing but a tensor of token numbers.

# %%
sampler = MultiBlock(encoder.grid, min_keep=3)
(masks,) = sampler.sample(len(images), torch.Generator().manual_seed(3))
print("context", tuple(masks.context.shape), " targets", tuple(masks.targets.shape), "= (B, blocks, tokens)")
print("the picture with numbers on it: context", masks.context[0].tolist())
print("                           first target", masks.targets[0, 0].tolist())

# %%
floats = pixels / 255
shown = [masks.context, *masks.targets.unbind(1)]
frames = floats.unsqueeze(2)  # (B, 3, 1, H, W): to the function that draws masks a picture is a clip of one frame
columns = [floats, *(show_only(frames, block, encoder.grid).squeeze(2) for block in shown)]
titles = ["picture", "context", "target 1", "target 2", "target 3", "target 4"]
_ = show([[column[i] for column in columns] for i in (0, 3, 5)], titles)

# %% [markdown]
# A context may have a few holes more than its targets explain. The pictures of a batch are stacked into one
# tensor, so all contexts must have the same number of tokens: each is cut to the smallest of the batch.
# *How* that is done leaves a trace. Below, how often each token is context and how often it is (part of) a target,
# over many batches. The official code keeps the first tokens in raster order, and an off-by-one error keeps every block out
# of the last row and column. Ours cuts at random and uses the whole grid; `compat=True` restores the official
# behaviour.


# %%
def coverage(sampler, batches=40, size=64):
    """Share of pictures in which a token is context, and in which it is in one of the targets."""
    counts = torch.zeros(2, 36)
    for _ in range(batches):
        (drawn,) = sampler.sample(size)
        for share, index in zip(counts, (drawn.context, drawn.targets.flatten(1)), strict=True):
            share += torch.zeros(size, 36).scatter_(1, index, 1.0).sum(dim=0)
    return counts.view(2, 6, 6) / (batches * size)


maps = [*coverage(sampler), *coverage(MultiBlock(encoder.grid, min_keep=3, compat=True))]
titles = ["ours: context", "ours: target", "official: context", "official: target"]
axes = show([maps], titles, size=2.1, vmin=0, vmax=1)
_ = plt.colorbar(axes[0, 3].images[0], ax=list(axes[0]), label="share of pictures", shrink=0.8)

# %% [markdown]
# ## 3. The context encoder
#
# The context encoder $f_\theta$ is an ordinary ViT. "Masking" means *not giving it the other tokens*: they are left out
# after the positions have been added and before the first block, so hidden patches cost no computation and cannot
# leak. We can put noise into every pixel outside of the context and nothing changes.

# %%
context = encoder(images, masks.context)  # (B, Nc, D)
noise = torch.randn_like(images)
shown = show_only(torch.ones_like(frames), masks.context, encoder.grid).squeeze(2) == 1
torch.testing.assert_close(encoder(torch.where(shown, images, noise), masks.context), context)
print(tuple(encoder(images).shape), "without a mask,", tuple(context.shape), "with one")

# %% [markdown]
# ## 4. The target encoder
#
# The target encoder $f_{\bar\theta}$ is a copy of the context encoder that gets no gradient. It always sees the **whole**
# picture, and the target blocks are taken from its *output*: through attention each of these tokens already knows of the rest
# of the picture. Cutting the blocks out of the input instead would ask for features of a fragment.
#
# Its features $s$ are normalised to mean 0 and variance 1 over the channels of each token, so that the loss cannot
# be made small by making features small.

# %%
target_encoder = frozen_copy(encoder)
with torch.no_grad():
    features = F.layer_norm(target_encoder(images), (encoder.embed_dim,))  # (B, N, D)
targets = gather_tokens(features, masks.targets)  # (B, M, Nt, D)
targets.shape

# %% [markdown]
# ## 5. The predictor
#
# The predictor $g_\phi$ is a small, narrow Transformer. It receives the context tokens, and for each token
# that is asked for one **mask token**: the same learned vector every time, plus the position in question. All that tells
# two questions apart is *where*. Each block is a sequence of its own, so the targets do not see each other.

# %%
predictor = jl.Predictor(encoder, embed_dim=48, depth=2, init_std=None)
predicted = predictor(context, masks.context, masks.targets)  # (B, M, Nt, D)
predicted.shape

# %% [markdown]
# Written out for the first target block of the first picture:

# %%
position = predictor.predictor_pos_embed[0]  # (36, 48): a table of its own, as narrow as the predictor
given = predictor.predictor_embed(context[0]) + position[masks.context[0]]  # (Nc, 48)
asked = predictor.mask_token[0] + position[masks.targets[0, 0]]  # (Nt, 48)
x = torch.cat([given, asked]).unsqueeze(0)
for block in predictor.predictor_blocks:
    x = block(x)
x = predictor.predictor_proj(predictor.predictor_norm(x[:, -len(asked) :]))  # back to D = 96
torch.testing.assert_close(x[0], predicted[0, 0])

# %% [markdown]
# ## 6. The loss
#
# The distance between prediction $\hat s$ and target $s$, averaged over the $M$ blocks $B_m$, their tokens and the channels:
#
# $$
# \mathcal{L} = \frac{1}{M} \sum_{m=1}^{M} \frac{1}{|B_m|\,D} \sum_{j \in B_m} \sum_{d=1}^{D} \ell(\hat s_{jd} - s_{jd}),
# \qquad
# \ell(e) = \begin{cases} \tfrac12 e^2 & |e| < 1 \\ |e| - \tfrac12 & \text{otherwise} \end{cases}
# $$
#
# The paper writes $\ell(e) = e^2$, the code it came with uses this *smooth L1*: the square near 0, and a slope of at most 1
# far out, so that a few badly predicted tokens do not dominate the gradient.
#
# `jl.IJEPA` is the LightningModule with all of this inside. Its `losses` must give the same number:


# %%
def smooth_l1(error):
    """0.5 error² below 1, linear above."""
    return torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)


blocks = [smooth_l1(predicted[:, m] - targets[:, m]).mean() for m in range(4)]
by_hand = torch.stack(blocks).mean()

module = jl.IJEPA(encoder, lambda _: predictor, lr=Constant(1e-3), weight_decay=Constant(0.04), momentum=Constant(0.98))
losses = module.losses(MaskedBatch(images, (masks,)))
torch.testing.assert_close(by_hand, losses["loss"])
print({name: round(value.item(), 3) for name, value in losses.items()})

# %% [markdown]
# `explained_variance` comes with the loss: $1 - \text{MSE} / \text{Var}(s)$. It is 1 for a perfect prediction and 0 for
# somebody who always answers with the average feature. It is the better number to watch, because the targets change while
# we train: a loss can fall only because the targets became easier.
#
# The gradient reaches the context encoder (through the predictor) but not the target encoder:

# %%
by_hand.backward()
gradient = torch.stack([p.grad.norm() for p in encoder.parameters() if p.grad is not None]).norm()
print(f"context encoder: gradient norm {gradient:.3f}")
print("target encoder :", {p.grad for p in target_encoder.parameters()})

# %% [markdown]
# ## 7. The moving average
#
# If both encoders were trained on this loss, they would soon agree on one constant feature for everything: a perfect
# prediction that says nothing, a *collapse*. So the target encoder is not trained. After each step it follows the
# context encoder as an exponential moving average (EMA) with momentum $\mu$,
#
# $$ \bar\theta \leftarrow \mu\,\bar\theta + (1 - \mu)\,\theta . $$
#
# No theorem says that this prevents collapse, but in practice it does: the predictor chases a slowly moving
# target that has no reason of its own to become simpler.

# %%
momentum = 0.98
follower = frozen_copy(torch.nn.Linear(3, 3))
leader = torch.nn.Linear(3, 3)
expected = momentum * follower.weight + (1 - momentum) * leader.weight
ema_update(follower, leader, momentum)
torch.testing.assert_close(follower.weight, expected)

for mu in (0.98, 0.996, 0.9999):
    print(f"momentum {mu}: after {math.log(0.5) / math.log(mu):5.0f} steps half of the old weights is forgotten")

# %% [markdown]
# The paper starts at 0.996 and ends at 1 in hundreds of thousands of steps. Our loop has 60, in which a momentum of 0.996
# would leave the target encoder nearly where it began, so here it is 0.98.
#
# ## 8. Training, by hand
#
# Everything is there: draw masks, predict, compare, step, follow. The loader gives a `MaskedBatch` of
# randomly cropped pictures and masks; masks are drawn in the loader, so they cost no time in training.

# %%
STEPS = 60
untrained = frozen_copy(encoder)
optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=0.0, weight_decay=0.04)
history = []
for step, batch in zip(range(STEPS), data.train_dataloader(), strict=False):
    optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 10)  # a short warm-up
    x, (masks,) = data.normalize(batch.inputs), batch.masks

    with torch.no_grad():
        features = F.layer_norm(target_encoder(x), (encoder.embed_dim,))
    predicted = predictor(encoder(x, masks.context), masks.context, masks.targets)
    targets = gather_tokens(features, masks.targets)
    loss = F.smooth_l1_loss(predicted, targets)

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ema_update(target_encoder, encoder, momentum)
    history.append((loss.item(), jl.metrics.explained_variance(predicted.detach(), targets).item()))
print(
    f"loss {history[0][0]:.3f} -> {history[-1][0]:.3f}, explained variance {history[0][1]:.2f} -> {history[-1][1]:.2f}"
)


# %%
def curves(history):
    """Loss and explained variance by step."""
    _, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    for axis, values, title in zip(axes, zip(*history, strict=True), ("loss", "explained variance"), strict=False):
        axis.plot(range(1, len(values) + 1), values)
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
    axes[1].axhline(0, color="grey", linestyle="--", linewidth=1)
    axes[1].text(0, 0.01, "always answering the average", color="grey", fontsize=8, va="bottom")
    axes[1].set_ylim(bottom=-0.2)


curves(history)

# %% [markdown]
# The loss falls at once, for a dull reason: the predictor finds the average target. Only when the explained variance
# leaves 0 does it say something about *this* picture at *this* place.
#
# ## 9. The same with `jepa fit`
#
# For real work all of this is one command. `ijepa.yaml` is a complete recipe that comes with the package: the sizes we
# used, the schedules, the data, and what makes it learn in minutes (`docs/small-data.md`). In a terminal:
#
# ```bash
# jepa fit --config ijepa.yaml
# ```
#
# trains for 8 epochs, which takes about four minutes of two cores, and runs probes on the frozen encoder before and after: a
# linear classifier goes from 60 to 90 %, the nearest neighbours from 25 to 71 %. The next page, `03_small_data.ipynb`,
# runs it from Python, looks at its features in colour, and shows how to tell early whether a training learns.
#
# **Where to go from here**
#
# * `jepa fit --config ijepa.yaml` for the full recipe, `tensorboard --logdir runs` to watch it,
#   `jepa validate --config ijepa.yaml --ckpt_path last.ckpt` to measure it;
# * `jepa fit --config ijepa.yaml --data.root ~/my/pictures` for your own folder of images;
# * `jepa_lightning/methods/ijepa.py`: sections 3 to 6 of this page in 25 lines.
