"""The catalogue of the made-up shop: brands, styles, prices, launches, and what resembles or completes what."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_jobs.recipes import shop_words

STYLE_DIM = 8
IMAGE_DIM = 32
NEIGHBOURS = 16

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Random = np.random.Generator


@dataclass(frozen=True)
class Catalogue:
    """The items, sorted by category, and the tables that move users from one to the next."""

    category: Ints
    brand: Ints
    style: Floats
    """`(items, 8)`, unit rows: what titles and images show and tastes are about."""
    image: Floats
    """`(items, 32)`: the style, turned and noisy."""
    log_price: Floats
    appeal: NDArray[np.float64]
    """The weight by which an item is put on a list."""
    launch: Ints
    """Seconds after the shop's opening; 0 for two thirds of the items."""
    neighbours: Ints
    """`(items, 16)`: items of the same category with the most similar style."""
    complements: NDArray[np.float64]
    """`(categories, categories)`: row = chances of the next category after something was put in the cart."""
    brand_names: list[str]
    brand_price: Floats
    """Price level of each brand, in logarithms."""
    titles: list[str]


def make_catalogue(items: int, seconds: int, random: Random) -> Catalogue:
    """A catalogue of that many items for a shop that is open that many seconds."""
    known = shop_words.categories()
    category = np.sort(_skewed(len(known), items, random))
    brand_count = int(np.clip(items // 50, 12, 400))
    brand_departments = random.integers(0, len(shop_words.DEPARTMENTS), size=(brand_count, 2))
    brand = _brands_of(category, brand_departments, random)
    brand_style, category_style = _unit(brand_count, random), _unit(len(known), random)
    style = brand_style[brand] + 0.5 * category_style[category] + 0.8 * _unit(items, random)
    style = (style / np.linalg.norm(style, axis=1, keepdims=True)).astype(np.float32)
    brand_price = random.normal(0, 0.5, brand_count).astype(np.float32)
    usual = np.log([price for *_, price in known])[category]
    log_price = (usual + brand_price[brand] + random.normal(0, 0.25, items)).astype(np.float32)
    turn = random.normal(size=(STYLE_DIM, IMAGE_DIM)) / np.sqrt(STYLE_DIM)
    image = style @ turn + random.normal(0, 0.15, size=(items, IMAGE_DIM))
    brand_names = shop_words.brand_names(brand_count)
    return Catalogue(
        category=category,
        brand=brand,
        style=style,
        image=image.astype(np.float32),
        log_price=log_price,
        appeal=random.lognormal(0, 1.1, items),
        launch=_launches(category, seconds, random),
        neighbours=_neighbours(style, category, random),
        complements=_complements(known, random),
        brand_names=brand_names,
        brand_price=brand_price,
        titles=_titles(category, style, [brand_names[b] for b in brand], random),
    )


def _unit(rows: int, random: Random) -> Floats:
    points = random.normal(size=(rows, STYLE_DIM)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _skewed(values: int, draws: int, random: Random) -> Ints:
    """Draws of some values, every value at least twice, with chances that differ mildly."""
    chances = random.dirichlet(np.full(values, 8.0))
    drawn = random.choice(values, size=draws, p=chances)
    drawn[: 2 * values] = np.tile(np.arange(values), 2)[:draws]
    return drawn


def _brands_of(category: Ints, brand_departments: Ints, random: Random) -> Ints:
    """A brand of the item's department where there is one, any brand otherwise."""
    names = list(shop_words.DEPARTMENTS)
    department = np.array([names.index(found) for found, *_ in shop_words.categories()])[category]
    brand = np.empty(len(category), np.int64)
    for number in range(len(names)):
        rows = np.flatnonzero(department == number)
        own = np.flatnonzero((brand_departments == number).any(axis=1))
        own = own if len(own) else np.arange(len(brand_departments))
        brand[rows] = random.choice(own, size=len(rows))
    return brand


def _launches(category: Ints, seconds: int, random: Random) -> Ints:
    """A third of the items arrives while the shop is open; the first item of a category is always there."""
    launch = np.where(random.random(len(category)) < 1 / 3, random.integers(0, seconds, len(category)), 0)
    launch[np.searchsorted(category, np.arange(category.max() + 1))] = 0
    return launch


def _neighbours(style: Floats, category: Ints, random: Random) -> Ints:
    found = np.empty((len(style), NEIGHBOURS), np.int64)
    for number in range(category.max() + 1):
        rows = np.flatnonzero(category == number)
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            similarity = style[part] @ style[rows].T
            similarity[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
            nearest = rows[np.argsort(-similarity, axis=1, kind="stable")[:, :NEIGHBOURS]]
            found[part] = np.resize(nearest.T, (NEIGHBOURS, len(part))).T  # small categories: repeated
    return found


def _complements(known: list[tuple[str, str, str, float]], random: Random) -> NDArray[np.float64]:
    count = len(known)
    chances = np.full((count, count), 0.1 / count)
    for row, (department, *_) in enumerate(known):
        preference = np.array([3.0 if other[0] == department else 1.0 for other in known])
        preference[row] = 0
        chosen = random.choice(count, size=3, replace=False, p=preference / preference.sum())
        chances[row, chosen] += (0.5, 0.25, 0.15)
    return chances


def _titles(category: Ints, style: Floats, brands: list[str], random: Random) -> list[str]:
    """Words are those whose own place among the styles is nearest to the item's, with some chance."""

    def choose(count: int) -> Ints:
        nearness = style @ _unit(count, random).T + random.normal(0, 0.15, size=(len(style), count))
        return nearness.argmax(axis=1)

    adjective, colour = choose(len(shop_words.STYLES)), choose(len(shop_words.COLOURS))
    material = np.empty(len(style), np.int64)
    departments = [department for department, *_ in shop_words.categories()]
    for department, materials in shop_words.MATERIALS.items():
        own = np.array([found == department for found in departments])[category]
        material[own] = choose(len(materials))[own]
    return shop_words.titles(brands, category, material, adjective, colour)
