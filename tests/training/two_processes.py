"""Trains the tiny model as one of the processes that the environment tells of; run by test_parallel.

python two_processes.py MODEL OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

COURSES = {"mnr": ("mnr", "shared"), "mnr-cached": ("mnr-cached", "shared"), "separate": ("mnr", "separate")}
"""By name: the objective, and whether both towers are one."""
STEPS = 20


class Killed(Exception):
    """Stands for a kill."""


def train(model: Path, out: Path, name: str, dies: int = -1) -> tuple[list[float], dict[str, Any]]:
    """The losses that this process saw, and the weights after the last step."""
    from sentence_transformers import SentenceTransformer
    from training_tools import small_set

    from searchfit.objectives import load_objective
    from searchfit.training import parallel
    from searchfit.training.batches import Batches, BatchOptions, Mixture, share
    from searchfit.training.data import Feed
    from searchfit.training.loop import Loop, LoopOptions
    from searchfit.training.towers import Towers

    own, count = parallel.rank(), parallel.processes()
    objective_name, sharing = COURSES[name]
    towers = Towers.of(sharing, SentenceTransformer(str(model), device="cpu"))
    if own:  # the first process's weights are everybody's
        towers.query[0].auto_model.embeddings.word_embeddings.weight.data.zero_()
    feed = Feed(small_set(48, 1), towers)
    mixture = Mixture([Batches(feed.data, feed.lengths, BatchOptions(8, multiple=2))])
    objective = load_objective(objective_name, towers, {"gather": True})

    def loss(step: int, _part: int) -> Any:
        if step == dies:
            raise Killed
        return objective.loss(*feed.batch(share(mixture.batch(step)[1], own, count)))

    def measure(step: int) -> float:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"measured-{own}").touch()
        return float(step)

    options = LoopOptions(steps=STEPS, learning_rate=1e-3, checkpoint_steps=4, measure_steps=10)
    history = Loop(towers.module, loss, options, out, measure).run()
    return list(history.losses), dict(towers.query.state_dict())


def main() -> None:
    """Train undisturbed each way, and once with a kill; write the losses and the weights."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for name in COURSES:
        found[name], weights = train(model, out / name, name)
        save_file(weights, out / f"{name}-{rank}.safetensors")
    try:
        train(model, out / "cut", "mnr", dies=11)
    except Killed:
        found["cut"], weights = train(model, out / "cut", "mnr")
    save_file(weights, out / f"cut-{rank}.safetensors")
    (out / f"losses-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
