"""The benchmark runs and counts right; how fast anything is stands in no test."""

import json
import subprocess
import sys

import psutil
import pytest

from tests.benchmark import gpu, run

JOBS = ("a", "d", "e")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one short run writes down, our engine alone."""
    out = tmp_path_factory.mktemp("benchmark") / "figures.json"
    subprocess.run(
        [sys.executable, run.__file__, "--work", *JOBS, "--repeats", "1",
         "--peers", "--out", out],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


def test_every_request_is_served_to_its_last_token(found):
    (ours,) = found["a"].values()
    assert "failed" not in ours and "tokens" not in ours
    assert ours["requests with our tokens"] == "64 of 64"
    assert len(ours["tokens/s"]) == 1 and ours["ours is"] == 1


def test_a_common_prefix_is_computed_once(found):
    """Prompts of 512 tokens and a tail of at most 32 share 512, but for the first."""
    rates = {name: figures["hit rate"][0] for name, figures in found["d"].items()}
    assert rates["no caching"] == 0
    assert rates["caching, all at once"] > 31 / 32 * 512 / (512 + 32)
    assert rates["caching, prefix served before"] > 32 / 33 * 512 / (512 + 32)


def test_all_that_is_measured_is_a_time(found):
    for work in ("d", "e"):
        for name, figures in found[work].items():
            for key, (value,) in figures.items():
                assert value > 0 or key == "hit rate", (work, name, key)


def test_a_neighbour_is_there_for_half_of_the_turns():
    """And gone afterwards. How much speed is kept depends on the machine."""
    models = {"embedded": str(run.ROOT / "folovllm_lite" / "tiny" / "model")}
    engine = run.Engine(run.OURS, sys.executable, models)
    others = set(psutil.Process().children())
    try:
        found = run.beside([engine], 2, ["c"])
    finally:
        engine.close()
    (figures,) = found.values()
    assert len(figures["alone"]) == len(figures["beside"]) == 2
    assert min(figures["alone"] + figures["beside"]) > 0 and figures["kept"] > 0
    assert set(psutil.Process().children()) <= others


def test_an_engine_that_fails_is_named_with_its_error():
    """Its neighbours are measured all the same."""
    models = {"embedded": "nowhere"}
    engine = run.Engine(run.OURS, sys.executable, models)
    try:
        with pytest.raises(RuntimeError, match="folovllm_lite.generate.*nowhere"):
            engine.do("generate", "a", 4)
    finally:
        engine.close()


def test_the_figures_of_a_gpu_can_be_taken(tmp_path):
    """Tiny, and on whatever is here: a script that only a GPU runs rots."""
    out = tmp_path / "figures.json"
    subprocess.run(
        [sys.executable, gpu.__file__, "--trial", "--repeats", "1", "--out", out],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    for name in (run.OURS, gpu.EAGER, "transformers"):
        assert "failed" not in found[name], found[name]
        assert found[name]["one"][0] > 0
    (line,) = found["attention, microseconds"].values()
    assert min(line.values()) > 0
