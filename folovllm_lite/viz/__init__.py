"""Pictures of what the engine does: data first, then a figure and the same as text.

A figure is an SVG string that is the same on every run, so that notebooks can be
compared; its letters stay letters, and the browser finds a font for Chinese. What is
drawn comes from plain functions, which are tested. One file for each notebook; all of
it is at hand as `viz.<name>`.
"""

from folovllm_lite.viz.configs import draw_memory, size
from folovllm_lite.viz.course import PARTS, Part, course_map, my_map
from folovllm_lite.viz.flash import draw_pieces, draw_tiles, draw_traffic, tile_kinds
from folovllm_lite.viz.generation import draw_loop, loop_passes
from folovllm_lite.viz.gptq import draw_hessian, draw_levels
from folovllm_lite.viz.kv_cache import draw_passes, draw_roofline
from folovllm_lite.viz.model_loader import draw_file
from folovllm_lite.viz.paged_kv_cache import draw_slots, draw_waste
from folovllm_lite.viz.picture import BLUE, GREY, INK, PALE, RED, Picture
from folovllm_lite.viz.prefix_cache import PrefixBlock, draw_prefixes, prefix_tree
from folovllm_lite.viz.processor import draw_token_bytes, token_bytes
from folovllm_lite.viz.request import EVENTS, sequence_states
from folovllm_lite.viz.sampler import Candidate, draw_next_tokens, next_tokens
from folovllm_lite.viz.sampling_params import FIELD_GROUPS, sampling_fields
from folovllm_lite.viz.transformer import (
    attention_links,
    draw_attention,
    draw_groups,
    draw_masking,
    draw_rotations,
    draw_transformer,
)
from folovllm_lite.viz.tree import draw_generation

__all__ = [
    "BLUE",
    "Candidate",
    "EVENTS",
    "FIELD_GROUPS",
    "GREY",
    "INK",
    "PALE",
    "PARTS",
    "Part",
    "Picture",
    "PrefixBlock",
    "RED",
    "attention_links",
    "course_map",
    "draw_attention",
    "draw_file",
    "draw_generation",
    "draw_groups",
    "draw_hessian",
    "draw_levels",
    "draw_loop",
    "draw_masking",
    "draw_memory",
    "draw_next_tokens",
    "draw_passes",
    "draw_pieces",
    "draw_prefixes",
    "draw_roofline",
    "draw_rotations",
    "draw_slots",
    "draw_tiles",
    "draw_token_bytes",
    "draw_traffic",
    "draw_transformer",
    "draw_waste",
    "loop_passes",
    "my_map",
    "next_tokens",
    "prefix_tree",
    "sampling_fields",
    "sequence_states",
    "size",
    "tile_kinds",
    "token_bytes",
]
