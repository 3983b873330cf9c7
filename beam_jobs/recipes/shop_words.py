"""The words of the made-up shop: departments, brands, styles, and the titles made of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

DEPARTMENTS: Mapping[str, Mapping[str, tuple[str, float]]] = {
    "Clothing": {
        "Dresses": ("dress", 60),
        "Shirts": ("shirt", 35),
        "Trousers": ("trousers", 50),
        "Coats": ("coat", 140),
        "Knitwear": ("jumper", 55),
    },
    "Shoes": {"Sneakers": ("sneakers", 80), "Boots": ("boots", 120), "Sandals": ("sandals", 45)},
    "Bags": {"Backpacks": ("backpack", 65), "Handbags": ("handbag", 90), "Wallets": ("wallet", 30)},
    "Jewellery": {"Earrings": ("earrings", 25), "Necklaces": ("necklace", 40), "Watches": ("watch", 150)},
    "Kitchen": {
        "Pans": ("pan", 45),
        "Knives": ("knife", 40),
        "Mugs": ("mug", 12),
        "Plates": ("plate set", 38),
        "Kettles": ("kettle", 55),
    },
    "Living": {
        "Lamps": ("lamp", 70),
        "Cushions": ("cushion", 22),
        "Rugs": ("rug", 130),
        "Candles": ("candle", 15),
        "Vases": ("vase", 28),
    },
    "Garden": {"Planters": ("planter", 25), "Tools": ("trowel", 18), "Lanterns": ("lantern", 30)},
    "Sport": {
        "Running": ("running vest", 45),
        "Yoga": ("yoga mat", 35),
        "Cycling": ("cycling gloves", 32),
        "Bottles": ("water bottle", 20),
    },
    "Stationery": {"Notebooks": ("notebook", 14), "Pens": ("fountain pen", 30), "Cards": ("card set", 9)},
}
"""Department -> its categories, each with the noun of its titles and a usual price."""

MATERIALS: Mapping[str, Sequence[str]] = {
    "Clothing": ("linen", "wool", "cotton", "denim", "silk"),
    "Shoes": ("leather", "canvas", "suede", "mesh"),
    "Bags": ("leather", "canvas", "nylon", "felt"),
    "Jewellery": ("silver", "gold", "steel", "pearl"),
    "Kitchen": ("steel", "ceramic", "copper", "oak", "enamel"),
    "Living": ("glass", "oak", "velvet", "brass", "rattan"),
    "Garden": ("terracotta", "zinc", "cedar", "iron"),
    "Sport": ("mesh", "cork", "nylon", "steel"),
    "Stationery": ("paper", "leather", "kraft", "brass"),
}
STYLES = (
    "summer",
    "urban",
    "vintage",
    "floral",
    "sporty",
    "minimal",
    "elegant",
    "rustic",
    "boho",
    "classic",
    "retro",
    "nordic",
    "striped",
    "bold",
    "travel",
    "winter",
)
COLOURS = ("blue", "black", "white", "green", "red", "sand", "grey", "pink", "yellow", "olive", "navy", "rust")
REGIONS = ("north", "south", "east", "west", "abroad")
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")

_FIRST = ("Nord", "Alm", "Bel", "Cas", "Dov", "Elm", "Fjor", "Gran", "Hol", "Ily", "Jun", "Kest")
_LAST = ("licht", "avera", "brook", "dale", "enna", "field", "grove", "haven", "iko", "mont")


def brand_names(count: int) -> list[str]:
    """That many made-up names ("Nordlicht"), all different."""
    pairs = [first + last for last in _LAST for first in _FIRST]
    return [pairs[i % len(pairs)] + (f" {i // len(pairs) + 1}" if i >= len(pairs) else "") for i in range(count)]


def categories() -> list[tuple[str, str, str, float]]:
    """(department, category, noun, usual price) of every category."""
    return [(department, name, *rest) for department, found in DEPARTMENTS.items() for name, rest in found.items()]


def titles(brands: Sequence[str], category: Ints, material: Ints, style: Ints, colour: Ints) -> list[str]:
    """Readable titles such as "Nordlicht linen summer dress, blue".

    Args:
        brands: the name of each item's brand.
        category: each item's place in `categories()`.
        material: a place in the materials of its department.
        style: a place in `STYLES`.
        colour: a place in `COLOURS`.
    """
    known = categories()
    rows = zip(brands, category.tolist(), material.tolist(), style.tolist(), colour.tolist(), strict=True)
    return [
        f"{brand} {MATERIALS[known[c][0]][m]} {STYLES[s]} {known[c][2]}, {COLOURS[k]}" for brand, c, m, s, k in rows
    ]
