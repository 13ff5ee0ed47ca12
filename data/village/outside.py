"""
What is not of the village: words of the wide world, of other languages, and of none.

Each function draws a text from a random.Random. Its pattern, a regular expression of all that it
can draw, reads the text back.
"""
OPENINGS = [o.strip() for o in """
    What is, What are, Who is, Who invented, Who wrote, Where is, Where can I buy, When was, Why is,
    Why do people like, How do I make, How does it work with, How far is, How much does it cost,
    How can I, Can you explain, Can you draw, Could you find, Do you like, Have you seen, Is there,
    Are there any, Which is better for, Tell me about, Tell me a joke about, Write a poem about,
    Write a song about, Write a story about, Give me, Name three, Translate, Explain, Describe,
    Compare, I want, I need, I am looking for, Let us talk about, Please send, What do you think of,
    What is the difference between, What is the price of, Show me, Help me with, Say something on
    """.split(",")]
WORLD = """
    airport album algebra ambulance angel apartment army artist astronaut atom avenue banana bank
    baseball battery beach beer bicycle biology birthday blanket blood boat bone bottle boxing
    brain bus business butterfly cable calendar camera camp cancer candle capital carpet castle
    cathedral ceiling century champion chemistry chess chocolate cinema circus citizen city
    classroom climate cloud coal coffee college comet company concert contract copper country
    court credit cricket crime crocodile crown currency dance debt dentist desert diamond
    dictionary disease doctorate dollar dolphin dragon dream driver drug eagle earthquake economy
    election electricity elephant email energy engine engineer euro evening exam factory fashion
    festival fever film finger fire flag flight flood football forest fuel galaxy gallery garage
    gas geography ghost giraffe glacier glass glue gold golf government grammar gravity guitar
    hair harbour headache heart helicopter history hockey holiday homework hotel humour infection
    insurance internet invention iron island jacket jungle justice kangaroo kingdom kitchen
    laboratory language laptop laser law lawyer leather lecture lemon library licence lightning
    lion literature logic lottery love luck lunch machine magazine magic magnet mail management
    map mathematics mayor medicine melody memory metal microscope million minister mirror mobile
    money monkey month motor mountain museum music mystery nation nature needlework network
    newspaper novel number nurse office oil olympics opera orange orchestra oxygen palace paper
    parliament partner passport password patient peace pension pepper philosophy phone photograph
    physics pilot pirate pizza planetarium plastic poetry police politics pollution population
    potato power president prison prize professor program psychology pyramid radio railway
    religion rent republic restaurant revolution robot rocket salary salt satellite school
    science screen sculpture season secret shadow shark shower signal silver skeleton sky sleep
    smoke snow soccer software soldier song space speed spider sport stadium star station statue
    storm strategy student subway sugar suitcase summer sun surgery swimming symphony system
    taxes taxi tea technology telephone telescope television temperature tennis theatre theory
    thunder ticket tiger tobacco tomato tornado tourist traffic travel treasure tunnel turtle
    umbrella universe university vaccine vampire vegetable violin virus vitamin volcano wallet
    war weapon weather website wedding whale wheel wine winter wizard wolf world yoga zebra zoo
    """.split()
JOINTS = [" ", " of the ", " in the ", " and ", " for a ", " with ", " without "]
FOREIGN = """
    ich du er wir haben sein nicht heute morgen Haus Wasser schön können warum Straße gehen
    wieder immer vielleicht Freund lesen je tu nous vous être avoir pas aujourd'hui maison eau
    belle pourquoi rue aller encore toujours ami lire demain temps yo tú ella nosotros ser tener
    hoy casa agua bonita calle ir otra vez siempre amigo leer mañana tiempo io lui noi essere
    avere oggi acqua bella perché strada andare ancora sempre amico leggere domani ego nos esse
    habere hodie domus aqua pulchra via semper amicus ja ty my być mieć dziś dom woda piękna
    ulica zawsze przyjaciel jeg du vi har ikke dag hus vann vakker gate alltid venn eu ele nós
    hoje água rua sempre
    """.split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(rng):
    """'volcano of the school'"""
    chosen = rng.sample(WORLD, rng.randint(1, 3))
    return rng.choice(["", "the ", "a "]) + "".join(
        word + joint for word, joint in zip(chosen, rng.choices(JOINTS, k=len(chosen) - 1) + [""]))


def foreign(rng):
    return " ".join(rng.sample(FOREIGN, rng.randint(2, 6))).capitalize() + rng.choice(".?!")


def babble(rng):
    """Words that mean nothing, as a cat on the keyboard would type them."""
    return " ".join("".join(rng.choices(LETTERS, k=rng.randint(2, 7)))
                    for _ in range(rng.randint(1, 3)))


def any_of(texts):
    return "(?:" + "|".join(texts) + ")"


WORDS = f"(?:the |a )?{any_of(WORLD)}(?:{any_of(JOINTS)}{any_of(WORLD)})*"
TONGUES = f"(?i:{any_of(FOREIGN)}(?: {any_of(FOREIGN)})*)[.?!]"
BABBLE = "[a-z]{2,7}(?: [a-z]{2,7}){0,2}"
DRAWN = {"world": (words, WORDS), "foreign": (foreign, TONGUES),
         "babble": (babble, BABBLE), "babble2": (babble, BABBLE)}
