"""The general grammar of captions: things by theme, positions and scenes, and the instruction.

For those who have no language model at hand. The themes also vary what a language model is asked.
"""

from __future__ import annotations

import numpy as np

from bootpig_rt.training.captions import class_prompt


def _list(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.replace("\n", " ").split(",") if entry.strip())


THINGS: dict[str, tuple[str, ...]] = {
    "pets": _list(
        "dog, cat, rabbit, hamster, guinea pig, parrot, canary, goldfish, tortoise, ferret, puppy, "
        "kitten, budgerigar, gecko, chinchilla"
    ),
    "farm animals": _list(
        "cow, horse, donkey, sheep, goat, pig, hen, rooster, duck, goose, turkey, llama, alpaca, "
        "pony, lamb"
    ),
    "wild animals": _list(
        "fox, wolf, bear, deer, moose, lion, tiger, leopard, elephant, giraffe, zebra, rhinoceros, "
        "hippopotamus, monkey, gorilla, koala, kangaroo, panda, red panda, raccoon, squirrel, "
        "hedgehog, otter, beaver, badger, camel, sloth, armadillo, meerkat, porcupine"
    ),
    "birds": _list(
        "owl, eagle, flamingo, penguin, peacock, swan, toucan, pelican, heron, puffin, crow, "
        "kingfisher, hummingbird, ostrich, seagull"
    ),
    "small creatures": _list(
        "frog, snail, butterfly, beetle, ladybird, lizard, chameleon, crab, lobster, starfish, "
        "octopus, turtle, seahorse, dragonfly, bumblebee"
    ),
    "toys": _list(
        "teddy bear, rubber duck, toy robot, rocking horse, toy train, wooden boat, rag doll, "
        "spinning top, toy car, kite, yo-yo, puppet, plush rabbit, toy dinosaur, dollhouse"
    ),
    "kitchen": _list(
        "teapot, kettle, coffee mug, saucepan, frying pan, rolling pin, toaster, blender, "
        "salt shaker, cake stand, cutting board, whisk, wine glass, milk jug, cookie jar"
    ),
    "food": _list(
        "birthday cake, croissant, hamburger, pizza, doughnut, ice cream cone, pineapple, "
        "watermelon, pumpkin, loaf of bread, cupcake, apple, pretzel, sandwich, pear"
    ),
    "furniture": _list(
        "armchair, wooden stool, bookcase, floor lamp, rocking chair, desk, sofa, "
        "chest of drawers, grandfather clock, bar stool, bench, coffee table, wardrobe, "
        "cradle, mirror"
    ),
    "clothes": _list(
        "backpack, sneaker, hiking boot, straw hat, baseball cap, handbag, suitcase, wristwatch, "
        "scarf, leather jacket, sandal, umbrella, mitten, bow tie, top hat"
    ),
    "vehicles": _list(
        "bicycle, motorcycle, scooter, pickup truck, school bus, fire engine, tractor, sports car, "
        "camper van, sailing boat, canoe, hot air balloon, helicopter, skateboard, tram"
    ),
    "tools": _list(
        "hammer, wrench, cordless drill, paintbrush, watering can, wheelbarrow, lantern, compass, "
        "pocket knife, ladder, axe, sewing machine, garden fork, tape measure, bucket"
    ),
    "music and play": _list(
        "guitar, violin, trumpet, drum, saxophone, accordion, grand piano, harp, football, "
        "tennis racket, basketball, bowling ball, chess piece, roller skate, surfboard"
    ),
    "things at home": _list(
        "vase, candlestick, alarm clock, typewriter, old camera, radio, telephone, globe, "
        "flower pot, cactus, bonsai tree, birdcage, music box, hourglass, piggy bank"
    ),
}
"""Finite, solid things that one can see as a whole, by theme."""

POSITIONS = _list(
    "in the middle of, on the left side of, on the right side of, in front of, next to, near, "
    "at the edge of, in the foreground of"
)

SCENES = _list(
    "a sandy beach, a pine forest, a snowy field, a busy street, a quiet village square, "
    "a rocky desert, a green meadow, a stone bridge, a wooden pier, a mountain lake, "
    "a flower garden, a vegetable market, an old library, a bright kitchen, a cosy living room, "
    "a tiled bathroom, a school playground, a railway station, a harbour, a castle gate, "
    "a waterfall, a vineyard, a corn field, a bamboo grove, a frozen pond, a lighthouse, "
    "a spiral staircase, a greenhouse, a barn, a campsite, a swimming pool, a tennis court, "
    "a museum hall, a cathedral, a rooftop terrace, a subway platform, a parking lot, "
    "a skyscraper, a windmill, a canyon, a sand dune, a coral reef aquarium, a riverbank, "
    "an orchard, a cobbled alley, a fountain, a picnic blanket, a brick wall, "
    "a wooden fence, a marble floor, a workshop, a concert stage, a football pitch, "
    "a hotel lobby, a bakery, a bookshop, a flower shop, a hay bale, a fallen log, "
    "a field of lavender, a rice terrace, a glacier, a hot spring, a suspension bridge"
)

INSTRUCTION = """\
Write {count} captions of photographs, one a line, without numbers or quotation marks.
Each has exactly this form: A photo of a [object], [position] [scene]
The object is one single solid thing that fits into the picture as a whole, named by one to three \
words, without colours or other adjectives. Take objects from this theme: {theme}.
The position says where in the scene it is, the scene is a place. Use fewer than 18 words in each \
caption, a different object or scene in each, and write nothing else.
"""


def draw_general_caption(rng: np.random.Generator) -> str:
    """Draw a thing, a position and a scene of the general grammar."""
    themes = list(THINGS)
    things = THINGS[themes[int(rng.integers(len(themes)))]]
    thing = things[int(rng.integers(len(things)))]
    return f"{class_prompt(thing)}, {draw_place(rng)}"


def draw_place(rng: np.random.Generator) -> str:
    """Draw a position and a scene: "next to a stone bridge"."""
    position = POSITIONS[int(rng.integers(len(POSITIONS)))]
    return f"{position} {SCENES[int(rng.integers(len(SCENES)))]}"


def theme_of(ask: int) -> str:
    """The theme that one question to a language model is about: each in turn."""
    themes = list(THINGS)
    return themes[ask % len(themes)]
