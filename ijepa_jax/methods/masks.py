"""Context and target masks, drawn on the host as index arrays of fixed size, so that one compiled program serves every batch.

Multi-block masking (I-JEPA paper, section 3 and appendix A): M target blocks and C context blocks an image, the targets'
patches removed from each context. Three further strategies are those of the paper's ablation (table 6). On a grid of one axis
blocks are spans; on one of three they are blocks of the plane that last for some of the steps of time, by default for all of
them: tubes.
Every draw is a hash of (seed, global example index, purpose): an image's masks depend neither on its batch nor on the worker.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from ijepa_jax.data import counter
from ijepa_jax.settings.axes import by

STRATEGIES = ("multiblock", "random", "block", "rasterized")
MODES = ("subset", "raster", "pad", "reference")
SMALLEST_CONTEXT = 4
_SIDES = {1: [("length", 4, 65_536)], 2: [("rows", 4, 256), ("columns", 4, 256)]}  # of grids, by their number of axes
_SIDES[3] = [("steps", 1, 256), *_SIDES[2]]
_BLOCKS, _SHARED_SIZES, _QUADRANT, _HIDDEN_CELLS, _KEPT_CELLS = range(5)  # what a draw is for: first counter of its hash


class Blocks(NamedTuple):
    """Masks of B images before their contexts are cut to one length; N is the grid's patches, cells are in raster order."""

    available: np.ndarray  # bool [B, C, N]: context blocks without the union of the targets
    union: np.ndarray  # bool [B, N]: patches in any target
    target: np.ndarray  # int32 [B, M, T]: cells of each target, the last one repeated at the tail
    target_length: np.ndarray  # int32 [B, M]


@dataclass(frozen=True)
class MaskSampler:
    """Samples masks for images given by their global indices; a pure function of (settings, seed, index).

    Strategies:
      multiblock: M target blocks and C context blocks, each with a size and a position of its own.
      random: one target of the share `mask_ratio` of the patches, scattered (with `tubes` the same ones at every step of
        time); the context is the rest.
      block: one target block of that share of the grid; the context is the rest.
      rasterized: a random quadrant is the context, the other three are the targets (one axis: a half, and the other).
    Modes of the `multiblock` strategy differ in what becomes of a context longer than K = `context_patches`:
      subset: a uniformly random K of its patches are kept.
      raster: its first K patches in raster order are kept.
      pad: all of it is kept, padded at the tail; K is then the longest context there can be, and `context_patches`, if
        given, the shortest that is accepted.
      reference: the released code's behaviour, with its sizes shared by a batch, one uniform number for both scale and
        aspect, blocks that never reach the last row and column, and the cut of mode raster (to a static K here).
    An image with a context shorter than K is drawn again, up to `tries` times; then its targets share one block, at last
    in the corner opposite to its contexts. Settings that could fall short of K even so raise ValueError at construction.
    """

    grid: tuple[int, ...]  # (rows, columns); of videos (steps, rows, columns), of signals (length,)
    strategy: str = "multiblock"
    mode: str = "subset"
    context_patches: int = 0  # K; 0: every patch that the settings guarantee (multiblock: in mode pad only)
    num_context_blocks: int = 1  # C
    num_targets: int = 4  # M; always 1 for random and block, 3 (one axis: 1) for rasterized
    target_scale: tuple[float, float] = (0.15, 0.2)  # shares of the plane; of the length, where that is the only axis
    target_aspect: tuple[float, float] = (0.75, 1.5)
    target_duration: tuple[float, float] = (1.0, 1.0)  # shares of the steps of time
    context_scale: tuple[float, float] = (0.85, 1.0)
    mask_ratio: float = 0.6  # share that `random` and `block` hide
    keep_rounds_down: bool = False  # whether random's kept patches, not its hidden ones, are rounded, and down (MAE)
    tubes: bool = False  # whether `random` hides the same patches at every step of time
    batch_size: int = 1  # global; images with the same index // batch_size share block sizes in mode reference
    seed: int = 0
    tries: int = 20

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))
        self._check_grid()
        for name, value in self._fixed.items():
            object.__setattr__(self, name, value)
        self._check_settings()
        self._check_context_patches()

    def __call__(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Masks of the images with these global indices, int64 [B], in any order.

        Returns `context` int32 [B, C, K], ascending; `target` int32 [B, M, T], each block in raster order, its last cell
        repeated at the tail; `target_length` int32 [B, M]; and in mode pad alone `context_length` int32 [B, C], with the
        context's last cell repeated at its tail.
        """
        blocks = self.blocks(index, self._shortest)
        kept = self._cut(np.asarray(index), blocks.available)
        masks = {"context": _cells(kept, self.context_length), "target": blocks.target, "target_length": blocks.target_length}
        if self.mode == "pad":
            masks["context_length"] = kept.sum(-1, dtype=np.int32)
        return masks

    def blocks(self, index: np.ndarray, shortest: int) -> Blocks:
        """Masks before the cut, drawn again where a context has fewer than `shortest` patches. index: int64 [B]."""
        index = np.asarray(index)
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ValueError(f"index must be a one-dimensional array of integers, not {index.dtype} {index.shape}")
        if self.strategy == "random":
            return self._random_patches(index)
        corner, size = np.empty((2, len(index), self.num_targets + self.num_context_blocks, len(self._box)), np.int32)
        available = np.empty((len(index), self.num_context_blocks, self._patches), bool)
        union = np.empty((len(index), self._patches), bool)
        short = np.arange(len(index))
        for attempt in range(self.tries + 2):
            corner[short], size[short] = self._draw(index[short], attempt)
            available[short], union[short] = self._cover(corner[short], size[short])
            short = short[available[short].sum(-1).min(-1) < shortest]
            if not short.size:
                break
        target = self._block_cells(corner[:, : self.num_targets], size[:, : self.num_targets])
        return Blocks(available, union, target, size[:, : self.num_targets].prod(-1, dtype=np.int32))

    @cached_property
    def context_length(self) -> int:
        """K, the static length of every context."""
        if self.mode == "pad":
            return self._context_bounds[1]
        return self.context_patches or self._context_bounds[0]

    @cached_property
    def target_length(self) -> int:
        """T, the patches of the largest target that these settings can draw."""
        if self.strategy == "random":
            return self._hidden_patches
        return int(self._target_sizes.prod(-1).max())

    @property
    def _fixed(self) -> dict[str, object]:
        """Settings that the strategy fixes, whatever is given; the context of `block` is all the grid but the target."""
        hidden = (self.mask_ratio, self.mask_ratio)
        return {
            "random": {"num_targets": 1},
            "block": {"num_targets": 1, "target_scale": hidden, "context_scale": (1.0, 1.0)},
            "rasterized": {"num_targets": 1 if len(self.grid) == 1 else 3},
        }.get(self.strategy, {})

    @cached_property
    def _box(self) -> tuple[int, ...]:
        """The grid with two axes or three: a length is a single row."""
        return (1, *self.grid) if len(self.grid) == 1 else self.grid

    @cached_property
    def _plane(self) -> int:
        """Patches of rows and columns."""
        return prod(self._box[-2:])

    @cached_property
    def _patches(self) -> int:
        return prod(self.grid)

    @cached_property
    def _hidden_patches(self) -> int:
        """Patches of a scattered target."""
        cells = self._patches // self._repeats
        hidden = cells - int(cells * (1 - self.mask_ratio)) if self.keep_rounds_down else round(self.mask_ratio * cells)
        return self._repeats * hidden

    @property
    def _repeats(self) -> int:
        """How many steps of time hide the same scattered patches."""
        return self._patches // self._plane if self.tubes else 1

    @property
    def _span(self) -> np.ndarray:
        """The box that blocks can reach: the released code's draw of positions leaves out the last row and column."""
        return np.array(self._box, np.int32) - (self.mode == "reference")

    @property
    def _shortest(self) -> int:
        """The shortest context that is accepted."""
        return max(SMALLEST_CONTEXT, self.context_patches if self.mode == "pad" else self.context_length)

    @cached_property
    def _target_sizes(self) -> np.ndarray:
        if self.strategy == "rasterized":
            return self._quadrants[1].reshape(-1, len(self._box))
        return self._possible_sizes(self.target_scale, self.target_aspect, self.target_duration)

    @cached_property
    def _context_bounds(self) -> tuple[int, int]:
        """Patches of the shortest and the longest context when all targets share one block in the opposite corner."""
        if self.strategy == "random":
            return (self._patches - self.target_length,) * 2
        if self.strategy == "rasterized":
            areas = self._target_sizes.prod(-1)
            return int(areas.min()), int(areas.max())
        context = self._possible_sizes(self.context_scale, (1.0, 1.0), (1.0, 1.0))[:, None]
        overlap = np.maximum(0, context + self._target_sizes - self._span).prod(-1)
        lengths = context.prod(-1) - overlap
        return int(lengths.min()), int(lengths.max())

    @cached_property
    def _quadrants(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners and sizes, int32 [Q, Q, axes], of the targets and the context, by the context's part of the Q = 4 (or 2)."""
        box = np.array(self._box)
        halved = np.arange(len(box)) >= len(box) - min(2, len(self.grid))  # rows and columns, or the length
        half = np.where(halved, box // 2, 0)
        place = np.stack(np.unravel_index(np.arange(2 ** halved.sum()), halved + 1), axis=-1)
        order = (np.arange(len(place))[:, None] + np.arange(1, len(place) + 1)) % len(place)
        corner, size = place * half, np.where(place | ~halved, box - half, half)
        return corner[order].astype(np.int32), size[order].astype(np.int32)

    @cached_property
    def _ranges(self) -> np.ndarray:
        """Lower and upper bounds, [6, M + C], of each block's scale, patches and aspect."""
        target = (*self.target_scale, *self._patch_range(self.target_scale), *self.target_aspect)
        context = (*self.context_scale, *self._patch_range(self.context_scale), 1.0, 1.0)
        return np.array([target] * self.num_targets + [context] * self.num_context_blocks).T

    def _patch_range(self, scale: tuple[float, float]) -> tuple[int, int]:
        """Fewest and most patches of int(N * scale); the upper bound is exclusive unless it is also the lower one."""
        return _whole_range(self._plane, scale)

    def _possible_sizes(
        self, scale: tuple[float, float], aspect: tuple[float, float], duration: tuple[float, float]
    ) -> np.ndarray:
        """Every block size, int [n, axes], that can be drawn."""
        sizes = self._possible_planes(scale, aspect)
        if len(self._box) == 2:
            return sizes
        fewest, most = self._step_range(duration)
        steps = np.arange(fewest, most + 1)
        return np.concatenate([np.repeat(steps, len(sizes))[:, None], np.tile(sizes, (len(steps), 1))], axis=1)

    def _possible_planes(self, scale: tuple[float, float], aspect: tuple[float, float]) -> np.ndarray:
        """Every size in rows and columns, int [n, 2].

        For each number of patches the aspects are split where the rounding of a side changes; any aspect in between
        gives the same size.
        """
        low, high = self._patch_range(scale)
        if self._box[-2] == 1:  # spans
            return np.stack([np.ones(high + 1 - low, int), np.arange(low, high + 1)], axis=-1)
        halves = np.arange(0.5, max(self._box[-2:]) + 1) ** 2
        sizes = []
        for patches in range(low, high + 1):
            ends = np.array(aspect)
            if self.mode == "reference" and scale[0] < scale[1]:  # a number of patches goes with a stretch of aspects
                share = (np.array([patches, patches + 1]) / self._plane - scale[0]) / (scale[1] - scale[0])
                ends = aspect[0] + np.clip(share, 0, 1) * (aspect[1] - aspect[0])
            edges = np.concatenate([halves / patches, patches / halves])
            edges = np.sort(np.concatenate([ends, edges[(edges > ends[0]) & (edges < ends[1])]]))
            sizes.append(self._block_size(patches, (edges[1:] + edges[:-1]) / 2))
        return np.unique(np.concatenate(sizes), axis=0)

    def _block_size(self, patches: np.ndarray, aspect: np.ndarray) -> np.ndarray:
        """Rows and columns, int32 [..., 2], of blocks of about so many patches; a side cut by the grid extends the other."""
        rows, columns = self._span[-2:]
        if rows == 1:  # a span, which has no aspect
            return np.stack([np.ones_like(patches, np.int32), patches.astype(np.int32)], -1)
        height, width = np.rint(np.sqrt(patches * aspect)), np.rint(np.sqrt(patches / aspect))
        if self.mode != "reference":
            width = np.where(height >= rows, np.maximum(width, np.rint(patches / rows)), width)
            height = np.where(width >= columns, np.maximum(height, np.rint(patches / columns)), height)
        return np.clip(np.stack([height, width], -1), 1, (rows, columns)).astype(np.int32)

    def _draw(self, index: np.ndarray, attempt: int) -> tuple[np.ndarray, np.ndarray]:
        """First corners and sizes, int32 [B, M + C, axes], of each image's targets, then contexts."""
        if self.strategy == "rasterized":
            quadrant = counter.bits(self.seed, _QUADRANT, index) >> np.uint64(65 - len(self._quadrants[0]).bit_length())
            return tuple(table[quadrant] for table in self._quadrants)
        block = np.arange(self.num_targets + self.num_context_blocks)
        is_context, uniforms = block >= self.num_targets, np.arange(2 * len(self._box))
        draws = counter.uniform(self.seed, _BLOCKS, attempt, index[:, None, None], block[:, None], uniforms)
        if self.mode == "reference":
            draws[..., :2] = counter.uniform(self.seed, _SHARED_SIZES, index[:, None] // self.batch_size, is_context)[..., None]
        if attempt >= self.tries:
            draws[:, : self.num_targets] = draws[:, :1]
        scale_low, scale_high, fewest, most, aspect_low, aspect_high = self._ranges
        patches = np.floor(self._plane * (scale_low + draws[..., 0] * (scale_high - scale_low)))
        aspect = aspect_low + draws[..., 1] * (aspect_high - aspect_low)
        size = self._block_size(np.clip(patches, fewest, most), aspect)
        position = draws[..., 2:4]
        if len(self._box) == 3:
            size = np.concatenate([self._steps(draws[..., 4], is_context)[..., None], size], axis=-1)
            position = draws[..., [5, 2, 3]]
        if attempt > self.tries:  # targets in one corner of the grid, contexts in the opposite one
            corner = (self._span - size) * ((position[:, :1] < 0.5) ^ is_context[:, None])
        else:
            corner = position * (self._span - size + 1)
        return corner.astype(np.int32), size

    def _cover(self, corner: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches available to each context, bool [B, C, N], and the union of the targets, bool [B, N]."""
        end = corner + size
        first, *others = (
            (np.arange(sides) >= corner[..., axis, None]) & (np.arange(sides) < end[..., axis, None])
            for axis, sides in enumerate(self._box)
        )
        inside = first
        for along in others:
            inside = (inside[..., None] & along[..., None, :]).reshape(*along.shape[:2], inside.shape[-1] * along.shape[-1])
        union = inside[:, : self.num_targets].any(1)
        return inside[:, self.num_targets :] & ~union[:, None], union

    def _block_cells(self, corner: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Cells, int32 [B, M, T], of blocks in raster order, the last one repeated at the tail."""
        place = np.minimum(np.arange(self.target_length, dtype=np.int32), size.prod(-1, dtype=np.int32)[..., None] - 1)
        cells, stride = 0, 1
        for axis in reversed(range(1, len(self._box))):
            place, along = np.divmod(place, size[..., axis, None])
            cells += (corner[..., axis, None] + along) * np.int32(stride)
            stride *= self._box[axis]
        return cells + (corner[..., :1] + place) * np.int32(stride)

    def _random_patches(self, index: np.ndarray) -> Blocks:
        """One target of uniformly random patches, or tubes; the context is the rest."""
        everything = np.ones((len(index), self._patches // self._repeats), bool)
        union = _keep_random(everything, self.target_length // self._repeats, self.seed, _HIDDEN_CELLS, index[:, None])
        union = np.tile(union, (1, self._repeats))
        length = np.full((len(index), 1), self.target_length, np.int32)
        return Blocks(~union[:, None], union, _cells(union[:, None], self.target_length), length)

    def _cut(self, index: np.ndarray, available: np.ndarray) -> np.ndarray:
        """Patches kept of each context, bool [B, C, N]."""
        if self.mode == "pad":
            return available
        if self.mode == "subset":
            context = np.arange(self.num_context_blocks)[:, None]
            return _keep_random(available, self.context_length, self.seed, _KEPT_CELLS, index[:, None, None], context)
        return keep_first(available, self.context_length)

    def _steps(self, u: np.ndarray, is_context: np.ndarray) -> np.ndarray:
        """How many steps blocks last, int32 [B, M + C]: contexts all of them."""
        (fewest, most), (low, high) = self._step_range(self.target_duration), self.target_duration
        steps = np.floor(self.grid[0] * (low + u * (high - low)))
        return np.where(is_context, self.grid[0], np.clip(steps, fewest, most)).astype(np.int32)

    def _step_range(self, duration: tuple[float, float]) -> tuple[int, int]:
        """Fewest and most steps of a block."""
        low, high = _whole_range(self._box[0], duration)
        return max(1, low), max(1, high)

    def _check_grid(self):
        """Raises ValueError for a grid that is too small, or has too many axes."""
        blocks = self.strategy != "random"
        known = {axes: [(name, low if blocks else 1, high) for name, low, high in of] for axes, of in _SIDES.items()}
        sides = known.get(len(self.grid))
        if not sides or not all(low <= side <= high for side, (_, low, high) in zip(self.grid, sides, strict=True)):
            listed = "; ".join(", ".join(f"{name} from {low} to {high}" for name, low, high in of) for of in known.values())
            raise ValueError(f"masks.grid is {self.grid}; it must be of one, two or three axes: {listed}")

    @property
    def _acting(self) -> dict[str, tuple[bool, str]]:
        """Whether settings do anything, and where they do; those that do not must be left as they are."""
        random, block, timed = self.strategy == "random", self.strategy in ("multiblock", "block"), len(self.grid) == 3
        return {
            "target_aspect": (len(self.grid) > 1, "on grids with rows and columns"),
            "target_duration": (timed and block, "on blocks, on grids with steps of time"),
            "mask_ratio": (random or self.strategy == "block", "with the strategies 'random' and 'block'"),
            "keep_rounds_down": (random, "with the strategy 'random'"),
            "tubes": (random and timed, "with the strategy 'random', on grids with steps of time"),
        }

    def _check_settings(self):
        """Raises ValueError for a setting that is wrong by itself."""
        for name, valid in (("strategy", STRATEGIES), ("mode", MODES)):
            if getattr(self, name) not in valid:
                raise ValueError(f"masks.{name} is {getattr(self, name)!r}; valid are {', '.join(valid)}")
        if self.mode == "reference" and len(self.grid) != 2:
            raise ValueError(f"masks.mode 'reference' is for grids of two axes, not {self.grid}: use 'subset'")
        for name, (acts, where) in self._acting.items():
            if not acts and (given := getattr(self, name)) != (left := type(self).__dataclass_fields__[name].default):
                raise ValueError(f"masks.{name} is {given}, and acts only {where}: leave it {left}")
        for name in ("num_context_blocks", "num_targets", "batch_size", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"masks.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"masks.mask_ratio is {self.mask_ratio}; it must be between 0 and 1")
        if self.strategy == "random" and not self._hidden_patches:
            raise ValueError(
                f"masks.mask_ratio is {self.mask_ratio}, which hides none of {self._patches // self._repeats} patches"
            )
        for name in ("target_scale", "context_scale"):
            low, high = getattr(self, name)
            least = 0 if self.strategy == "random" else 1 / self._plane - 1e-9
            if not least < low <= high <= 1:
                one = f"1/{self._plane}, one patch of the grid"
                raise ValueError(f"masks.{name} is ({low}, {high}); it must be (low, high) with {one}, <= low <= high <= 1")
        low, high = self.target_duration
        if not 0 < low <= high <= 1:
            raise ValueError(f"masks.target_duration is ({low}, {high}); it must be (low, high) with 0 < low <= high <= 1")
        low, high = self.target_aspect
        if not 0 < low <= high:
            raise ValueError(f"masks.target_aspect is ({low}, {high}); it must be (low, high) with 0 < low <= high")
        for name, only in (("mode", "subset"), ("num_context_blocks", 1)):
            given = getattr(self, name)
            if self.strategy != "multiblock" and given != only:
                raise ValueError(f"masks.{name} is {given!r}; strategy {self.strategy!r} takes {only!r} (multiblock any)")

    def _check_context_patches(self):
        """Raises ValueError for a context length that cannot always be had."""
        given, most = self.context_patches, self._context_bounds[0]
        grid = f"{by(self.grid)} grid" if len(self.grid) > 1 else f"grid of {self.grid[0]}"
        blamed = f"masks.mask_ratio {self.mask_ratio}"
        if self.strategy in ("multiblock", "rasterized"):
            blamed = f"masks.target_scale {self.target_scale} and masks.context_scale {self.context_scale}"
        least = 1 if self.keep_rounds_down else SMALLEST_CONTEXT  # as MAE has it
        if most < least:
            raise ValueError(
                f"{blamed} can leave {most} context patches on a {grid}; at least {least} are needed: smaller targets or a "
                "larger grid"
            )
        if given == 0 and self.strategy == "multiblock" and self.mode != "pad":
            raise ValueError(
                f"masks.context_patches must be given for mode {self.mode!r}, {SMALLEST_CONTEXT} to {most} on this "
                f"{grid}; 48 on 14x14, 72 on 16x16, 272 on 28x28 are what the reference keeps"
            )
        if given != 0 and not SMALLEST_CONTEXT <= given <= most:
            raise ValueError(
                f"masks.context_patches is {given}; on a {grid} these settings guarantee {most}: "
                f"give {SMALLEST_CONTEXT} to {most}"
            )


def _whole_range(count: int, share: tuple[float, float]) -> tuple[int, int]:
    """Least and greatest int(count * share); the upper bound is exclusive unless it is also the lower one."""
    low = int(count * share[0] + 1e-9)
    return low, max(low, ceil(count * share[1] - 1e-9) - 1)


def keep_first(available: np.ndarray, count: int) -> np.ndarray:
    """The first `count` available cells in raster order. available and result: bool [..., N]."""
    return available & (np.cumsum(available, -1, dtype=np.int32) <= count)


def _keep_random(available: np.ndarray, count: int, seed: int, *counters) -> np.ndarray:
    """A uniformly random `count` of the available cells: those with the smallest hashes. available, result: bool [..., N]."""
    cell = np.arange(available.shape[-1], dtype=np.uint64)
    key = counter.bits(seed, *counters, cell) >> np.uint64(16) << np.uint64(16) | cell  # the cell makes every key unique
    key = np.where(available, key, ~np.uint64(0))
    return key <= np.partition(key, count - 1, -1)[..., count - 1 : count]


def _cells(kept: np.ndarray, length: int) -> np.ndarray:
    """Indices, int32 [B, C, length], of the cells set in bool [B, C, N], the last one repeated at the tail."""
    count = kept.sum(-1)[..., None]
    start = np.cumsum(count).reshape(count.shape) - count
    cell = np.flatnonzero(kept) % kept.shape[-1]
    return cell.astype(np.int32)[start + np.minimum(np.arange(length), count - 1)]
