"""python -m folovllm_lite.widgets FOLDER: the README's pictures of the explorers."""

import sys
from pathlib import Path

from folovllm_lite.widgets.readme import write_readme_pictures

if __name__ == "__main__":
    for file in write_readme_pictures(Path(sys.argv[1])):
        print(f"wrote {file}")
