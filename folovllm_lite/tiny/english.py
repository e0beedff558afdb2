"""The English half of the corpus: words, story plots and questions, as plain data."""

from folovllm_lite.tiny.grammar import Coin, Entry, Lexicon, Plot

SHE = {
    "he": "she",
    "He": "She",
    "him": "her",
    "his": "her",
    "His": "Her",
    "kid": "girl",
}
HE = {"he": "he", "He": "He", "him": "him", "his": "his", "His": "His", "kid": "boy"}

_FIRST = tuple(
    "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z".split()
)
_VOWEL = tuple("a e i o u ee oo ia".split())
_CODA = ("", "", "n", "l", "r", "x", "m")
_SYLLABLE = (_FIRST, _VOWEL, _CODA)
_SHORT, _LONG = _SYLLABLE + _SYLLABLE, _SYLLABLE + _SYLLABLE + _SYLLABLE
_VOWEL_FIRST = (tuple("aeiou"), *_SYLLABLE)
# Invented names: Zorbo, Aria, Thimel.
_NAMES = Coin(shapes=(_SHORT, _VOWEL_FIRST), kinds=(SHE, HE), capital=True)
_LONG_NAMES = Coin(shapes=(_SHORT, _LONG, _VOWEL_FIRST), kinds=(SHE, HE), capital=True)


def words(text: str, zipf: float | None = None) -> Lexicon:
    """A lexicon from a comma-separated list; `{x.a}` and `{x.A}` add the article."""
    entries = []
    for word in text.split(", "):
        article = "an" if word[0] in "aeiou" else "a"
        forms = {"a": f"{article} {word}", "A": f"{article} {word}".capitalize()}
        entries.append(Entry(word, forms))
    return Lexicon(entries) if zipf is None else Lexicon(entries, zipf=zipf)


def table(text: str, *forms: str) -> Lexicon:
    """A lexicon from lines "word | form | form"; an article and The come free."""
    entries = []
    for line in text.strip().splitlines():
        word, *cells = (cell.strip() for cell in line.split("|"))
        article = "an" if word[0] in "aeiou" else "a"
        free = {"a": f"{article} {word}", "A": f"{article} {word}".capitalize()}
        free["The"] = f"The {word}"
        entries.append(Entry(word, {**free, **dict(zip(forms, cells, strict=True))}))
    return Lexicon(entries)


def _children(coin: Coin) -> Lexicon:
    girls = "Lily Mia Anna Lucy Emma Rose Nina Sara Ella Zoe Amy Ruby".split()
    boys = "Tom Ben Max Sam Leo Jack Tim Finn Dan Noah Bob Oscar".split()
    pairs = zip(girls, boys, strict=True)
    entries = [
        Entry(n, f) for pair in pairs for n, f in zip(pair, (SHE, HE), strict=True)
    ]
    return Lexicon(entries, coin=coin, coined=0.25)


def _sums(sign: str) -> Lexicon:
    """All a + b with a, b up to 10, or all a - b with a up to 10; equally likely."""
    entries = []
    for a in range(11):
        for b in range(11 if sign == "+" else a + 1):
            result = a + b if sign == "+" else a - b
            forms = {"a": str(a), "b": str(b), "c": str(result)}
            entries.append(Entry(f"{a} {sign} {b}", forms))
    return Lexicon(entries, zipf=0.0)


LEXICONS = {
    "child": _children(_NAMES),
    "trait": words("kind, happy, brave, quiet, clever, funny"),
    "color": words("red, blue, green, yellow, purple, orange"),
    "family": words("mother, father, grandma, grandpa, sister, brother"),
    "place": table(
        """
        park | in the park
        garden | in the garden
        beach | at the beach
        forest | in the forest
        lake | by the lake
        farm | on the farm
        river | by the river
        market | at the market
        hill | on the hill
        playground | at the playground
        meadow | in the meadow
        school | at school
        """,
        "at",
    ),
    "flyer": words("kite, balloon, paper plane, ball"),
    "climber": table(
        """
        squirrel | climbed up the tree
        bird | flew to the top
        monkey | jumped from branch to branch
        bear | shook the tree
        cat | climbed to the top
        """,
        "way",
    ),
    "thing": words("hat, book, doll, scarf, toy car, teddy bear, key, ring"),
    "spot": words(
        "under a bench, behind a tree, in the tall grass, under a big leaf, "
        "next to a rock, near the gate"
    ),
    "finder": words("dog, fox, rabbit, duck, mouse, owl"),
    "food": table(
        """
        apple | apples
        cookie | cookies
        cake | cakes
        pear | pears
        banana | bananas
        sandwich | sandwiches
        carrot | carrots
        pie | pies
        """,
        "many",
    ),
    "hungry": words("bird, puppy, kitten, duck, mouse, rabbit"),
    "cup": words("cup, bowl, plate, vase, lamp"),
    "noise": table(
        """
        frog | Ribbit
        cat | Meow
        owl | Hoo
        duck | Quack
        mouse | Squeak
        """,
        "sound",
    ),
    "plant": words("flower, pumpkin, sunflower, bean, rose, tomato"),
    "skill": table(
        """
        swim | swimming
        ride a bike | riding a bike
        skate | skating
        dance | dancing
        whistle | whistling
        paint | painting
        """,
        "ing",
    ),
    "hurt": table(
        """
        bird | wing | flew
        rabbit | leg | hopped
        kitten | paw | ran
        puppy | paw | ran
        fox | leg | ran
        """,
        "part",
        "went",
    ),
    "craft": words("card, picture, bracelet, paper boat, paper star"),
    "sum": _sums("+"),
    "minus": _sums("-"),
    "fact": table(
        """
        What color is the sky | The sky is blue.
        What color is grass | Grass is green.
        What color is snow | Snow is white.
        What color is a banana | A banana is yellow.
        What do bees make | Bees make honey.
        What do cows give us | Cows give us milk.
        Where do fish live | Fish live in water.
        Where do birds live | Birds live in nests.
        How many legs does a dog have | A dog has four legs.
        How many legs does a bird have | A bird has two legs.
        How many legs does a spider have | A spider has eight legs.
        How many days are in a week | There are seven days in a week.
        What is the opposite of big | The opposite of big is small.
        What is the opposite of hot | The opposite of hot is cold.
        What is the opposite of happy | The opposite of happy is sad.
        What is the opposite of day | The opposite of day is night.
        What shines at night | The moon shines at night.
        What shines in the day | The sun shines in the day.
        What is ice made of | Ice is made of water.
        What is the capital of France | The capital of France is Paris.
        What is the capital of China | The capital of China is Beijing.
        """,
        "answer",
    ),
    "animal": table(
        """
        dog | woof
        cat | meow
        cow | moo
        duck | quack
        sheep | baa
        pig | oink
        lion | roar
        frog | ribbit
        """,
        "says",
    ),
}

_OPEN = [
    "Once upon a time, there was a little {hero.kid} named {hero}. "
    "{hero.He} loved to play {place.at}.",
    "One day, {hero} went to the {place} with {hero.his} {family}.",
    "{hero} went to the {place} on a sunny day.",
    "{hero} was a {trait} {hero.kid}. Every day, {hero.he} played {place.at}.",
    "There was once a {trait} {hero.kid} named {hero}, who often walked to the {place}.",
    "A little {hero.kid} named {hero} was {place.at} one morning.",
    "Hello! This is a story about {hero}. {hero.He} was {place.at} one day.",
]
_SLOTS = {"hero": "child", "place": "place", "family": "family", "trait": "trait"}


def _story(name: str, steps: list[list[str]], **slots: str) -> Plot:
    return Plot(name, {**_SLOTS, **slots}, [_OPEN, *steps])


STORIES = [
    _story(
        "stuck",
        [
            [
                "{hero.He} had a {color} {flyer}.",
                "In {hero.his} hand was a {color} {flyer}.",
                "{hero.He} was playing with a {color} {flyer}.",
            ],
            [
                "A strong wind blew the {flyer} into a tall tree.",
                "Then the wind came, and the {flyer} got stuck in a tree.",
            ],
            [
                "{hero} could not reach it and felt sad.",
                "The tree was too tall, so {hero} began to cry.",
            ],
            [
                "{climber.A} saw this and {climber.way}.",
                "Just then, {climber.a} came by and {climber.way}.",
            ],
            [
                "It brought the {color} {flyer} back to {hero}.",
                "Soon the {flyer} was back in {hero.his} hands.",
            ],
            [
                '"Thank you, {climber}!" said {hero}.',
                "{hero} thanked the {climber} and played {place.at} until evening.",
            ],
        ],
        color="color",
        flyer="flyer",
        climber="climber",
    ),
    _story(
        "lost",
        [
            [
                "{hero.He} had lost {hero.his} {color} {thing}.",
                "But {hero.his} {color} {thing} was gone.",
            ],
            [
                "{hero.He} looked everywhere, but could not find it.",
                '"Where is my {thing}?" {hero.he} asked.',
            ],
            [
                "A friendly {finder} said it would help.",
                "{finder.A} heard {hero.him} and came to help.",
            ],
            [
                "They looked and looked until the {finder} found the {thing} {spot}.",
                "The {finder} found the {color} {thing} {spot}.",
            ],
            [
                "{hero} jumped for joy and thanked the {finder}.",
                '"You found my {thing}!" said {hero}. "Thank you!"',
            ],
            [
                "From then on, {hero} took good care of the {thing}.",
                "{hero} held the {thing} tight on every walk to the {place}.",
            ],
        ],
        color="color",
        thing="thing",
        finder="finder",
        spot="spot",
    ),
    _story(
        "share",
        [
            [
                "{hero.He} had {food.a} for lunch.",
                "{hero.His} {family} had given {hero.him} {food.a}.",
            ],
            [
                "Then {hero.he} saw a hungry {hungry}.",
                "A small {hungry} looked at the {food}. It was very hungry.",
            ],
            [
                "{hero} wanted the whole {food}, but {hero.he} felt sorry for the {hungry}.",
                '"You can have some," said {hero}.',
            ],
            [
                "So {hero.he} gave half of the {food} to the {hungry}.",
                "{hero.He} broke the {food} in two, and the {hungry} got one half.",
            ],
            [
                "The {hungry} was not hungry any more.",
                "The {hungry} ate it all and was full.",
            ],
            [
                "{hero} and the {hungry} became friends and often met {place.at}.",
                "{hero} learned that sharing makes two friends happy.",
            ],
        ],
        food="food",
        hungry="hungry",
    ),
    _story(
        "rain",
        [
            [
                "Suddenly it began to rain.",
                "Dark clouds came, and it started to rain.",
            ],
            [
                "{hero} had no umbrella and got very wet.",
                "{hero.He} had left {hero.his} umbrella at home, so {hero.he} got wet.",
            ],
            [
                "{hero.His} friend {other} saw {hero.him} and ran over with an umbrella.",
                "{other} came by with a {color} umbrella.",
            ],
            [
                '"Come under my umbrella," said {other}.',
                "{other} shared the umbrella with {hero}.",
            ],
            [
                "They walked home together, and {hero} got dry.",
                "Under the umbrella, {hero} did not get wet any more.",
            ],
            [
                "The next day, {hero} took an umbrella to the {place}.",
                '"Thank you, {other}!" said {hero}.',
            ],
        ],
        other="child",
        color="color",
    ),
    _story(
        "broken",
        [
            [
                "{hero.He} went home and ran through the house.",
                "Back at home, {hero.he} ran too fast.",
            ],
            [
                "{hero.He} hit the table, and the {color} {cup} fell and broke.",
                "Crash! {hero.He} knocked over a {color} {cup}, and it broke.",
            ],
            [
                "{hero} was afraid, but {hero.he} told {hero.his} {family} the truth.",
                '"I am sorry, I broke the {cup}," {hero.he} told {hero.his} {family}.',
            ],
            [
                '"Thank you for telling me," said {hero.his} {family}.',
                "{hero.His} {family} was not angry.",
            ],
            [
                "Together they glued the {cup}.",
                "They fixed the {color} {cup} with glue.",
            ],
            [
                "From then on, {hero} walked slowly in the house.",
                "{hero} was glad that {hero.he} had told the truth.",
            ],
        ],
        color="color",
        cup="cup",
    ),
    _story(
        "noise",
        [
            [
                "When it got dark {place.at}, {hero.he} heard a strange noise.",
                "In the evening, something moved in the dark.",
            ],
            [
                '"Who is there?" asked {hero}. {hero.His} heart beat fast.',
                "{hero} was scared and held {hero.his} breath.",
            ],
            [
                "{hero.He} took a lamp and went to look.",
                "But {hero.he} was brave and turned on a light.",
            ],
            [
                '"{noise.sound}!" It was only a little {noise}.',
                'It was just a small {noise}. "{noise.sound}!" it said.',
            ],
            [
                "{hero} laughed and petted the {noise}.",
                "{hero} laughed, for the {noise} was even more scared.",
            ],
            [
                "After that, {hero} was not afraid of the dark.",
                "That night, {hero} slept well.",
            ],
        ],
        noise="noise",
    ),
    _story(
        "seed",
        [
            [
                "{hero.He} found a tiny seed there.",
                "{hero.His} {family} gave {hero.him} a tiny seed.",
            ],
            [
                "{hero} put the seed into the ground and gave it water.",
                "{hero.He} planted the seed and watered it.",
            ],
            [
                "For many days nothing happened, but {hero} waited.",
                "Every day {hero} gave it water and waited.",
            ],
            [
                "Then, one morning, there was a little green leaf.",
                "At last, something green came out of the ground.",
            ],
            [
                "It grew and grew, and it became a big {plant}.",
                "Soon a beautiful {plant} stood {place.at}.",
            ],
            [
                "{hero} was proud of the {plant}.",
                "{hero} showed the {plant} to {hero.his} {family}.",
            ],
        ],
        plant="plant",
    ),
    _story(
        "learn",
        [
            [
                "{hero.He} wanted to {skill}, but {hero.he} did not know how.",
                "{hero.He} could not {skill} yet.",
            ],
            [
                "The first time, it went wrong, and {hero} wanted to give up.",
                "{hero.He} tried once and failed.",
            ],
            [
                '"Try again," said {hero.his} friend {other}.',
                "Then {other} came and showed {hero.him} how.",
            ],
            [
                "So {hero} tried again every day.",
                "{hero} and {other} practiced {skill.ing} {place.at} all week.",
            ],
            [
                "At last {hero} could {skill}!",
                "One day it worked, and {hero} could {skill}.",
            ],
            [
                "{other} clapped, and {hero} was very proud.",
                '"I can {skill}!" {hero} told {other}.',
            ],
        ],
        skill="skill",
        other="child",
    ),
    _story(
        "hurt",
        [
            [
                "There {hero.he} saw a {hurt} with a hurt {hurt.part}.",
                "A little {hurt} lay on the ground. Its {hurt.part} was hurt.",
            ],
            [
                "{hero} picked it up and took it home.",
                "{hero.He} carried the {hurt} home.",
            ],
            [
                "{hero.He} put a bandage on its {hurt.part}.",
                "{hero.His} {family} helped to clean the {hurt.part}.",
            ],
            [
                "Every day {hero} gave the {hurt} food and water.",
                "{hero} took care of the {hurt} for a week.",
            ],
            [
                "Soon the {hurt.part} was well again.",
                "After some days, the {hurt} felt better.",
            ],
            [
                "The {hurt} {hurt.went} back to the {place}, and {hero} waved.",
                "The happy {hurt} {hurt.went} around {hero} and was {hero.his} friend.",
            ],
        ],
        hurt="hurt",
    ),
    _story(
        "gift",
        [
            [
                "It was {other}'s birthday, but {hero} had no gift.",
                "{hero.His} friend {other} had a birthday, and {hero} had no money.",
            ],
            [
                "{hero} had an idea. {hero.He} made a {color} {craft}.",
                "So {hero.he} sat down and made a {color} {craft}.",
            ],
            [
                "It took the whole morning.",
                "{hero.He} worked on it for a long time.",
            ],
            [
                "At the party, {hero} gave the {craft} to {other}.",
                '"Happy birthday!" said {hero} and gave {other} the {craft}.',
            ],
            [
                '"A {color} {craft}!" said {other}. "I love it!"',
                "{other} loved the {craft} more than all other gifts.",
            ],
            [
                "{hero} learned that the best gifts come from the heart.",
                "{other} hugged {hero}, and they played {place.at} all day.",
            ],
        ],
        other="child",
        color="color",
        craft="craft",
    ),
]

STORY_REQUESTS = [
    "Tell me a story about {hero}.",
    "Please tell me a story about a {hero.kid} named {hero}.",
    "Write a short story about {hero}.",
    "Can you tell me a story about {hero}?",
    "Tell me a story about {hero}",
]

_TWO = "{hero} is {place.at}. {other} is {there.at}."
_HAVE = "{hero} has a {color} {toy}. {other} has a {hue} {tool}."
# Training begins with harder names than anyone will ask for: nothing else makes a model
# copy letter by letter as early.
PRACTICE = {"child": _children(_LONG_NAMES)}
# Later it reads shorter texts than anyone will ask for. In a story the color is one word
# far back among eighty, and 21,500 steps never found it: colors stayed a guess. In these
# it is one of ten, and with them beside the stories 600 steps were enough for both.
DRILLS = [
    (
        f"drill_{thing}",
        {"hero": "child", "color": "color", "thing": thing},
        [
            "{hero} has a {color} {thing}. What color is the {thing}?",
            "{hero} has a {color} {thing}.",
        ],
        answer,
    )
    for thing, answer in (
        ("flyer", "The {thing} is {color}."),
        ("thing", "{hero} likes the {color} {thing}."),
    )
]

# name, slots, ways to ask, the answer
QUESTIONS = [
    (
        "add",
        {"s": "sum"},
        [
            "What is {s.a} + {s.b}?",
            "{s.a} + {s.b} = ?",
            "How much is {s.a} plus {s.b}?",
            "What is {s.a}+{s.b}?",
            "{s.a} + {s.b}",
        ],
        "{s.a} + {s.b} = {s.c}.",
    ),
    (
        "subtract",
        {"s": "minus"},
        [
            "What is {s.a} - {s.b}?",
            "{s.a} - {s.b} = ?",
            "How much is {s.a} minus {s.b}?",
        ],
        "{s.a} - {s.b} = {s.c}.",
    ),
    (
        "add_story",
        {"s": "sum", "hero": "child", "food": "food"},
        [
            "{hero} has {s.a} {food.many} and gets {s.b} more. "
            "How many {food.many} does {hero} have?",
        ],
        "{hero} has {s.c} {food.many}.",
    ),
    (
        "subtract_story",
        {"s": "minus", "hero": "child", "food": "food"},
        [
            "{hero} has {s.a} {food.many} and eats {s.b}. "
            "How many {food.many} are left?",
        ],
        "There are {s.c} {food.many} left.",
    ),
    (
        "where_first",
        {"hero": "child", "other": "child", "place": "place", "there": "place"},
        [_TWO + " Where is {hero}?"],
        "{hero} is {place.at}.",
    ),
    (
        "where_second",
        {"hero": "child", "other": "child", "place": "place", "there": "place"},
        [_TWO + " Where is {other}?"],
        "{other} is {there.at}.",
    ),
    (
        "who_first",
        {
            "hero": "child",
            "other": "child",
            "color": "color",
            "hue": "color",
            "toy": "flyer",
            "tool": "thing",
        },
        [_HAVE + " Who has the {toy}?"],
        "{hero} has the {toy}.",
    ),
    (
        "who_second",
        {
            "hero": "child",
            "other": "child",
            "color": "color",
            "hue": "color",
            "toy": "flyer",
            "tool": "thing",
        },
        [_HAVE + " Who has the {tool}?"],
        "{other} has the {tool}.",
    ),
    (
        "color_first",
        {
            "hero": "child",
            "other": "child",
            "color": "color",
            "hue": "color",
            "toy": "flyer",
            "tool": "thing",
        },
        [_HAVE + " What color is the {toy}?"],
        "The {toy} is {color}.",
    ),
    (
        "color_second",
        {
            "hero": "child",
            "other": "child",
            "color": "color",
            "hue": "color",
            "toy": "flyer",
            "tool": "thing",
        },
        [_HAVE + " What color is the {tool}?"],
        "The {tool} is {hue}.",
    ),
    (
        "fact",
        {"f": "fact"},
        ["{f}?", "Tell me: {f}?", "I have a question. {f}?", "{f}"],
        "{f.answer}",
    ),
    (
        "animal",
        {"x": "animal"},
        [
            "What does the {x} say?",
            "What does {x.a} say?",
            "What sound does {x.a} make?",
        ],
        "{x.The} says {x.says}.",
    ),
    (
        "greeting",
        {},
        [
            "Hello!",
            "Hi",
            "Hello",
            "Hi!",
            "Hello, how are you?",
            "Good morning!",
            "hello",
            "hi",
        ],
        "Hello! I am happy to talk with you.",
    ),
    (
        "name",
        {"hero": "child"},
        [
            "Hello, my name is {hero}.",
            "My name is {hero}.",
            "I am {hero}.",
            "Hi, I am {hero}!",
        ],
        "Hello, {hero}! Nice to meet you.",
    ),
    (
        "self",
        {},
        [
            "Who are you?",
            "What is your name?",
            "What are you?",
            "What can you do?",
            "who are you",
        ],
        "I am Folo, a very small language model. I tell stories and answer easy questions.",
    ),
    (
        "thanks",
        {},
        ["Thank you!", "Thanks!", "Thank you", "thanks"],
        "You are welcome!",
    ),
    ("bye", {}, ["Goodbye!", "Bye!", "See you!", "bye"], "Goodbye! See you soon."),
]
SYSTEM = ["You are a helpful assistant.", "You are Folo.", "Answer in English."]
