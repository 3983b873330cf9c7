"""What users of the made-up shop do: missions, tastes, lists shown, clicks, carts, purchases, and when."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beam_jobs.recipes.shop_catalogue import NEIGHBOURS, STYLE_DIM, Catalogue, Floats, Ints, Random
from beam_jobs.recipes.shop_words import AGE_BANDS, REGIONS

VIEW, CART, PURCHASE = 0, 1, 2

_SHOWN = 12  # items of a list
_REQUESTS = 16  # lists of a session at most
_DAY = 86_400
_APART = 7_200  # seconds between the starts of two sessions, more than the longest takes
_DELAYS = np.array([3, 25, 70])  # seconds from the list to its view, cart and purchase
_HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 10, 12, 14, 16, 15, 10, 5], np.float64)
_NEW = 14 * _DAY  # an item counts as new for so long
_SIMILAR, _COMPLEMENT, _MISSION = 0, 1, 2
_MOVES = np.array([[0.6, 0.85, 1.0], [0.1, 0.85, 1.0], [0.1, 0.85, 1.0]])  # row: last event type; cumulative


@dataclass(frozen=True)
class Users:
    """A group of users: profile, taste, habits."""

    age: Ints
    region: Ints
    taste: Floats
    brands: Ints
    """`(users, 3)`: favourite brands."""
    price_level: Floats
    interests: Ints
    """`(users, 3)`: favourite categories, the strongest first."""
    sessions: Ints
    first: Ints
    """Seconds after the opening when the user comes for the first time at the earliest."""


@dataclass(frozen=True)
class Sessions:
    """The sessions of a group of users, by user and time."""

    user: Ints
    start: Ints
    taste: Floats
    mission: Ints
    requests: Ints


@dataclass(frozen=True)
class Lists:
    """One list a row: who saw it when, the items by position, and what was clicked."""

    session: Ints
    time: Ints
    shown: Ints
    """`(lists, 12)`: items by position, -1 where there are fewer."""
    clicked: Ints
    """The item clicked, -1 if none."""
    outcome: Ints
    """The furthest event type that the click led to."""
    direct: NDArray[np.bool_]
    """Carted or bought from the list, without a view."""


def make_users(catalogue: Catalogue, count: int, mean_sessions: float, seconds: int, random: Random) -> Users:
    """Users whose profile says something of their taste and price level."""
    age = random.choice(len(AGE_BANDS), size=count, p=[0.14, 0.26, 0.22, 0.17, 0.13, 0.08])
    region = random.choice(len(REGIONS), size=count, p=[0.3, 0.25, 0.2, 0.2, 0.05])
    # Drawn from a generator of their own, so that every group of users shares them.
    shared = np.random.default_rng(len(catalogue.style))
    age_taste = shared.normal(size=(len(AGE_BANDS), STYLE_DIM))
    region_price = shared.normal(0, 0.2, len(REGIONS))
    taste = _unit(random.normal(size=(count, STYLE_DIM)) + 0.6 * age_taste[age])
    categories = len(catalogue.complements)
    nearness = taste @ _brand_styles(catalogue).T + random.gumbel(0, 0.3, size=(count, len(catalogue.brand_names)))
    return Users(
        age=age,
        region=region,
        taste=taste,
        brands=np.argsort(-nearness, axis=1)[:, :3],
        price_level=(random.normal(0, 0.5, count) + region_price[region]).astype(np.float32),
        interests=random.integers(0, categories, size=(count, 3)),
        sessions=random.geometric(1 / mean_sessions, size=count),
        first=(random.random(count) ** 1.5 * 0.6 * seconds).astype(np.int64),
    )


def make_sessions(catalogue: Catalogue, users: Users, seconds: int, random: Random) -> Sessions:
    """Sessions at people's hours, at least two hours apart; tastes drift and missions follow one another."""
    user = np.repeat(np.arange(len(users.age)), users.sessions)
    number = np.arange(len(user)) - np.repeat(np.cumsum(users.sessions) - users.sessions, users.sessions)
    day = ((users.first[user] + random.random(len(user)) * (seconds - users.first[user])) // _DAY).astype(np.int64)
    hour = random.choice(24, size=len(user), p=_HOURS / _HOURS.sum())
    start = day * _DAY + hour * 3600 + random.integers(0, 3600, len(user))
    start = _apart(start[np.lexsort((start, user))], user, number)
    taste = _drifting(users, user, number, random)
    mission = _missions(catalogue, users, user, number, random)
    inside = np.flatnonzero(start < seconds)  # what would begin after the end of the logs is not seen
    requests = np.minimum(1 + random.geometric(1 / 6, size=len(user)), _REQUESTS)
    return Sessions(user[inside], start[inside], taste[inside], mission[inside], requests[inside])


def browse(catalogue: Catalogue, users: Users, sessions: Sessions, random: Random) -> Lists:
    """Every list that was shown, session by session and step by step, with the click on it."""
    shelf = np.concatenate([[0], np.cumsum(catalogue.appeal)])
    bounds = np.searchsorted(catalogue.category, np.arange(len(catalogue.complements) + 1))
    clock = sessions.start.copy()
    category = sessions.mission.copy()
    last_item = np.full(len(clock), -1)
    last_type = np.full(len(clock), VIEW)
    parts = []
    for step in range(_REQUESTS):
        rows = np.flatnonzero(sessions.requests > step)
        if len(rows) == 0:
            break
        move = _moves(last_item[rows], last_type[rows], random)
        category[rows] = _next_categories(catalogue, users, sessions, rows, category[rows], move, random)
        items = _candidates(catalogue, shelf, bounds, category[rows], last_item[rows], move, clock[rows], random)
        utility = _utility(catalogue, users, sessions, rows, items, last_item[rows], move, clock[rows])
        found = _click(catalogue, items, utility, rows, clock[rows], random)
        clicked = found.clicked >= 0
        last_item[rows[clicked]] = found.clicked[clicked]
        last_type[rows[clicked]] = found.outcome[clicked]
        pause = np.clip(random.lognormal(3.4, 1.0, len(rows)), 8, 300).astype(np.int64)
        clock[rows] += pause + np.where(clicked, _DELAYS[found.outcome], 0)
        parts.append(found)
    names = Lists.__dataclass_fields__
    return Lists(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def events_of(lists: Lists) -> tuple[Ints, Ints, Ints, Ints]:
    """(session, item, time, type) of the events behind the clicks: a view, then perhaps a cart, then a purchase."""
    clicks = np.flatnonzero(lists.clicked >= 0)
    parts = []
    for event_type, delay in enumerate(_DELAYS):
        happened = lists.outcome[clicks] >= event_type
        happened &= ~lists.direct[clicks] | (lists.outcome[clicks] == event_type)
        rows = clicks[happened]
        parts.append(
            (lists.session[rows], lists.clicked[rows], lists.time[rows] + delay, np.full(len(rows), event_type))
        )
    session, item, time, kind = (np.concatenate(column) for column in zip(*parts, strict=True))
    return session, item, time, kind


def _apart(start: Ints, user: Ints, number: Ints) -> Ints:
    """Moves each start to at least two hours after the same user's start before it."""
    slack = start - number * _APART
    far = user * (2 * int(np.abs(slack).max(initial=0)) + 1)  # so that no user's maximum reaches the next
    return np.maximum.accumulate(slack + far) - far + number * _APART


def _unit(points: NDArray[np.float64]) -> Floats:
    return (points / np.linalg.norm(points, axis=-1, keepdims=True)).astype(np.float32)


def _brand_styles(catalogue: Catalogue) -> Floats:
    sums = np.zeros((len(catalogue.brand_names), STYLE_DIM))
    np.add.at(sums, catalogue.brand, catalogue.style)
    return _unit(sums + 1e-6)


def _drifting(users: Users, user: Ints, number: Ints, random: Random) -> Floats:
    """Tastes `(sessions, 8)`: a walk from session to session that stays near the user's own taste."""
    taste = np.empty((len(user), STYLE_DIM), np.float32)
    current = users.taste.astype(np.float64)
    for turn in range(int(number.max(initial=0)) + 1):
        rows = np.flatnonzero(number == turn)
        who = user[rows]
        step = random.normal(0, 0.15, size=(len(rows), STYLE_DIM))
        current[who] = 0.85 * current[who] + 0.15 * users.taste[who] + step
        taste[rows] = _unit(current[who])
    return taste


def _missions(catalogue: Catalogue, users: Users, user: Ints, number: Ints, random: Random) -> Ints:
    """What each session is about: an interest of the user, or what goes with the session before."""
    interest = users.interests[user, np.searchsorted([0.5, 0.8], random.random(len(user)))]
    follows = (random.random(len(user)) < 0.35) & (number > 0)
    before = np.roll(interest, 1)
    return np.where(follows, _draw(catalogue.complements[before], random), interest)


def _draw(chances: NDArray[np.float64], random: Random) -> Ints:
    """One column of each row, by its chance."""
    cumulative = np.cumsum(chances, axis=1)
    wanted = random.random((len(chances), 1)) * cumulative[:, -1:]
    return (cumulative <= wanted).sum(axis=1)


def _moves(last_item: Ints, last_type: Ints, random: Random) -> Ints:
    move = (_MOVES[last_type] <= random.random((len(last_item), 1))).sum(axis=1)
    return np.where(last_item < 0, _MISSION, move)


def _next_categories(
    catalogue: Catalogue, users: Users, sessions: Sessions, rows: Ints, category: Ints, move: Ints, random: Random
) -> Ints:
    """The category of the next list; on the way back to the mission one looks around now and then."""
    following = category.copy()
    away = np.flatnonzero(move == _COMPLEMENT)
    following[away] = _draw(catalogue.complements[category[away]], random)
    back = np.flatnonzero(move == _MISSION)
    around = users.interests[sessions.user[rows[back]], random.integers(0, 3, len(back))]
    following[back] = np.where(random.random(len(back)) < 0.2, around, sessions.mission[rows[back]])
    return following


def _candidates(
    catalogue: Catalogue,
    shelf: NDArray[np.float64],
    bounds: Ints,
    category: Ints,
    last_item: Ints,
    move: Ints,
    clock: Ints,
    random: Random,
) -> Ints:
    """The items `(N, 12)` of each list, drawn by appeal, half of them neighbours after a view; -1 = none.

    Items not launched yet, repeated ones and the one just seen are left out.
    """
    low, high = shelf[bounds[category]], shelf[bounds[category + 1]]
    wanted = low[:, None] + random.random((len(category), _SHOWN)) * (high - low)[:, None]
    items = np.searchsorted(shelf, wanted, side="right") - 1
    items = np.clip(items, bounds[category][:, None], bounds[category + 1][:, None] - 1)
    similar = np.flatnonzero(move == _SIMILAR)
    half = _SHOWN // 2
    near = random.integers(0, NEIGHBOURS, size=(len(similar), half))
    items[similar, :half] = catalogue.neighbours[last_item[similar][:, None], near]
    items.sort(axis=1)
    left_out = catalogue.launch[items] > clock[:, None]
    left_out[:, 1:] |= items[:, 1:] == items[:, :-1]
    left_out |= items == last_item[:, None]
    return np.where(left_out, -1, items)


def _utility(
    catalogue: Catalogue,
    users: Users,
    sessions: Sessions,
    rows: Ints,
    items: Ints,
    last_item: Ints,
    move: Ints,
    clock: Ints,
) -> Floats:
    """How much each user likes each item `(N, 12)` just now; what is not on the list is -inf."""
    user = sessions.user[rows]
    style = catalogue.style[items]  # (N, 12, 8)
    near_last = np.where(last_item >= 0, np.array([3.0, 1.5, 0.0])[move], 0.0).astype(np.float32)
    wanted = 3.5 * sessions.taste[rows] + near_last[:, None] * catalogue.style[last_item]
    utility = np.einsum("ncd,nd->nc", style, wanted)
    brand = catalogue.brand[items]
    for column in users.brands[user].T:
        utility += np.where(brand == column[:, None], np.float32(1.2), np.float32(0))
    utility -= 0.7 * (catalogue.brand_price[brand] - users.price_level[user][:, None]) ** 2
    age = clock[:, None] - catalogue.launch[items]
    utility += np.where((catalogue.launch[items] > 0) & (age < _NEW), np.float32(0.7), np.float32(0))
    return np.where(items < 0, np.float32(-np.inf), utility)


def _click(catalogue: Catalogue, items: Ints, utility: Floats, rows: Ints, clock: Ints, random: Random) -> Lists:
    """Orders each list by appeal with some noise, and draws the click by utility and position."""
    rank = np.log(catalogue.appeal)[items] + random.normal(size=items.shape)
    rank[items < 0] = -np.inf
    order = np.argsort(-rank, axis=1, kind="stable")
    shown = np.take_along_axis(items, order, axis=1)
    utility = np.take_along_axis(utility, order, axis=1)
    logit = utility - 0.5 * np.log(np.arange(1, _SHOWN + 1, dtype=np.float32))
    logit = logit + random.gumbel(size=logit.shape)
    chosen = logit.argmax(axis=1)
    line = np.arange(len(rows))
    clicked = np.where(logit[line, chosen] > 1.5 + random.gumbel(size=len(rows)), shown[line, chosen], -1)
    carted = random.random(len(rows)) < 1 / (1 + np.exp(3.5 - utility[line, chosen]))
    bought = carted & (random.random(len(rows)) < 0.4)
    outcome = np.where(bought, PURCHASE, np.where(carted, CART, VIEW))
    direct = carted & (random.random(len(rows)) < 0.4)
    return Lists(rows, clock, shown, clicked, outcome, direct)
