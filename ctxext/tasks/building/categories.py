"""Plain nouns by category: what a label of an example in context can stand for."""

CATEGORIES = {
    name: tuple(words.split())
    for name, words in {
        "animals": """
            badger bear camel cow deer dog donkey elephant fox frog giraffe goat horse lion monkey
            mouse pig rabbit sheep squirrel tiger wolf
        """,
        "birds": """
            blackbird crow cuckoo duck eagle falcon goose gull hawk heron kingfisher lark magpie owl
            pelican pigeon raven robin sparrow stork swallow swan
        """,
        "fruit": """
            apple apricot banana blackberry cherry cranberry fig grape grapefruit lemon lime mango
            melon nectarine orange peach pear pineapple plum raspberry strawberry watermelon
        """,
        "vegetables": """
            asparagus aubergine beetroot broccoli cabbage carrot cauliflower celery cucumber garlic
            kale leek lettuce onion parsnip pea potato pumpkin radish spinach tomato turnip
        """,
        "furniture": """
            armchair bed bench bookcase bureau cabinet chair chest cot couch cradle cupboard desk
            dresser footstool hammock mattress settee sideboard sofa stool wardrobe
        """,
        "clothes": """
            apron blouse boot cap cardigan coat dress glove hat jacket jumper mitten sandal scarf
            shawl shirt shoe skirt slipper sock trousers waistcoat
        """,
        "instruments": """
            accordion banjo bassoon bugle cello clarinet cymbal drum fiddle flute guitar harp
            harpsichord lute mandolin oboe organ piano saxophone trombone trumpet violin
        """,
        "tools": """
            axe chainsaw chisel crowbar drill file hammer hatchet hoe lathe pickaxe pliers rake saw
            scissors screwdriver shovel sickle spade spanner tongs wrench
        """,
        "vehicles": """
            ambulance barge bicycle boat bus canoe car carriage ferry helicopter lorry motorbike
            plane sailboat scooter ship sledge submarine taxi tractor train tram
        """,
        "drinks": """
            ale beer brandy champagne cider cocoa coffee gin juice lemonade liqueur mead milk port
            rum sherry soda tea vodka water whisky wine
        """,
        "trees": """
            acacia alder ash aspen beech birch cedar chestnut cypress elm fir hawthorn hazel larch
            maple oak pine poplar rowan spruce willow yew
        """,
        "weather": """
            blizzard breeze cloudburst cyclone downpour drizzle drought fog frost gale hail
            heatwave hurricane lightning mist rain sleet snow storm thunder tornado wind
        """,
    }.items()
}
