"""The README's picture: python -m folovllm_lite.viz FILE.svg."""

import sys
from pathlib import Path

from folovllm_lite.viz.course import course_map

Path(sys.argv[1]).write_text(course_map().svg, encoding="utf-8")
