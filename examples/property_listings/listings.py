"""Invented properties in a database, the same ones each time."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from random import Random

CITIES = {
    "Zaragoza": (41.65, -0.88),
    "Huesca": (42.14, -0.41),
    "Teruel": (40.34, -1.11),
    "Jaca": (42.57, -0.55),
    "Barbastro": (42.04, 0.13),
}
KINDS = {"flat": 900, "house": 1400, "loft": 1300, "cottage": 800, "farmhouse": 700, "penthouse": 1900}
"""With the price of a square metre."""

PLACES = (
    *(
        "kitchen",
        "living room",
        "main bedroom",
        "guest room",
        "bathroom",
        "cellar",
        "attic",
        "terrace",
        "balcony",
    ),
    *(
        "garden",
        "courtyard",
        "garage",
        "hallway",
        "studio",
        "pantry",
        "library",
        "porch",
        "laundry",
        "stable",
    ),
)
FEATURES = (
    *(
        "oak floors",
        "a heated swimming pool",
        "a fireplace of stone",
        "a socket for charging cars",
        "lemon trees",
    ),
    *(
        "underfloor heating",
        "a view of the cathedral",
        "solar panels on its roof",
        "a vaulted ceiling",
        "a wine rack",
    ),
    *(
        "its own entrance",
        "triple glazing",
        "an orchard of almonds",
        "a well that never runs dry",
        "a skylight",
    ),
    *(
        "shelves for two thousand books",
        "a piano that stays",
        "blue tiles by a local potter",
        "an old baker's oven",
    ),
    *(
        "a view of the glacier",
        "a workbench with a lathe",
        "beehives along the wall",
        "a sauna made of cedar",
    ),
    *(
        "a fountain with goldfish",
        "wooden shutters",
        "a hammock between two figs",
        "a walk-in wardrobe",
        "a lift",
    ),
    *("marble steps", "a telescope on a tripod", "room for six bicycles", "a hen house", "a vegetable patch"),
    *("a claw-foot bathtub", "a dumb waiter that still works", "painted beams", "a projector and a screen"),
    *(
        "a greenhouse for orchids",
        "a loom in working order",
        "a bread cupboard",
        "a river at its end",
        "a palm tree",
    ),
    *(
        "a hidden staircase",
        "a safe behind a painting",
        "a map of the stars on the ceiling",
        "a tennis court",
    ),
)
SAID = (
    "The {0} has {1} and {2}.",
    "In the {0} you will find {1}, and beside it {2}.",
    "What visitors remember of the {0} is {1}.",
    "Last year the owners gave the {0} {1} and {2}.",
    "There is a {0} with {1}, though it still waits for {2}.",
)


def write_listings(path: Path, many: int) -> Path:
    """A SQLite database with a table `listings`. About every fourth description is over 1,024 characters."""
    random = Random(7)
    rows = [_listing(random, number) for number in range(1, many + 1)]
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "create table listings (id text primary key, name text, description text, price integer,"
            " rooms integer, city text, latitude real, longitude real)"
        )
        connection.executemany("insert into listings values (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return path


def _listing(random: Random, number: int) -> tuple[str, str, str, int, int, str, float, float]:
    kind, city = random.choice(list(KINDS)), random.choice(list(CITIES))
    rooms, metres = random.randint(1, 6), random.randint(4, 24) * 10
    latitude, longitude = (round(place + random.uniform(-0.05, 0.05), 5) for place in CITIES[city])
    price = round(metres * KINDS[kind] * random.uniform(0.8, 1.3), -3)
    places = random.sample(PLACES, random.randint(15, 18) if number % 4 == 0 else random.randint(2, 5))
    said = [random.choice(SAID).format(place, *random.sample(FEATURES, 2)) for place in places]
    first = f"This {kind} in {city} has {rooms} room{'s' * (rooms > 1)} on {metres} square metres."
    name = f"{kind.capitalize()} of {metres} m² in {city}"
    return f"P{number:04}", name, " ".join([first, *said]), int(price), rooms, city, latitude, longitude
