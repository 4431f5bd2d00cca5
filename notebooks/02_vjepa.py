# %% [markdown]
# # V-JEPA, piece by piece
#
# The [first notebook](01_ijepa.ipynb) hides parts of a picture and predicts their *features*. V-JEPA
# ([Bardes et al. 2024](https://arxiv.org/abs/2404.08471)) does the same with video. Context encoder, target
# encoder, moving average and predictor stay what they were; this page is about what is new:
#
# | | I-JEPA | V-JEPA |
# |---|---|---|
# | a token is | a patch | a *tubelet*: a patch in two frames |
# | positions | row and column, added | time, row and column, added (V-JEPA 2: rotated) |
# | hidden | four blocks | *tubes*: blocks that last for the whole clip, in two families |
# | shown | a large block without the targets | all that is not hidden |
# | mask token | one | one for each family |
# | loss | smooth L1 | L1 |
#
# It takes about a minute on a laptop, without GPU or download. You should have read the first notebook.

# %%
import io
import logging
from contextlib import redirect_stderr
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer

import jepa_lightning as jl
from jepa_lightning.callbacks.pictures import pca_rgb, show_only
from jepa_lightning.data import ClipFormat, ClipSampler, MovingDigits, PyAVDecoder, VideoDataModule
from jepa_lightning.evaluation import Features, linear_top1
from jepa_lightning.masking import MaskedBatch, MultiBlock3D, gather_tokens
from jepa_lightning.models import RoPE, SinCos3D, frozen_copy
from jepa_lightning.models.positions import rotate
from jepa_lightning.schedules import Constant, Linear, WarmupCosine

plt.rcParams.update({"figure.dpi": 80, "image.interpolation": "nearest"})
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)  # so small a model gains little from more, and loses much on a busy machine
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A clip
#
# The package brings its own videos: real handwritten digits that move over real photographs, written to
# `~/.cache/jepa_lightning` once, as MP4 files. PyAV, that is FFmpeg, decodes them like any other file.

# %%
source = MovingDigits()
source.prepare()
videos = source.split("val")
with videos.open(0, PyAVDecoder()) as video:
    print(videos.name(0), video.info)
    frames = video.frames([0, 5, 10])  # decodes what these need, not the whole file
frames.shape, frames.dtype

# %% [markdown]
# A model does not get a file but a **clip** of it, here 8 frames in a row. `VideoDataModule` decodes just these, crops and
# stacks them: a batch is a tensor (B, C, T, H, W).

# %%
data = VideoDataModule(
    source,
    masks=MultiBlock3D,
    clips=partial(ClipSampler, fps=8),
    batch_size=16,
    num_workers=0,
    seed=0,
    inputs=ClipFormat(num_frames=8, img_size=64, patch_size=8, tubelet_size=2),
)
dataset = data.clip_dataset("val")
samples = [dataset[i] for i in (0, 1, 3, 11)]
pixels = torch.stack([sample.inputs for sample in samples])  # uint8
clips = data.normalize(pixels)  # float, mean 0, standard deviation 1 or so
digits, motions = data.classes
names = [f"a {digits[sample.label[0]]}, {motions[sample.label[1]]}" for sample in samples]
clips.shape, data.label_names


# %%
def show(rows, titles=(), names=(), size=1.1, **options):
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


_ = show(pixels.transpose(1, 2), [f"frame {t}" for t in range(8)], names)

# %% [markdown]
# Each clip has two labels: which **digit** (of 10) and which **motion** (of 6). Cover all columns but one and the motion is
# gone: wherever a digit is, it may have come from anywhere (what leaves the frame starts again at the other side). Whoever
# tells the motion has looked at several frames.
#
# ## 2. Tubelets
#
# A ViT for clips cuts them into boxes of 2 frames times 8x8 pixels, *tubelets*. There are 4·8·8 = 256 of them, numbered in
# raster order: by time step, then row, then column.

# %%
small = {"embed_dim": 64, "depth": 3, "num_heads": 2, "init_std": None, "patch_init_std": 0.09}
encoder = jl.VisionTransformer(img_size=64, patch_size=8, num_frames=8, tubelet_size=2, **small)
steps, height, width = encoder.grid
token = 1 * height * width + 3 * width + 2  # time step 1, row 3, column 2
axes = show(pixels[:1].transpose(1, 2), [f"frame {t}, step {t // 2}" for t in range(8)], size=1.3)
for axis in axes[0, 2:4]:
    axis.add_patch(plt.Rectangle((2 * 8 - 0.5, 3 * 8 - 0.5), 8, 8, fill=False, color="red", linewidth=2))
print("grid (time, height, width):", encoder.grid, "  red: what token", token, "covers")

# %% [markdown]
# The embedding is one linear map from the 3·2·8·8 = 384 numbers of a tubelet to the $D$ channels of a token. Cut by hand, and
# as the encoder does it, by a `Conv3d` whose stride equals its kernel:

# %%
boxes = clips.reshape(-1, 3, steps, 2, height, 8, width, 8)  # (B, C, T', 2, H', 8, W', 8)
boxes = boxes.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # (B, 256, 384)
convolution = encoder.patch_embed.proj
tokens = boxes @ convolution.weight.flatten(1).T + convolution.bias  # (B, 256, 64)
torch.testing.assert_close(tokens, encoder.patch_embed(clips), atol=1e-4, rtol=1e-4)
print(convolution)
tokens.shape

# %% [markdown]
# ## 3. Positions
#
# V-JEPA **adds** sines and cosines of time, row and column to the tokens, about a third of the channels each. V-JEPA 2 adds
# nothing: its *rotary positions* (RoPE) **turn** queries and keys, in every attention layer, by angles proportional to
# time, row and column.
#
# Below, the similarity of one token (red) with all others if nothing but their positions differed: of the vectors that
# are added, and of equal queries and keys after they were turned.

# %%
table = F.normalize(SinCos3D().table(encoder.grid, 64)[0], dim=1)  # (N, D)
rotation = RoPE().rotation(torch.arange(steps * height * width).unsqueeze(0), encoder.grid, head_dim=32)
turned = F.normalize(rotate(torch.ones(1, 1, len(table), 32), rotation)[0, 0], dim=1)
rows = [(vectors @ vectors[token]).view(encoder.grid) for vectors in (table, turned)]
axes = show(rows, [f"step {t}" for t in range(steps)], ["added", "rotated"], size=1.6, vmin=0.4, vmax=1)
for axis in axes[:, 1]:
    axis.add_patch(plt.Rectangle((1.5, 2.5), 1, 1, fill=False, color="red", linewidth=2))
_ = plt.colorbar(axes[0, 0].images[0], ax=list(axes.flat), label="similarity", shrink=0.8)

# %% [markdown]
# Near is alike in both (the fastest wave comes round again after 2π ≈ 6 tokens). They differ once the tokens have contents.
# Move a query and a key together, one step, row and column on: turned, they have the same product as before, which knows
# distances only; added to, they have another.

# %%
query, key = torch.randn(2, 32)
further = height * width + width + 1  # one step, row and column on
places = torch.tensor([0, token, further, token + further])
rotation = RoPE().rotation(places.unsqueeze(0), encoder.grid, head_dim=32)
q, k = (rotate(x.expand(1, 1, 4, 32), rotation)[0, 0] for x in (query, key))  # (4, 32), at each of the places
torch.testing.assert_close(q[0] @ k[1], q[2] @ k[3])
print(f"rotated: {q[0] @ k[1]:6.3f} -> {q[2] @ k[3]:6.3f}")
q, k = (x + SinCos3D().table(encoder.grid, 32)[0, places] for x in (query, key))
print(f"added:   {q[0] @ k[1]:6.3f} -> {q[2] @ k[3]:6.3f}")

# %% [markdown]
# ## 4. Tubes
#
# `MultiBlock3D` draws two families of masks (section 3.2 of the paper), each the union of blocks that last for the whole
# clip, with an aspect ratio from 0.75 to 1.5:
#
# * **short**: eight blocks of 15 % of a frame, which leaves gaps here and there;
# * **long**: two blocks of 70 % of a frame, which leaves an edge or a corner.
#
# What is in a block is target, the rest is context.

# %%
sampler = MultiBlock3D(encoder.grid)
families = dict(zip(("short", "long"), sampler.sample(len(clips), torch.Generator().manual_seed(5)), strict=True))
for name, masks in families.items():
    print(f"{name:5}  context {tuple(masks.context.shape)}  targets {tuple(masks.targets.shape)} = (B, blocks, tokens)")
first = pixels[:, :, ::2] / 255  # the first frame of each time step, (B, 3, T', H, W)
rows = {"frames": first}
for name, masks in families.items():
    rows[f"{name}:\ncontext"] = show_only(first, masks.context, encoder.grid)
    rows[f"{name}:\ntargets"] = show_only(first, masks.targets[:, 0], encoder.grid)
_ = show([row[0].transpose(0, 1) for row in rows.values()], [f"step {t}" for t in range(steps)], rows, size=1.3)

# %% [markdown]
# Some tokens are neither: masks of a batch must be equally long, so each is cut to the shortest one.
#
# Why tubes and not random tokens? The next frame shows nearly the same. A token that is hidden now and shown a moment later
# can be copied, and nothing needs to be understood.

# %%
x = boxes.unflatten(1, (steps, -1))  # (B, T', H'W', 384), the pixels of each token
copied = 1 - (x[:, 1:] - x[:, :-1]).square().mean() / x.var()
print(f"copying a place from the step before explains {copied:.0%} of the variance of its pixels")


def seen_at_another_time(context, targets):
    """Share of the targets whose place is shown in some frame."""
    shown = torch.zeros(len(context), 256).scatter_(1, context, 1.0).view(-1, steps, height * width).amax(dim=1)
    return shown.gather(1, targets % (height * width)).mean()


for share in (0.6, 0.75, 0.9):
    context, targets = torch.rand(32, 256).argsort(dim=1).split([256 - int(256 * share), int(256 * share)], dim=1)
    print(f"{share:.0%} hidden at random: {seen_at_another_time(context, targets):.0%} of it is seen at another time")
for name, masks in families.items():
    print(f"{name} tubes: {seen_at_another_time(masks.context, masks.targets[:, 0]):.0%}")

# %% [markdown]
# *How* masks are cut leaves a trace again. The official code keeps the first tokens in raster order, and what it loses is late
# frames. Ours cuts at random; `compat=True` restores the official behaviour. Below, for the grid and batch size of the paper,
# the share of the tokens of each time step that are context:


# %%
def by_time(sampler, batches=20, size=24):
    """Share of the tokens of each time step that are context, for each family."""
    counts = torch.zeros(2, 8)
    for _ in range(batches):
        for family, masks in enumerate(sampler.sample(size)):
            counts[family] += (masks.context // 14**2).flatten().bincount(minlength=8)
    return counts / (batches * size * 14**2)


grid = (8, 14, 14)  # 16 frames of 224x224 pixels, tubelets of 2x16x16
shares = {"official": by_time(MultiBlock3D(grid, compat=True)), "ours": by_time(MultiBlock3D(grid))}
_, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", sharey=True)
for family, (axis, name) in enumerate(zip(axes, families, strict=True)):
    for shift, (whose, share) in zip((-0.2, 0.2), shares.items(), strict=True):
        axis.bar(torch.arange(8) + shift, share[family], width=0.4, label=whose)
    axis.set(title=f"{name} masks", xlabel="time step")
axes[0].set_ylabel("share that is context")
_ = axes[0].legend()

# %% [markdown]
# ## 5. The loss
#
# For each family: encode its context; ask for its targets with its own mask token, because filling a gap and
# continuing from an edge are different questions; compare with the normalised features of the target encoder, which sees
# the whole clip. The distance is the mean absolute difference, and the loss its mean over the families.

# %%
module = jl.VJEPA(
    encoder,
    partial(jl.Predictor, embed_dim=32, depth=2, num_mask_tokens=2, init_std=None),
    lr=WarmupCosine(start=0.0, peak=1e-3, final=1e-5, warmup_epochs=0.1),
    weight_decay=Constant(0.04),
    momentum=Linear(start=0.98, final=1.0),
)
predictor = module.predictor
position = predictor.predictor_pos_embed[0]  # (256, 32)
with torch.no_grad():
    features = F.layer_norm(module.target_encoder(clips), (64,))  # (B, N, D)
parts = []
for family, masks in enumerate(families.values()):
    given = predictor.predictor_embed(encoder(clips, masks.context)) + position[masks.context]  # (B, Nc, 32)
    asked = predictor.mask_tokens[family] + position[masks.targets[:, 0]]  # (B, Nt, 32)
    x = torch.cat([given, asked], dim=1)
    for block in predictor.predictor_blocks:
        x = block(x)
    predicted = predictor.predictor_proj(predictor.predictor_norm(x[:, -asked.shape[1] :]))  # (B, Nt, D)
    parts.append((predicted - gather_tokens(features, masks.targets[:, 0])).abs().mean())
by_hand = torch.stack(parts).mean()

losses = module.losses(MaskedBatch(clips, tuple(families.values())))
torch.testing.assert_close(by_hand, losses["loss"])
print({name: round(value.item(), 3) for name, value in losses.items()})

# %% [markdown]
# As before `explained_variance` is 1 for a perfect prediction, 0 for the average feature, and below 0 for anything worse.
#
# ## 6. One training run
#
# The module is a LightningModule and the data a LightningDataModule, so Lightning's own `Trainer` does the rest. We add
# a callback that remembers the curves. One epoch shows each of the 2000 training clips once.


# %%
class History(Callback):
    """Remembers what the module logs in each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


untrained, history = frozen_copy(encoder), History()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
with redirect_stderr(io.StringIO()):  # notes of Lightning
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, callbacks=[history], **quiet)
    trainer.fit(module, data)

_, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
for axis, name in zip(axes, ("loss", "explained_variance"), strict=True):
    axis.plot(range(1, len(history.steps) + 1), [step[f"train/{name}"] for step in history.steps])
    axis.set(xlabel="step", title=name.replace("_", " "))
    axis.grid(alpha=0.3)
axes[1].axhline(0, color="grey", linestyle="--", linewidth=1)
axes[1].text(len(history.steps), -0.45, "dashed: always answering the average", color="grey", fontsize=8, ha="right")
_ = axes[1].set_ylim(bottom=-0.5)

# %% [markdown]
# ## 7. What it has learned
#
# First by eye: the three **principal components** of all tokens of our clips as red, green and blue. Similar
# colours are similar features; between rows colours cannot be compared.

# %%
module.eval()
encoders = {"untrained": untrained, "trained": module.target_encoder}
with torch.no_grad():
    colours = [pca_rgb(net(clips), encoder.grid) for net in encoders.values()]  # (B, 3, T', H', W')
rows = [row[clip].transpose(0, 1) for clip in (0, 1) for row in (first, *colours)]
_ = show(rows, [f"step {t}" for t in range(steps)], [names[0], *encoders, names[1], *encoders], size=1.3)

# %% [markdown]
# In both, the digit stands out and takes its colours along: for that nothing needs to be learned. What *was* learned is to
# predict. Below, the mean absolute error of each predicted token (long masks; white is context or was cut away):

# %%
masks, rows = families["long"], []
with torch.no_grad():
    features = F.layer_norm(module.target_encoder(clips), (64,))
    predicted = predictor(encoder(clips, masks.context), masks.context, masks.targets, mask_index=1)
error = (predicted - gather_tokens(features, masks.targets)).abs().mean(dim=-1)[:, 0]  # (B, Nt)
errors = torch.full((len(clips), 256), torch.nan).scatter_(1, masks.targets[:, 0], error).view(-1, *encoder.grid)
for clip in (0, 1, 2):
    rows += [first[clip].transpose(0, 1), errors[clip]]
axes = show(rows, [f"step {t}" for t in range(steps)], [label for name in names[:3] for label in (name, "error")], 1.3)
for image in (axis.images[0] for axis in axes[1::2].flat):
    image.set_clim(0, 1)
_ = plt.colorbar(axes[1, 0].images[0], ax=list(axes.flat), label="error", shrink=0.4)

# %% [markdown]
# Errors are largest at the digit. The background goes on behind a mask, but nothing in it says where a digit is, or which; the
# scene, which is most of every clip, is what is learned first.
#
# Then by numbers: a linear classifier on a summary of the frozen tokens of a clip. We take three: their **mean** (which
# `jepa validate` reports), their **maximum**, and their mean **change** from one time step to the next. As a control, the
# trained encoder gets *one* frame, which it takes for a tubelet of two equal ones: from this no motion may be read.

# %%
SUMMARIES = {
    "mean": lambda x: x.mean(dim=(1, 2)),
    "maximum": lambda x: x.amax(dim=(1, 2)),
    "change": lambda x: x.diff(dim=1).abs().mean(dim=(1, 2)),
}


@torch.no_grad()
def summaries(net, batches, frames):
    """Features (N, D) of clips by summary; of (B, 3, H, W) if only one of the frames is taken."""
    inputs = (data.normalize(batch.inputs)[:, :, frames].squeeze(2) for batch in batches)
    tokens = [net(x).unflatten(1, (-1, height * width)) for x in inputs]  # (B, T', H'W', D)
    return {name: torch.cat([summary(x) for x in tokens]) for name, summary in SUMMARIES.items()}


splits = [list(data.probe_dataloader("train", 800)), list(data.probe_dataloader("val"))]  # decoded once
labels = [torch.cat([batch.labels for batch in split]) for split in splits]  # (N, 2)
cases = {"untrained": (untrained, slice(None)), "trained": (module.target_encoder, slice(None))}
cases["one frame"] = (module.target_encoder, slice(0, 1))
print(f"{'top-1':9}", *(f"{f'{task}, {name}':>15}" for name in SUMMARIES for task in data.label_names))
for case, (net, frames) in cases.items():
    found, row = [summaries(net, split, frames) for split in splits], []
    for name in SUMMARIES:
        for task in range(2):
            train, held_out = (Features(x[name], y).task(task) for x, y in zip(found, labels, strict=True))
            row.append("-" if train.x.isnan().any() else f"{linear_top1(train, held_out, weight_decay=0.01):.2f}")
    print(f"{case:9}", *(f"{value:>15}" for value in row))

# %% [markdown]
# Chance is 0.10 for the digit and 0.17 for the motion; with 400 clips a difference of 0.05 can be noise.
#
# * **The motion is in the tokens, but not in their mean**: most tokens are background, and their mean says what scene this is.
#   The maximum and the change, which listen to what is unusual, tell it for more than half of the clips; the papers use
#   probes with attention. The control is at chance: it takes more than one frame.
# * **A minute of training has not made it any better.** The untrained encoder does as well: its tubelets cover two frames, and
#   random combinations of two frames know something about motion. The loss went down, and again it alone would have told
#   a success story. The paper trains on two million videos, 90,000 steps of 3,072 clips.
#
# ## 8. Where to go from here
#
# * `jepa fit --config vjepa.yaml` learns the motion of plainer clips in five minutes, `vjepa2.yaml`, with rotary positions,
#   more of it; `configs/papers/` has the published ones;
# * `jepa fit --config attentive_probe.yaml --model.checkpoint last.ckpt` trains probes with attention on the frozen encoder
#   of the last run, for both labels;
# * `jepa fit --config vjepa.yaml --data.root ~/my/videos` takes your own, in whatever FFmpeg decodes;
# * `jepa_lightning/methods/vjepa.py`: section 5 of this page, and a table of what the official code does differently from
#   the papers.
