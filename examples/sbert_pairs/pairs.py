"""Invented questions with their answers, the same ones each time."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path

THINGS = {
    "bicycle": "in the shed behind the house",
    "ladder": "against the wall of the garage",
    "passport": "in the top drawer of the desk",
    "tent": "under the stairs beside the boots",
    "violin": "on the shelf in the music room",
    "recipe": "in the blue folder by the stove",
    "umbrella": "at the coat stand by the door",
    "telescope": "on the balcony under a cover",
    "kettle": "on the left ring of the cooker",
    "printer": "on the desk in the spare room",
    "lantern": "on a nail in the wine cellar",
    "medicine": "in the cabinet above the sink",
    "sledge": "in the attic next to the skis",
    "hammer": "in the red box on the workbench",
    "camera": "in the suitcase on the wardrobe",
}
ASKED = (
    ("where do we keep the {thing}", "You will find it {place}."),
    ("who borrowed the {thing} last week", "Our neighbour took the {thing} and brought it back on Friday."),
    ("is the {thing} broken", "No, the {thing} was mended in May and has worked ever since."),
    ("how old is the {thing}", "We bought the {thing} second-hand about twelve years ago."),
    ("can I lend the {thing} to a friend", "Yes, but the {thing} has to be back before the holidays."),
    ("what did the {thing} cost", "The price of the {thing} was forty euros at the flea market."),
    ("how do I clean the {thing}", "Wipe the {thing} with a damp cloth and let it dry in the shade."),
    ("which {thing} should we buy next", "A lighter {thing} with a guarantee of five years would be best."),
    ("may children use the {thing}", "Only with somebody beside them, for the {thing} has sharp edges."),
    ("does the {thing} need batteries", "There is nothing electric in the {thing}, it works without."),
)


def write_pairs(path: Path) -> Path:
    """A CSV of source_sentence and target_sentence."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source_sentence", "target_sentence"])
        for (thing, place), (question, answer) in product(THINGS.items(), ASKED):
            said = answer if "{thing}" in answer else f"The {{thing}}? {answer}"
            writer.writerow([question.format(thing=thing), said.format(thing=thing, place=place)])
    return path
