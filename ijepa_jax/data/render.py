"""Generated scenes: a deterministic CLEVR-like renderer, so that training and probing need no download.

Each scene is 1 to 8 shaded solids on a textured ground and a pure function of (seed, index): grouping, order and batch size
do not change a pixel. It follows CLEVR (Johnson et al. 2017) in content, and its labels stand in for the Clevr/Count and
Clevr/Dist probes of the I-JEPA paper (Assran et al. 2023).

World frame: x to the right, y ahead, z up; the camera is `height` above the origin, pitched down. A pixel's ray is
(x, cos + y sin, -sin + y cos) with (x, y) in focal lengths, so that the ray parameter is the depth along the optical axis.
Speed comes from doing per-pixel work in a window around each solid only, from planes having an inverse depth that is linear
in (x, y), and from painting in an order that is exact, which spares a depth buffer.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ijepa_jax.data import counter

SHAPES = ("sphere", "cube", "cylinder")
SEGMENTS = ("background", *SHAPES)
COLOURS = ("grey", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
_RGB = bytes.fromhex("7d7d7d c8262a 2a4ed6 248a2c 965a24 9434c8 2ccad0 f6de34")
PALETTE = np.frombuffer(_RGB, np.uint8).reshape(len(COLOURS), 3).astype(np.float32)
MAX_OBJECTS = 8

_STREAM = 0x5CE9E5  # keeps these draws apart from every other user of the same seed
_TRIES = 24  # candidate positions per object
_CHUNK = 2**20  # pixels per pass: bounds the memory, and is enough to make the cost of a call small
_FRAME = np.float32(0.455)  # tangent of half the field of view
_FAR = np.float32(1e3)  # an inverse depth no visible plane has
_WIDTH = np.array([1.0, 0.8, 0.87])  # half-side or radius per unit of size: equal volumes; each solid is twice that high
_FOOT = np.array([1.0, 0.8 * 2**0.5, 0.87])  # radius of the disc that bounds the solid seen from above, per unit of size
_SHADE = np.array([1.0, 0.92, 0.87])  # half-width of its shadow, per unit of size


class Scenes(NamedTuple):
    """A batch of n rendered scenes; object k (0-based, at most 8) has id k + 1, and object 0 is the largest.

    images: uint8 [n, height, width, 3]. objects: uint8 [n, height, width], the id of the object seen
    at a pixel, 0 where none is.
    shapes, colours: int8 [n, 8], indices into SHAPES and COLOURS, -1 where there is no object.
    distances: float32 [n, 8], from the camera to the object's centre in world units, infinity where there is no object.
    labels: "count" int32 in 1..8, "distance" float32 of the nearest object, "shape" and "colour" int32 of the largest; all [n].
    """

    images: np.ndarray
    objects: np.ndarray
    shapes: np.ndarray
    colours: np.ndarray
    distances: np.ndarray
    labels: dict[str, np.ndarray]


class _View(NamedTuple):
    """Camera and light, one row per scene: height, cos and sin of the pitch, y of the wall [n], unit light direction [n, 3]."""

    height: np.ndarray
    cos: np.ndarray
    sin: np.ndarray
    wall: np.ndarray
    light: np.ndarray


class _Solids(NamedTuple):
    """Objects [n, 8], or [m] once selected: position on the ground, size, turn about the vertical, indices and flags."""

    present: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    turn: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    shiny: np.ndarray


def render(seed: int, index: np.ndarray, size: int | tuple[int, int] = 64) -> Scenes:
    """Renders scenes `index` (non-negative integers [n]) of the collection `seed` at size x size, or (height, width), pixels.

    What a square image shows is in the middle of one that is not, which shows more along its longer side.

    Batches of 64 and more are several times cheaper per image than single scenes.
    Raises ValueError for a negative or non-integer index, or a size under 16.
    """
    index = np.asarray(index)
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer) or (index < 0).any():
        raise ValueError(f"index must be a vector of non-negative integers, got {index.dtype} {index.shape}")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    step = max(_CHUNK // (height * width), 1)
    parts = [_render_chunk(seed, index[start : start + step], height, width) for start in range(0, max(len(index), 1), step)]
    arrays = [np.concatenate(field) for field in zip(*(part[:5] for part in parts), strict=True)]
    labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels}
    return Scenes(*arrays, labels)


def segments(scenes: Scenes) -> np.ndarray:
    """The shape of the object seen at each pixel, uint8 [n, height, width]: indices into SEGMENTS."""
    kinds = np.pad(scenes.shapes + 1, ((0, 0), (1, 0))).astype(np.uint8)  # by object id; 0 is no object
    return np.take_along_axis(kinds[:, None], scenes.objects.astype(np.intp), 2)


def _render_chunk(seed: int, index: np.ndarray, height: int, width: int) -> Scenes:
    count, largest = _draw(seed, index, 1, 2)
    count = 1 + np.floor(MAX_OBJECTS * count).astype(np.int32)
    view = _view(seed, index, count)
    solids = _solids(seed, index, view, count, 0.95 + 0.2 * largest)
    canvas = _ground(seed, index, view, solids, height, width)
    objects = np.zeros((len(index), height, width), np.uint8)
    _paint(canvas, objects, view, solids)
    images = np.empty((*objects.shape, 3), np.uint8)
    np.clip(canvas, 0, 255, out=canvas)
    for channel in range(3):
        images[..., channel] = canvas[:, channel]
    absent = ~solids.present
    rise = view.height[:, None] - _WIDTH[solids.shape] * solids.size
    distances = np.sqrt(solids.x**2 + solids.y**2 + rise**2).astype(np.float32)
    distances[absent] = np.inf
    labels = {
        "count": count,
        "distance": distances.min(1),
        "shape": solids.shape[:, 0].astype(np.int32),
        "colour": solids.colour[:, 0].astype(np.int32),
    }
    shapes = np.where(absent, -1, solids.shape).astype(np.int8)
    colours = np.where(absent, -1, solids.colour).astype(np.int8)
    return Scenes(images, objects, shapes, colours, distances, labels)


def _draw(seed: int, index: np.ndarray, purpose: int, *shape: int) -> list[np.ndarray]:
    """Uniform numbers in [0, 1): shape[-1] arrays [n, *shape[:-1]]."""
    counters = [np.arange(extent).reshape(extent, *[1] * (len(shape) - 1 - axis)) for axis, extent in enumerate(shape)]
    draws = counter.uniform(seed, _STREAM, purpose, index.reshape(-1, *[1] * len(shape)), *counters)
    return list(np.moveaxis(draws, -1, 0))


def _view(seed: int, index: np.ndarray, count: np.ndarray) -> _View:
    pitch, away, wall, azimuth, elevation = _draw(seed, index, 0, 5)
    nearest = 5 + 0.33 * (count - 1)  # many objects need room; this also keeps count from giving the distance away
    pitch = np.radians(28 + 11 * pitch)
    cos, sin = np.cos(pitch), np.sin(pitch)
    height = (nearest + (11 - nearest) * away) * sin
    foot = (0.66 + 0.16 * wall) * _FRAME  # where the wall meets the ground, in the image
    wall = height * (cos + foot * sin) / (sin - foot * cos)
    azimuth, elevation = np.radians(-90 + 110 * (2 * azimuth - 1)), np.radians(38 + 24 * elevation)
    light = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    return _View(height, cos, sin, wall, np.stack(light, 1))


def _solids(seed: int, index: np.ndarray, view: _View, count: np.ndarray, largest: np.ndarray) -> _Solids:
    size, turn, shape, colour, shiny = _draw(seed, index, 2, MAX_OBJECTS, 5)
    present = np.arange(MAX_OBJECTS) < count[:, None]
    size = 0.55 + 0.25 * size  # relative to the largest
    size[:, 0] = 1
    size *= largest[:, None]
    shape, colour = (shape * len(SHAPES)).astype(np.int64), (colour * len(COLOURS)).astype(np.int64)
    x, y, size = _place(_draw(seed, index, 3, MAX_OBJECTS, _TRIES, 2), view, size, shape)
    return _Solids(present, x, y, size, turn * (np.pi / 2), shape, colour, shiny < 0.5)


def _place(draws: list[np.ndarray], view: _View, size: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, ...]:
    """Places objects one by one, each at the first of its candidates that leaves all of them apart and in sight.

    Where no candidate does, the best one is taken and the object made small enough not to touch another, within reason.
    draws: two arrays [n, 8, tries]. Returns x, y and size [n, 8].
    """
    across, along = draws
    x, y, size = np.zeros(size.shape), np.zeros(size.shape), size.copy()
    seen = np.zeros((3, *size.shape))  # centre and radius in the image, in focal lengths
    height, cos, sin = (field[:, None] for field in view[:3])
    rows = np.arange(len(size))
    for slot in range(MAX_OBJECTS):
        radius, foot, half = size[:, slot, None], _FOOT[shape[:, slot, None]], _WIDTH[shape[:, slot, None]]
        up = _FRAME * (1.17 * along[:, slot] - 0.72)
        depth = (height - half * radius) / (sin - up * cos)
        extent = radius / depth
        right = (2 * across[:, slot] - 1) * (_FRAME * 0.98 - extent)
        px, py = right * depth, (cos + up * sin) * depth
        slack = np.minimum(up - extent + _FRAME, 0.56 * _FRAME - extent)  # within the frame, and not filling it
        room = np.full(px.shape, np.inf)
        for other in range(slot):
            column = slice(other, other + 1)
            gap = np.hypot(px - x[:, column], py - y[:, column]) - _FOOT[shape[:, column]] * size[:, column]
            apart = np.hypot(right - seen[0, :, column], up - seen[1, :, column])
            large, small = np.maximum(extent, seen[2, :, column]), np.minimum(extent, seen[2, :, column])
            room = np.minimum(room, gap / foot * 0.97)
            slack = np.minimum(slack, np.minimum(apart / (large + 0.5 * small), gap / (foot * radius * 1.03)) - 1)
        best = np.where((slack >= 0).any(1), (slack >= 0).argmax(1), slack.argmax(1))
        x[:, slot], y[:, slot] = px[rows, best], py[rows, best]
        size[:, slot] = np.minimum(size[:, slot], np.maximum(room[rows, best], 0.2))
        seen[:, :, slot] = right[rows, best], up[rows, best], extent[rows, best]
    return x, y, size


def _pixels(start: np.ndarray | float, count: int, size: int) -> np.ndarray:
    """Coordinates, in focal lengths from the centre, of `count` pixels from `start` of a frame of `size` on: [..., count]."""
    return ((np.asarray(start)[..., None] + np.arange(count) + 0.5) * 2 / size - 1).astype(np.float32) * _FRAME


def _ground(seed: int, index: np.ndarray, view: _View, solids: _Solids, height: int, width: int) -> np.ndarray:
    """Ground, wall and shadows, float32 [n, 3, height, width] in 0..255."""
    size = min(height, width)
    x, y = _pixels((size - width) / 2, width, size), -_pixels((size - height) / 2, height, size)
    ahead, down = view.cos[:, None] + y * view.sin[:, None], view.sin[:, None] - y * view.cos[:, None]
    on_wall = ahead / view.wall[:, None] > down / view.height[:, None]
    depth = 1 / np.maximum(ahead / view.wall[:, None], down / view.height[:, None])  # [n, rows]
    ahead = ahead * depth
    light = _shadows(view, solids, depth, ahead, x)
    texture = _texture(seed, index, depth, ahead, x)
    slope, fall, contrast, bright, dim, *tints = (draw[:, None] for draw in _draw(seed, index, 5, 11))
    strength = np.where(on_wall, 0.15, 1) * (0.03 + 0.09 * contrast) * np.clip(1.6 - 0.05 * depth, 0.2, 1)
    texture *= _column(strength)
    texture += 1
    light *= _column(1 - (0.15 + 0.15 * fall) * y / _FRAME * np.where(on_wall, 1.3, 1))  # the lamp is nearer the camera
    texture *= light
    texture *= (1 + 0.4 * (slope - 0.5) * x / _FRAME).astype(np.float32)[:, None]
    ground = (140 + 40 * bright) * (0.94 + 0.12 * np.hstack(tints[:3]))
    wall = (120 + 50 * dim) * (0.94 + 0.12 * np.hstack(tints[3:]))
    colour = np.where(on_wall[:, None], wall[..., None], ground[..., None]).astype(np.float32)  # [n, 3, rows]
    return colour[..., None] * texture[:, None]


def _column(rows: np.ndarray) -> np.ndarray:
    """Numbers of each row [n, rows] shaped to meet pixels [n, rows, columns], in float32."""
    return rows.astype(np.float32)[..., None]


def _texture(seed: int, index: np.ndarray, depth: np.ndarray, ahead: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A pattern in -1..1, [n, rows, columns]: two crossed waves and their product, from soft swells to hard checks."""
    waves = []
    angle, period, first, second, sharp, kind, *phases = _draw(seed, index, 4, 8)
    for turn, phase in zip((0, np.pi / 2), phases, strict=True):
        fx, fy = (trig(2 * np.pi * angle + turn) / (0.9 + 2.2 * period) for trig in (np.cos, np.sin))
        cycles = _column(fx[:, None] * depth) * x
        cycles += _column(fy[:, None] * ahead + phase[:, None])
        cycles -= np.rint(cycles)
        waves.append(cycles * (8 - 16 * np.abs(cycles)))  # parabolas in place of a sine: exact arithmetic and no call
    checks = kind < 0.5
    weights = [np.where(checks, 0, first), np.where(checks, 0, second), np.where(checks, 1, 0.4)]
    a, b, c = (np.float32(weight * (1 + 3 * sharp))[:, None, None] for weight in weights)
    pattern = waves[0] * waves[1]
    pattern *= c
    pattern += a * waves[0]
    pattern += b * waves[1]
    return np.clip(pattern, -1, 1, out=pattern)


def _shadows(view: _View, solids: _Solids, depth: np.ndarray, ahead: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The share of light that reaches the ground, [n, rows, columns]: a soft capsule per object.

    The capsule is exactly the shadow of an upright cylinder, and has the length and width of a sphere's.
    """
    light = np.ones((*depth.shape, len(x)), np.float32)
    for slot in range(MAX_OBJECTS):
        (at,) = np.nonzero(solids.present[:, slot])
        if len(at):
            light[at] *= _shadow(_pick(view, at), _pick(solids, at, slot), depth[at], ahead[at], x)
    return light


def _shadow(view: _View, solids: _Solids, depth: np.ndarray, ahead: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The share of light one object of each of m scenes lets through, [m, rows, columns]."""
    ball, radius = solids.shape == 0, solids.size * _SHADE[solids.shape]
    tangent, secant = np.hypot(view.light[:, 0], view.light[:, 1]) / view.light[:, 2], 1 / view.light[:, 2]
    start, stop = np.where(ball, tangent - secant + 1, 0), np.where(ball, tangent + secant - 1, 2 * tangent)  # in radii
    east, north = (-(view.light[:, axis] / view.light[:, 2] / tangent / radius)[:, None] for axis in (0, 1))
    right, on = -solids.x[:, None], ahead - solids.y[:, None]
    along = _column(east * depth) * x
    along += _column(east * right + north * on - (start + stop)[:, None] / 2)
    np.abs(along, out=along)
    along -= _column((stop - start)[:, None] / 2)
    np.maximum(along, 0, out=along)
    across = _column(north * depth) * x
    across += _column(north * right - east * on)
    along *= along
    across *= across
    along += across  # squared distance from the capsule's axis, in radii
    np.subtract(np.float32(1.5), along, out=along)
    along *= np.float32(0.9)
    np.clip(along, 0, 1, out=along)
    along *= along * np.float32(-0.6)
    along += 1
    return along


def _paint(canvas: np.ndarray, objects: np.ndarray, view: _View, solids: _Solids) -> None:
    """Paints the solids into canvas [n, 3, height, width] and their ids into objects [n, height, width], from far to near.

    The feet of two objects are disjoint discs, and their radical axis parts them with the camera on the side of the one of
    smaller power (x^2 + y^2 - foot^2): painting by falling power is exact.
    """
    size = min(canvas.shape[2:])
    above, left = ((length - size) / 2 for length in canvas.shape[2:])
    power = solids.x**2 + solids.y**2 - (_FOOT[solids.shape] * solids.size) ** 2
    rank = np.argsort(np.argsort(np.where(solids.present, -power, np.inf), 1, kind="stable"), 1, kind="stable")
    scene, slot = np.nonzero(solids.present)
    order = np.argsort(rank[scene, slot], kind="stable")
    scene, slot = scene[order], slot[order]
    side, row, column = _windows(view, solids, scene, slot, canvas.shape[2:])
    layers = []
    for width in np.unique(side):
        (at,) = np.nonzero(side == width)
        s, k, r, c = scene[at], slot[at], row[at], column[at]
        layer = _layer(
            _pick(view, s), _pick(solids, s, k), -_pixels(r - above, width, size), _pixels(c - left, width, size), size
        )
        layers.append((s, k, r, c, *layer, np.searchsorted(rank[s, k], np.arange(MAX_OBJECTS + 1))))
    for turn in range(MAX_OBJECTS):  # a scene has one object of each rank, so no two windows of a turn meet
        for *layer, bounds in layers:
            if bounds[turn] < bounds[turn + 1]:
                _blend(canvas, objects, *(field[bounds[turn] : bounds[turn + 1]] for field in layer))


def _blend(
    canvas: np.ndarray,
    objects: np.ndarray,
    scene: np.ndarray,
    slot: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    paint: np.ndarray,
    cover: np.ndarray,
) -> None:
    """Lays m windows of one width, of different scenes, over canvas and objects."""
    window = cover.shape[1:]
    colours = sliding_window_view(canvas, window, (2, 3), writeable=True)
    ids = sliding_window_view(objects, window, (1, 2), writeable=True)
    below = colours[scene, :, row, column]
    below *= (1 - cover)[:, None]
    below += paint
    colours[scene, :, row, column] = below
    mine = (slot + 1).astype(np.uint8)[:, None, None]
    ids[scene, row, column] = np.where(cover > 0.5, mine, ids[scene, row, column])


def _pick(fields: tuple, *at: np.ndarray) -> tuple:
    """The same named tuple with each array indexed; real numbers become float32 for the work on pixels."""
    picked = (field[at] for field in fields)
    return type(fields)(*(field.astype(np.float32) if field.dtype == np.float64 else field for field in picked))


def _windows(
    view: _View, solids: _Solids, scene: np.ndarray, slot: np.ndarray, shape_hw: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Side, first row and first column [m] of a square window that holds each object, inside the image."""
    shape = solids.shape[scene, slot]
    half, foot = (factor[shape] * solids.size[scene, slot] for factor in (_WIDTH, _FOOT))
    cos, sin, x, y = view.cos[scene], view.sin[scene], solids.x[scene, slot], solids.y[scene, slot]
    rise = half - view.height[scene]
    depth = y * cos - rise * sin
    tall = np.where(shape == 0, half, half * cos + foot * sin)
    (height, width), size = shape_hw, min(shape_hw)
    scale = size / (2 * _FRAME)
    extent = scale * np.maximum(foot, tall) / (depth - foot) * 1.02 + 1
    step = max(size // 16, 2)
    window = np.minimum(np.ceil(2 * extent / step).astype(np.int64) * step, size)
    row = np.rint(height / 2 - scale * (y * sin + rise * cos) / depth - window / 2).astype(np.int64)
    column = np.rint(width / 2 + scale * x / depth - window / 2).astype(np.int64)
    return window, np.clip(row, 0, height - window), np.clip(column, 0, width - window)


def _layer(view: _View, solids: _Solids, y: np.ndarray, x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Shades m solids over their windows (y, x: [m, w]): colour times coverage [m, 3, w, w], and coverage [m, w, w]."""
    paint = np.empty((len(y), 3, y.shape[1], x.shape[1]), np.float32)
    cover = np.empty((len(y), y.shape[1], x.shape[1]), np.float32)
    for shape, trace in enumerate((_sphere, _cube, _cylinder)):
        (at,) = np.nonzero(solids.shape == shape)
        if len(at):
            seen, lit = _pick(view, at), _pick(solids, at)
            cover[at], normal, lift = trace(seen, lit, y[at], x[at], size)
            paint[at] = _shade(seen, lit, normal, lift) * cover[at][:, None]
    return paint, cover


def _rays(view: _View, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The y and z parts of the rays of m windows' rows, [m, w, 1]; the x part is x itself."""
    cos, sin = view.cos[:, None], view.sin[:, None]
    return _column(cos + y * sin), _column(y * cos - sin)


def _wide(*fields: np.ndarray) -> list[np.ndarray]:
    """Per-object numbers [m] shaped to meet windows [m, w, w]."""
    return [field.astype(np.float32)[:, None, None] for field in fields]


def _sphere(view: _View, solids: _Solids, y: np.ndarray, x: np.ndarray, size: int) -> tuple:
    """Coverage, unit normal (x, y, z) and height above the ground in 0..1 of m spheres, each [m, w, w]."""
    radius = solids.size
    cx, cy, cz, r = _wide(solids.x, solids.y, radius - view.height, radius)
    dy, dz = _rays(view, y)
    dx = x[:, None, :]
    square = dx * dx + (dy * dy + dz * dz)
    along = dx * cx + (dy * cy + dz * cz)
    depth = along / square
    along *= depth
    chord = (r * r - (cx * cx + cy * cy + cz * cz)) + along  # squared half chord of the ray in the ball
    scale = size / (2 * _FRAME) / (cy * view.cos[:, None, None] - cz * view.sin[:, None, None])
    cover = np.sqrt(np.maximum(r * r - chord, 0))
    cover = _coverage(r - cover, scale)
    np.maximum(chord, 0, out=chord)
    chord /= square
    depth -= np.sqrt(chord, out=chord)
    depth /= r
    nz = depth * dz
    nz -= cz / r
    return cover, (depth * dx - cx / r, depth * dy - cy / r, nz), 0.5 + 0.5 * nz


def _coverage(inside: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The share of a pixel within an edge `inside` world units away, with `scale` pixels to the unit; works in place."""
    inside *= scale
    inside += np.float32(0.5)
    return np.clip(inside, 0, 1, out=inside)


def _cylinder(view: _View, solids: _Solids, y: np.ndarray, x: np.ndarray, size: int) -> tuple:
    """As _sphere, for m upright cylinders."""
    radius = solids.size * np.float32(_WIDTH[2])
    cx, cy, r, height, cos, sin = _wide(solids.x, solids.y, radius, view.height, view.cos, view.sin)
    dy, dz = _rays(view, y)
    dx = x[:, None, :]
    square = dx * dx + dy * dy
    beyond = dx * cx + dy * cy
    depth = beyond / square
    chord = beyond * depth
    chord += r * r - (cx * cx + cy * cy)
    inside = r - np.sqrt(np.maximum(r * r - chord, 0))
    np.maximum(chord, 0, out=chord)
    chord /= square
    depth -= np.sqrt(chord, out=chord)
    z = depth * dz
    z += height
    scale = size / (2 * _FRAME) / (cy * cos + (height - r) * sin)
    to_lid = (2 * r - height) / dz
    rim = dx * to_lid - cx
    rim *= rim
    rim += (dy * to_lid - cy) ** 2
    np.sqrt(rim, out=rim)
    np.subtract(r, rim, out=rim)
    rim *= sin
    beyond *= to_lid  # only the part of the rim beyond the points of tangency is on the silhouette
    np.minimum(inside, np.where(beyond > cx * cx + cy * cy - r * r, rim, inside), out=inside)
    np.minimum(inside, z * cos, out=inside)
    cover = _coverage(inside, scale)
    lid = _coverage(z - 2 * r, scale * cos)
    side = (1 - lid) / r
    normal = (depth * dx - cx) * side, (depth * dy - cy) * side, lid
    z /= 2 * r
    return cover, normal, np.minimum(z, 1, out=z)


def _cube(view: _View, solids: _Solids, y: np.ndarray, x: np.ndarray, size: int) -> tuple:
    """As _sphere, for m cubes turned about the vertical.

    A plane's inverse depth is linear in the image. A ray enters the cube at the least inverse depth of the near faces and
    leaves at the greatest of the far ones, so each pair (near i, far j) gives one straight edge of the silhouette.
    """
    near, far, away, normals = _planes(view, solids)
    pixel = 2 * _FRAME / size
    dx, dy = x[:, None, :], y[:, :, None]

    def plane(coefficients: np.ndarray) -> np.ndarray:  # [m, (a, b, c)]
        a, b, c = _wide(*coefficients.T)
        return a * dx + (b * dy + c)

    def edge(first: np.ndarray, second: np.ndarray, soft: float = 1.0) -> np.ndarray:
        """How far first's inverse depth is over second's, in units of `soft` pixels across the line where they are equal."""
        over = first - second
        slope = np.maximum(np.hypot(over[:, 0], over[:, 1]), np.float32(1e-6)) * np.float32(pixel * soft)
        return plane(over / slope[:, None])

    edges = []
    for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
        # between the two planes of axis i the camera sees neither, and a ray may leave through either
        blind = (near[:, i, 2] == _FAR)[:, None]
        edges.append(edge(np.where(blind, near[:, j], near[:, i]), np.where(blind, away[:, i], far[:, j])))
    cover = _coverage(_least(edges), np.float32(1))
    lid = _coverage(_least([edge(near[:, 0], near[:, 2], 1.4), edge(near[:, 1], near[:, 2], 1.4)]), np.float32(1))
    first = _coverage(edge(near[:, 1], near[:, 0], 1.4), np.float32(1))
    second = 1 - lid
    first *= second
    second -= first
    with np.errstate(divide="ignore"):  # a ray along the planes meets none: infinitely far, outside the silhouette
        z = _rays(view, y)[1] / _least([plane(near[:, i]) for i in range(3)])
    z += view.height[:, None, None]
    z /= (2 * _WIDTH[1] * solids.size).astype(np.float32)[:, None, None]
    ax, ay, bx, by = _wide(*normals)
    return cover, (first * ax + second * bx, first * ay + second * by, lid), np.clip(z, 0, 1, out=z)


def _least(arrays: list[np.ndarray]) -> np.ndarray:
    for array in arrays[1:]:
        np.minimum(arrays[0], array, out=arrays[0])
    return arrays[0]


def _planes(view: _View, solids: _Solids) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """The planes of m cubes as inverse depths a x + b y + c: near, far and `away`, each [m, axis, (a, b, c)].

    Axes 0 and 1 are horizontal, 2 is vertical. Where the camera is between the planes of an axis, near is out of reach and
    far and away are the two planes. Also returns the near faces' normals: x and y of axis 0, x and y of axis 1.
    """
    half = solids.size * np.float32(_WIDTH[1])
    cos, sin = np.cos(solids.turn), np.sin(solids.turn)
    near, far, away = (np.zeros((len(half), 3, 3), np.float32) for _ in range(3))
    normals = []
    for axis, (ex, ey) in enumerate(((cos, sin), (-sin, cos))):
        ray = np.stack([ex, view.sin * ey, view.cos * ey], 1)
        camera = -(solids.x * ex + solids.y * ey)
        side = np.where(camera > 0, np.float32(1), np.float32(-1))
        blind = np.abs(camera) < half * np.float32(1.0001)
        far[:, axis] = ray / (-side * half - camera)[:, None]
        away[:, axis] = ray / np.where(camera == side * half, np.float32(1e-6), side * half - camera)[:, None]
        near[:, axis] = np.where(blind[:, None], np.float32([0, 0, _FAR]), away[:, axis])
        normals += [side * ex, side * ey]
    ray = np.stack([np.zeros_like(cos), view.cos, -view.sin], 1)
    near[:, 2], far[:, 2] = ray / (2 * half - view.height)[:, None], ray / -view.height[:, None]
    return near, far, away, normals


def _shade(view: _View, solids: _Solids, normal: tuple[np.ndarray, ...], lift: np.ndarray) -> np.ndarray:
    """Colour in 0..255, [m, 3, w, w]: sky light, dimmer near the ground; a sun; and a highlight on shiny solids."""
    nx, ny, nz = normal
    eye = np.stack([-solids.x, -solids.y, view.height - solids.size], 1)
    half = view.light + eye / np.sqrt((eye * eye).sum(1, keepdims=True))
    half /= np.sqrt((half * half).sum(1, keepdims=True))
    sun, gloss = (_wide(*vector.T) for vector in (view.light, half))
    light, shine = (nx * a + ny * b + nz * c for a, b, c in (sun, gloss))
    np.maximum(light, 0, out=light)
    light *= np.float32(0.68)
    sky = np.float32(0.13) * nz
    sky += np.float32(0.42)
    lift = lift * np.float32(0.35)
    lift += np.float32(0.65)
    sky *= lift
    light += sky
    np.clip(shine, 0, 1, out=shine)
    for _ in range(5):
        shine *= shine
    shine *= np.where(solids.shiny, np.float32(190), np.float32(12))[:, None, None]
    paint = PALETTE[solids.colour][:, :, None, None] * light[:, None]
    paint += shine[:, None]
    return paint
