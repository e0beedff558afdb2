"""Widgets: dials to turn over plain functions, which are tested without a browser.

What the sampling explorer shows is computed by `explore` and drawn by
`draw_exploration`; the generation explorer stands on `GenerationTree` and
`draw_generation`. The two classes with dials only hold the dials. Where no kernel
answers, on the repository's page for instance, a widget is the picture of its state.
"""

from folovllm_lite.viz.tree import branches, draw_generation, removals
from folovllm_lite.viz.words import label
from folovllm_lite.widgets.blocks import (
    BlockExplorer,
    PoolStep,
    draw_blocks,
    watch_blocks,
)
from folovllm_lite.widgets.generation import GenerationExplorer
from folovllm_lite.widgets.pool_picture import (
    PoolView,
    draw_pool,
    pool_text,
    view_pool,
)
from folovllm_lite.widgets.sampling import (
    NEXT_TOKENS,
    Context,
    Exploration,
    SamplingExplorer,
    Step,
    draw_exploration,
    draw_tokens,
    explore,
    load_contexts,
    sentence,
    steps_of,
)
from folovllm_lite.widgets.schedule import (
    Job,
    Schedule,
    SchedulerExplorer,
    StepRecord,
    run_schedule,
    run_static,
)
from folovllm_lite.widgets.schedule_picture import draw_schedule, schedule_text
from folovllm_lite.widgets.transcript import transcript
from folovllm_lite.widgets.tree import (
    Choice,
    Fate,
    GenerationTree,
    Node,
    fate_of,
)
from folovllm_lite.widgets.writing import write

__all__ = [
    "NEXT_TOKENS",
    "BlockExplorer",
    "Choice",
    "Context",
    "Exploration",
    "Fate",
    "GenerationExplorer",
    "GenerationTree",
    "Job",
    "Node",
    "PoolStep",
    "PoolView",
    "SamplingExplorer",
    "Schedule",
    "SchedulerExplorer",
    "Step",
    "StepRecord",
    "branches",
    "draw_blocks",
    "draw_exploration",
    "draw_generation",
    "draw_pool",
    "draw_schedule",
    "draw_tokens",
    "explore",
    "fate_of",
    "label",
    "load_contexts",
    "pool_text",
    "removals",
    "run_schedule",
    "run_static",
    "schedule_text",
    "sentence",
    "steps_of",
    "transcript",
    "view_pool",
    "watch_blocks",
    "write",
]
