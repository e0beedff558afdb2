"""A tree of generated texts (`widgets.GenerationTree`) as a picture, and as text."""

import math
from dataclasses import dataclass
from typing import Any

from folovllm_lite.viz.canvas import HATCH, MUTED, WIDTH, Canvas
from folovllm_lite.viz.configs import size
from folovllm_lite.viz.picture import BLUE, GREY, INK, PALE, RED, Picture
from folovllm_lite.viz.words import columns, cut, label, padded, percent, plain

_LIGHT, _LIGHTER, _PALER = "#c3dbea", "#dcebf4", "#f1f4f7"
_ROWS = 6  # branches drawn at most


def removals(fate: Any) -> str:
    """How many tokens each filter removed, in words."""
    if "greedy" in fate.removed:
        return "temperature 0: the likeliest token is taken"
    counts = {name: int(gone.sum()) for name, gone in fate.removed.items()}
    return ", ".join(f"{name} {n:,}" for name, n in counts.items() if n) or "nothing"


def branches(tree: Any) -> list[list[Any]]:
    """Every branch from its fork (the first one from the root) to its end.

    The first child of a node continues its branch, each other child begins one, which
    comes after all that grew from the children before it.
    """
    found = []
    starts = [tree.root]
    while starts:
        run, later = [starts.pop()], []
        while run[-1].children:
            first, *others = run[-1].children.values()
            later.append(others)
            run.append(first)
        found.append(run)
        # The deepest fork comes next; of its children the oldest.
        starts += [child for others in later for child in reversed(others)]
    return found


def draw_generation(tree: Any) -> Picture:
    """The text, what may follow it, the branches of the tree, and the KV cache.

    Percentages are whole, so that the picture is the same on every processor.
    """
    canvas, lines = Canvas(), []
    y = 18.0
    for part in (_draw_text, _draw_candidates, _draw_branches, _draw_cache):
        y = part(tree, canvas, lines, y) + 30
        lines.append("")
    return Picture(canvas.svg(y - 30 + 12), "\n".join(lines[:-1]))


def _title(canvas: Canvas, y: float, title: str, rest: str) -> None:
    canvas.text(10, y, title, 13, bold=True)
    canvas.text(WIDTH - 10, y, rest, 11, MUTED, "end")


def _draw_text(tree: Any, canvas: Canvas, lines: list[str], y: float) -> float:
    """The text in its tokens, the newest in full colour."""
    start, made = len(tree.prompt_token_ids), len(tree.path) - 1
    counts = f"{start} tokens of the prompt, {made} generated"
    if tree.node.ended:
        counts += f"; {label(tree.node.text)} ends it"
    waiting = "".join(label(node.text) for node in tree.waiting)
    if waiting:
        counts += f"; {waiting} is no whole character yet"
    lines += [plain(tree.text), counts]
    _title(canvas, y, "The text", counts)
    y += 26
    rows: list[list[tuple[float, float, str, int]]] = [[]]
    x, size = 10.0, 14
    shown = [(i, piece) for i, piece in enumerate(tree.pieces) if piece]
    for i, piece in shown:
        words = plain(piece)
        while words:
            fit = cut(words, 84)
            part = words if fit == words else fit[:-1]
            words = words[len(part) :]
            width = columns(part) * size * 0.602 + 2
            if x + width > WIDTH - 10:
                rows.append([])
                x = 10.0
            rows[-1].append((x, width, part, i))
            x += width + 1
            if "\n" in piece:
                rows.append([])
                x = 10.0
    if len(rows) > 6:  # the newest lines, and that there are more
        canvas.text(10, y, f"… {len(rows) - 5} lines above", 11, MUTED)
        rows = rows[-5:]
        y += 24
    newest = len(tree.pieces) - 1
    for row in rows:
        for x, width, words, i in row:
            fill = (PALE, _PALER)[i % 2] if i < start else (_LIGHT, _LIGHTER)[i % 2]
            new = i == newest and i >= start
            canvas.box(x, y - 11, width, 22, BLUE if new else fill)
            ink = "white" if new else INK
            # HTML runs spaces together, unless they don't break.
            words = words.replace(" ", "\u00a0")
            canvas.text(x + 1, y, words, size, ink, mono=True, on_box=True)
        y += 24
    return y - 24 + 11


def _draw_candidates(tree: Any, canvas: Canvas, lines: list[str], y: float) -> float:
    """A row for each candidate: what the model gives it, and its chance in the draw."""
    if tree.node.logits is None:
        _title(canvas, y, "What may follow", "the text has ended")
        lines.append("the text has ended: nothing follows")
        return y
    fate, found, V = tree.fate(), tree.candidates(), len(tree.node.logits)
    left = "1 token" if fate.left == 1 else f"{fate.left:,} tokens"
    words = f"{left} of {V:,} can be drawn; removed: {removals(fate)}"
    if fate.left == V:
        words = f"no filter removes any: all {V:,} tokens can be drawn"
    if "greedy" in fate.removed:
        words = f"{removals(fate)} of {V:,}"
    lines.append(f"what may follow: {words}")
    _title(canvas, y, "What may follow", words)
    y += 24
    for x, name in ((196, "the model gives"), (478, "in the draw")):
        canvas.text(x, y, name, 11, MUTED)
    if any(c.token_id in tree.node.children for c in found):
        canvas.dot(14, y, 3.5, BLUE, BLUE)
        canvas.text(24, y, "in the tree already", 11, MUTED)
    for c in found:
        y += 22
        model, chance = round(c.probability, 2), round(c.chance, 2)
        # At temperature 0 the others aren't removed by a filter.
        fate_words = {None: percent(chance), "greedy": "not the likeliest"}.get(
            c.cut_by, f"cut by {c.cut_by}"
        )
        taken = c.token_id in tree.node.children
        name = cut(label(c.text), 15)
        lines.append(
            f"{c.rank:>5}  {padded(name, 15)} {percent(model):>4}   "
            f"{fate_words}{'   taken already' if taken else ''}"
        )
        if taken:
            canvas.dot(14, y, 3.5, BLUE, BLUE)
        canvas.text(52, y, str(c.rank), 11, MUTED, "end")
        canvas.text(62, y, name, 13, mono=True, bold=taken)
        canvas.line([(192, y - 11), (192, y + 11)], GREY)
        canvas.line([(474, y - 11), (474, y + 11)], GREY)
        looks = (HATCH, RED) if c.cut_by else (GREY, None)
        if model:
            canvas.box(192, y - 7, 220 * model, 14, *looks, 0)
        canvas.text(198 + 220 * model, y, percent(model), 11)
        if chance:
            canvas.box(474, y - 7, 220 * chance, 14, BLUE, None, 0)
        ink = RED if c.cut_by else BLUE
        canvas.text(480 + 220 * chance, y, fate_words, 11, ink)
    others = V - len(found)
    if others:
        y += 22
        model = round(max(0.0, 1 - sum(c.probability for c in found)), 2)
        chance = round(max(0.0, 1 - sum(c.chance for c in found)), 2)
        still = fate.left - sum(c.cut_by is None for c in found)
        fate_words = f"{percent(chance)}, {still:,} left" if still else "none left"
        lines.append(f"{others:>6,} others          {percent(model):>4}   {fate_words}")
        canvas.text(62, y, f"{others:,} others", 12, MUTED)
        canvas.text(198, y, percent(model), 11, MUTED)
        canvas.text(480, y, fate_words, 11, MUTED)
    return y + 9


@dataclass
class _Cell:
    """A piece of the tree's width: one depth with labels or dots, or many folded."""

    depths: list[int]
    width: float
    kind: str  # "label", "dot" or "fold"
    x: float = 0.0


def _shown_branches(tree: Any) -> list[list[Any]]:
    """At most `_ROWS` of them: those on the path first, then the oldest, in order."""
    every = branches(tree)
    path = set(tree.path)
    home = {node: i for i, run in enumerate(every) for node in run}
    needed = {i for i, run in enumerate(every) if path & set(run)}
    keep = set(sorted(needed)[:1]) | set(sorted(needed)[-(_ROWS - 1) :])
    for i, run in enumerate(every):
        if len(keep) < _ROWS and (i == 0 or home[run[0].parent] in keep):
            keep.add(i)
    return [run for i, run in enumerate(every) if i in keep]


def _cells(tree: Any, runs: list[list[Any]], room: float) -> list[_Cell]:
    """Place the depths side by side; where they don't fit, labels become dots.

    The first to lose their labels are far from where the tree is; forks, ends and the
    place itself lose theirs last. Four dots in a row fold into one number.
    """
    here, nodes = tree.node.depth, [node for run in runs for node in run]
    depths = {node: node.depth for node in nodes}
    widest = [0.0] * (max(depths.values()) + 1)
    for node, depth in depths.items():
        label_width = columns(cut(label(node.text), 14)) * 7.3 + 8
        widest[depth] = max(widest[depth], label_width)
    special = {0, here} | {depths[run[0]] for run in runs}
    special |= {depths[run[-1]] for run in runs}
    order = [depth for depth in range(len(widest)) if depth not in (0, here)]
    order.sort(key=lambda depth: (depth in special, -abs(depth - here)))
    dotted: set[int] = set()
    while True:
        cells: list[_Cell] = []
        for depth, width in enumerate(widest):
            if depth not in dotted:
                cells.append(_Cell([depth], width, "label"))
            elif cells and cells[-1].kind == "dots":
                cells[-1].depths.append(depth)
            else:
                cells.append(_Cell([depth], 0, "dots"))
        placed: list[_Cell] = []
        for cell in cells:
            if cell.kind == "label":
                placed.append(cell)
            elif len(cell.depths) < 4:
                placed += [_Cell([depth], 8, "dot") for depth in cell.depths]
            else:
                placed.append(_Cell(cell.depths, 30, "fold"))
        x = 10.0
        for cell in placed:
            cell.x = x
            x += cell.width + 7
        if x - 7 <= 10 + room or not order:
            return placed
        dotted.add(order.pop(0))


def _draw_branches(tree: Any, canvas: Canvas, lines: list[str], y: float) -> float:
    """Each branch in a line, hanging below the token that it forks from."""
    every, runs, path = branches(tree), _shown_branches(tree), set(tree.path)
    hidden = len(every) - len(runs)
    count = "1 branch" if len(every) == 1 else f"{len(every)} branches"
    words = f"{count}, {len(tree.nodes) - 1} tokens"
    words += f"; {hidden} not drawn" if hidden else ""
    _title(canvas, y, "The tree", words)
    lines.append(f"the tree: {words}")
    cells = {d: cell for cell in _cells(tree, runs, WIDTH - 20) for d in cell.depths}
    heights = {run[0]: y + 26 + 26 * i for i, run in enumerate(runs)}
    level = {node: heights[run[0]] for run in runs for node in run}
    for run in runs:
        _write_branch(tree, run, lines)
        before = run[0].parent
        folds: dict[int, list[Any]] = {}
        for node in run:
            cell = cells[node.depth]
            if cell.kind == "fold":
                folds.setdefault(id(cell), []).append(node)
            at, ink = level[node], BLUE if node in path else GREY
            if before is not None and before in level:
                other = cells[before.depth]
                right, top = other.x + other.width, level[before]
                if other is cell:
                    pass
                elif top == at:
                    canvas.line([(right, at), (cell.x, at)], ink)
                else:
                    middle = other.x + min(other.width / 2, 14)
                    top += {"label": 10, "fold": 8, "dot": 4}[other.kind]
                    canvas.line([(middle, top), (middle, at), (cell.x, at)], ink)
            if cell.kind == "label":
                _chip(canvas, tree, node, cell, at, node in path)
            elif cell.kind == "dot":
                fill = _LIGHT if node in path else "white"
                canvas.dot(cell.x + 4, at, 4, fill, ink)
            before = node
        for nodes in folds.values():
            cell = cells[nodes[0].depth]
            on = any(node in path for node in nodes)
            ink = BLUE if on else GREY
            canvas.box(cell.x, level[nodes[0]] - 8, 30, 16, "white", ink, 8)
            words = f"+{len(nodes)}"
            middle = cell.x + 15
            canvas.text(middle, level[nodes[0]], words, 10, MUTED, "middle")
    return y + 26 * len(runs) + 10


def _chip(
    canvas: Canvas, tree: Any, node: Any, cell: _Cell, y: float, on: bool
) -> None:
    name = cut(label(node.text), 14)
    width = columns(name) * 7.3 + 8
    if node is tree.node:
        fill, edge, ink = BLUE, BLUE, "white"
    elif on:
        fill, edge, ink = _LIGHT, _LIGHT, INK
    else:
        fill, edge, ink = "white", GREY, MUTED
    canvas.box(cell.x, y - 10, width, 20, fill, edge)
    if width < cell.width and node.children:  # the column is wider than this chip
        ink_ = BLUE if on and node is not tree.node else GREY
        canvas.line([(cell.x + width, y), (cell.x + cell.width, y)], ink_)
    canvas.text(cell.x + 4, y, name, 12, ink, mono=True, on_box=on)


def _write_branch(tree: Any, run: list[Any], lines: list[str]) -> None:
    here = "→" if tree.node in run else " "
    names = " ".join(label(node.text) for node in run)
    if run[0].parent is None:
        lines.append(f"{here} {names}")
    else:
        after = f"{label(run[0].parent.text)} (token {run[0].parent.depth})"
        if run[0].parent is tree.root:
            after = "the prompt"
        lines.append(f"{here} after {after}: {names}")


def _draw_cache(tree: Any, canvas: Canvas, lines: list[str], y: float) -> float:
    """A square for each slot."""
    slots, cache = tree.stored, tree.cache
    per_token = size(cache.nbytes // cache.max_len)
    words = (
        f"{cache.length} of {cache.max_len} slots hold a token of the text, "
        f"{per_token} each; the model has run {tree.ran} tokens"
    )
    _title(canvas, y, "The KV cache", words)
    marks = {"prompt": "■", "generated": "▣", "left behind": "▨", "free": "·"}
    lines.append(f"the KV cache: {words}")
    looks = {
        "prompt": (GREY, GREY),
        "generated": (BLUE, BLUE),
        "left behind": (HATCH, RED),
        "free": ("white", "#cbd2d9"),
    }
    wide = 64
    shown = slots[: wide * 8]  # a longer cache goes on below
    lines += [
        "  " + "".join(marks[slot] for slot in shown[i : i + wide])
        for i in range(0, len(shown), wide)
    ]
    lines.append("  ■ prompt  ▣ generated  ▨ left behind  · free")
    top = y + 18
    pitch = (WIDTH - 20) / wide
    for i, slot in enumerate(shown):
        x, row = 10 + pitch * (i % wide), i // wide
        canvas.box(x, top + 14 * row, pitch - 2, 11, *looks[slot], 1.5)
    y = top + 14 * math.ceil(len(shown) / wide) + 11
    if len(shown) < len(slots):
        more = f"and {len(slots) - len(shown):,} slots more"
        lines.append(f"  {more}")
        canvas.text(WIDTH - 10, y, more, 11, MUTED, "end")
    x = 10
    for slot, name in (
        ("prompt", "the prompt"),
        ("generated", "generated"),
        ("left behind", "left behind: the next tokens are written over it"),
        ("free", "free"),
    ):
        canvas.box(x, y - 5, pitch - 2, 11, *looks[slot], 1.5)
        canvas.text(x + 16, y, name, 11, MUTED)
        x += 32 + len(name) * 5.4
    return y + 8
