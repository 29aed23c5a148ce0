#include "cli/eval/tasks/words.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace sparsekv {

namespace {

constexpr const char* kNouns[] = {
    "acorn",    "altar",   "anchor",  "ankle",   "apple",   "apron",   "arrow",    "ash",
    "axe",      "bank",    "barley",  "barn",    "barrel",  "basket",  "beam",     "bean",
    "bear",     "beard",   "bed",     "bee",     "bell",    "belt",    "bench",    "berry",
    "bird",     "blanket", "blossom", "boat",    "bolt",    "bone",    "book",     "boot",
    "bottle",   "bow",     "bowl",    "box",     "branch",  "brass",   "bread",    "brick",
    "bridge",   "brook",   "broom",   "brush",   "bucket",  "butter",  "button",   "cabin",
    "cake",     "calf",    "camel",   "candle",  "cane",    "cape",    "cart",     "castle",
    "cat",      "cattle",  "cave",    "cedar",   "cellar",  "chain",   "chair",    "chalk",
    "cheese",   "chest",   "child",   "circle",  "city",    "clay",    "cliff",    "cloak",
    "clock",    "cloth",   "cloud",   "clover",  "coal",    "coast",   "coat",     "coin",
    "collar",   "column",  "comb",    "copper",  "cord",    "corn",    "corner",   "cotton",
    "couch",    "court",   "cow",     "crane",   "cream",   "creek",   "crop",     "cross",
    "crow",     "crown",   "cup",     "curtain", "deer",    "desert",  "desk",     "dish",
    "ditch",    "dog",     "donkey",  "door",    "dove",    "dragon",  "drum",     "duck",
    "dust",     "eagle",   "ear",     "egg",     "elbow",   "elm",     "ember",    "farm",
    "feast",    "feather", "fence",   "fern",    "field",   "fig",     "finger",   "fire",
    "fish",     "flag",    "flame",   "flask",   "flax",    "fleece",  "flock",    "flood",
    "floor",    "flour",   "flower",  "flute",   "foot",    "forest",  "fork",     "fort",
    "fountain", "fox",     "frog",    "fruit",   "furnace", "garden",  "garment",  "gate",
    "glass",    "glove",   "goat",    "gold",    "goose",   "grain",   "grape",    "grass",
    "gravel",   "grove",   "hail",    "hall",    "hammer",  "hand",    "harbour",  "hare",
    "harp",     "harvest", "hat",     "hawk",    "hay",     "hedge",   "heel",     "herb",
    "herd",     "hill",    "hinge",   "hive",    "honey",   "hood",    "hook",     "horn",
    "horse",    "house",   "ink",     "iron",    "island",  "ivory",   "jar",      "jewel",
    "kettle",   "key",     "kid",     "king",    "kitchen", "kite",    "knee",     "knife",
    "knot",     "ladder",  "lake",    "lamb",    "lamp",    "lane",    "leaf",     "leather",
    "lemon",    "lentil",  "letter",  "lily",    "linen",   "lion",    "loaf",     "lock",
    "log",      "loom",    "mantle",  "maple",   "marble",  "market",  "mast",     "meadow",
    "melon",    "milk",    "mill",    "mirror",  "moon",    "moss",    "mountain", "mouse",
    "mule",     "myrtle",  "nail",    "needle",  "nest",    "net",     "night",    "oak",
    "oar",      "oil",     "olive",   "onion",   "orchard", "oven",    "owl",      "ox",
    "palace",   "palm",    "paper",   "path",    "pearl",   "pebble",  "pen",      "pepper",
    "pigeon",   "pillar",  "pillow",  "pine",    "pipe",    "pitcher", "plain",    "plank",
    "plate",    "plough",  "plum",    "pond",    "pool",    "porch",   "pot",      "prince",
    "purse",    "rain",    "ram",     "raven",   "reed",    "ribbon",  "ring",     "river",
    "road",     "robe",    "rock",    "roof",    "root",    "rope",    "rose",     "ruby",
    "sack",     "saddle",  "sail",    "salt",    "sand",    "scale",   "scroll",   "sea",
    "seal",     "seed",    "shadow",  "sheep",   "shell",   "shield",  "ship",     "shirt",
    "shoe",     "shore",   "sickle",  "silk",    "silver",  "smith",   "smoke",    "snake",
    "snow",     "soap",    "song",    "spade",   "sparrow", "spear",   "spoon",    "spring",
    "staff",    "star",    "stone",   "stool",   "storm",   "straw",   "street",   "sugar",
    "sun",      "swan",    "sword",   "table",   "tail",    "tent",    "thorn",    "thread",
    "throne",   "thunder", "timber",  "tin",     "tooth",   "torch",   "tower",    "town",
    "trumpet",  "tunnel",  "turtle",  "valley",  "vase",    "veil",    "vessel",   "village",
    "vine",     "vinegar", "wagon",   "wall",    "walnut",  "water",   "wax",      "well",
    "whale",    "wheat",   "wheel",   "whip",    "willow",  "wind",    "window",   "wine",
    "wing",     "winter",  "wolf",    "wood",    "wool",    "yoke",
};

constexpr const char* kAdjectives[] = {
    "ancient", "bitter", "black",  "blue",    "brave",  "bright", "broad",  "broken", "brown",
    "clean",   "clear",  "cold",   "common",  "cruel",  "dark",   "dead",   "deep",   "dry",
    "early",   "empty",  "evil",   "fair",    "faint",  "fat",    "fierce", "fine",   "free",
    "fresh",   "gentle", "golden", "good",    "great",  "green",  "grey",   "happy",  "heavy",
    "high",    "hidden", "hollow", "holy",    "humble", "idle",   "large",  "late",   "lean",
    "light",   "little", "lofty",  "long",    "lost",   "loud",   "low",    "mighty", "narrow",
    "new",     "noble",  "old",    "open",    "pale",   "plain",  "poor",   "proud",  "pure",
    "quick",   "quiet",  "red",    "rich",    "ripe",   "rough",  "round",  "sacred", "scarlet",
    "secret",  "sharp",  "short",  "silent",  "simple", "slow",   "small",  "smooth", "soft",
    "sour",    "square", "stiff",  "strange", "strong", "sweet",  "swift",  "tall",   "tender",
    "thick",   "thin",   "tired",  "true",    "warm",   "weak",   "white",  "wide",   "wild",
    "wise",    "young",
};

}  // namespace

std::span<const char* const> Nouns() { return kNouns; }
std::span<const char* const> Adjectives() { return kAdjectives; }

uint32_t MostKeys() {
  return static_cast<uint32_t>(std::size(kNouns) * (std::size(kAdjectives) + 1));
}

std::vector<std::string> DrawKeys(uint32_t count, const std::string& joint, SeededRandom& random) {
  CHECK_LE(count, MostKeys());
  std::vector<std::string> keys(std::begin(kNouns), std::end(kNouns));
  random.Shuffle(keys);
  if (count > keys.size()) {
    const auto more = count - static_cast<uint32_t>(keys.size());
    for (std::string& pair : DrawPairs(more, joint, random)) keys.push_back(std::move(pair));
    random.Shuffle(keys);
  }
  keys.resize(count);
  return keys;
}

std::vector<std::string> DrawPairs(uint32_t count, const std::string& joint, SeededRandom& random) {
  const size_t nouns = std::size(kNouns), all = nouns * std::size(kAdjectives);
  CHECK_LE(count, all);
  std::vector<uint32_t> places(all);
  for (uint32_t i = 0; i < all; ++i) places[i] = i;
  random.Shuffle(places);
  std::vector<std::string> pairs;
  for (uint32_t i = 0; i < count; ++i) {
    pairs.push_back(kAdjectives[places[i] / nouns] + joint + kNouns[places[i] % nouns]);
  }
  return pairs;
}

std::string DrawNumber(uint32_t digits, SeededRandom& random) {
  std::string number(1, static_cast<char>('1' + random.Below(9)));
  while (number.size() < digits) number += static_cast<char>('0' + random.Below(10));
  return number;
}

std::string DrawLetters(uint32_t count, bool upper, SeededRandom& random) {
  std::string letters;
  while (letters.size() < count) {
    letters += static_cast<char>((upper ? 'A' : 'a') + random.Below(26));
  }
  return letters;
}

std::string DrawUuid(SeededRandom& random) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string uuid;
  for (int i = 0; i < 32; ++i) {
    if (i == 8 || i == 12 || i == 16 || i == 20) uuid += '-';
    uuid += i == 12 ? '4' : i == 16 ? kDigits[8 + random.Below(4)] : kDigits[random.Below(16)];
  }
  return uuid;
}

}  // namespace sparsekv
