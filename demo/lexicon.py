"""English words that the samples' names are drawn from.

Many, so that a name is read from the prompt instead of remembered. Knows nothing of the tasks and of how
words are drawn (demo/words.py).
"""

from __future__ import annotations

# What tables and tools are about.
THINGS = """
    acorn actor airport album anchor ankle apron arch arena armor arrow article artist attic author
    badge baker balcony balloon band banner barber barn barrel basin basket beacon beetle belt bench
    bicycle bird biscuit blanket boat bonnet boot bottle boulder bowl bracelet branch bread bridge broom
    bucket building bus butcher butter button cabin cabinet cable cactus camel camera campus canal
    candle canoe canvas captain carpet carriage castle cat cathedral cave cellar chain chair channel
    chapel cheese chef chimney church cinema circus clerk clinic cloak clock cloud club coach coat coin
    college comet compass concert contract cook cottage country cousin cradle crane crater crew crown
    cupboard curtain cushion customer dancer dentist desert desk device diary dish doctor dolphin donkey
    door dragon drawer driver drum eagle editor elbow elephant employee engine envelope exam factory
    falcon farm farmer feather fence festival film flag flight flower flute forest fork fountain fox
    frame fridge gallery game garage garden gate giant glacier glove goat guest guitar hammer hamster
    harbor harp hat hawk helmet hill horse hospital hotel insect island jacket jar jewel journal judge
    kettle kitchen kite knight ladder lake lamp lantern lawyer league lemon lesson library lighthouse
    lion lizard lobster locket machine magnet manager mansion market mask mayor meadow meal melon member
    meteor mill miner mirror monk monkey mosque mountain movie museum napkin needle nephew nest nurse
    oak ocean office orchard orchestra otter oven owl owner oyster package paddle painter palace parade
    park parrot passenger patient peach peacock pelican pencil penguin photo pianist piano pigeon pillow
    pilot pirate pistol planet plate player plum pocket poem pond pony port portrait potato product
    professor puppet puzzle quarry rabbit radio raft railway recipe reef region ribbon rifle river robot
    rocket roof rope sailor saloon sandal satellite scarf school scooter sculptor seller shark shelf
    shelter ship shirt shop shovel singer skater sketch sled snail sofa soldier song spider spoon
    squirrel stable stadium statue stool stove student studio submarine suitcase supplier swan sword
    tailor teacher team telescope temple tent theater thief ticket tiger toaster toilet tortoise tour
    tower town tractor train trumpet tunnel turtle umbrella uncle vase vehicle vessel village violin
    visitor volcano wagon waiter wallet walrus warehouse website whale wheel whistle wizard wolf worker
    yacht zebra zoo
    """
# What is counted or measured of them.
MEASURES = """
    age altitude amount angle area attendance balance bonus breadth brightness budget calories capacity
    charge cost credit debt delay density deposit depth diameter discount distance dose duration energy
    expense fare fee fine floor flow force frequency fuel growth height humidity income intake interest
    length lifespan load mass mileage moisture noise output pace payload penalty pension population
    power premium pressure price profit radius rainfall rank rate rating rebate rent revenue salary
    score seats shift size slope speed stake stock strength tariff tax temperature tenure thickness tide
    tonnage torque traffic turnover usage velocity visits voltage volume votes wage warranty weight
    width wind yield
    """
# What is written of them.
LABELS = """
    accent address alias allergy ancestor anthem author badge blend bloodtype brand breed category
    chapter city climate code color comment county crest currency department dialect diet direction
    director district dosage email emblem era ethnicity fabric faculty family flavor folder format
    founder fragrance gender genre grade habitat handle hobby holiday idiom initial instrument jargon
    job label language layout level location logo maker mascot material medium method mood motto name
    nationality nickname occupation origin password pattern phase phone platform position profile
    pronoun prefix province publisher quality religion remark role ruler season sector signature slogan
    species sponsor sport state street style subject suburb suffix surname symbol tag texture theme
    title tone topic trade tribe tune vendor venue vibe warning zone
    """
VERBS = """
    accept adjust admire archive arrange assign attach bake block boil book borrow brush build bury buy
    cancel carve catch charge check choose clean climb close collect connect convert cook copy count
    cover cut deliver design dig disable drain draw drop dry enable enter erase export fetch file fill
    filter find fix fly fold forward freeze get grab guard guess hang heat hide hire hold import inspect
    install invite join keep kick launch lease lend lift lock log mail mark measure melt mend merge mix
    mount move name notify open pack paint park pause pay peel pick pin plan plant play polish post pour
    print publish pull push rank read record refill refund register rent repair reply report reserve
    reset resize rest return review ring rotate save scan search sell send share shift ship show sign
    sketch sort spin split start stop store study submit swap sync tag test throw tie tow track trade
    trim tune unlock update upload wash watch water weigh wipe wrap
    """
ADJECTIVES = """
    active ancient annual backup basic bitter blue bold brave brief bright broad busy calm central cheap
    clean clever cold cool copper crisp cruel curly daily damp dear deep distant double dry dusty eager
    early easy empty exact faint fair fancy fast final fine firm flat foreign fresh front fuzzy gentle
    global golden grand gray great happy hard harsh heavy hidden hollow honest hot huge humble icy idle
    inner iron jolly junior kind large late lazy left light linear little local lonely loose loud lucky
    main manual master mild minor misty modern narrow native neat noisy north novel odd open outer pale
    plain polite poor private proud public pure quick quiet rapid rare raw remote rich rigid ripe rough
    round royal rural safe salty scarlet secret senior sharp shiny short shy silent silver simple single
    slim slow smooth soft solid sour south spare square steep stiff strange strict strong sweet tall
    tame thick thin tidy tiny tired total tough urgent usual vague valid vast vivid warm weak weekly
    west wet white wide wild wise wooden yellow
    """
NOUNS = f"{THINGS} {MEASURES} {LABELS}"
# Words of SQL as SQLite reads it, and of questions: nothing that is made up may be one of them.
RESERVED = """
    a abort above action add after all alter always among an analyze and answer are as asc at attach
    autoincrement average avg before begin begins below between by cascade case cast check collate column
    commit compute conflict constraint count create cross current database default deferrable deferred
    delete desc detach different distinct do does drop each else end equals escape every except exclude
    exclusive exists explain fail false filter find first following for foreign from full generated give
    given glob greater group groups has have having highest how id if ignore immediate in index indexed
    initially inner insert instead intersect into is isnull join keep key largest last least left less like
    limit list lowest many match materialized max maximum mean min minimum more most natural no not nothing
    notnull null nulls number of offset on once or order others outer over partition per plan pragma
    preceding primary query raise range recursive references regexp reindex release rename repeats replace
    restrict returning right rollback row rowid rows savepoint select set show smallest sort starts sum
    summed table temp temporary text than that the their then there these those ties to total transaction
    trigger true unbounded under union unique update using vacuum value values view virtual what when where
    which whose window with without yes
    """
