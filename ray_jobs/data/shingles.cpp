// Words, shingles, MinHash signatures and band keys of texts in one pass over their UTF-8.
//
// Definitions, which `ray_jobs.data.minhash` states in Python and the tests compare:
//     word     a run of non-space characters, as `str.split` sees them; ASCII letters are lower-cased here, others by
//              the caller
//     shingle  n neighbouring words; a text of at most n words is one shingle
//     hash     of a word: its bytes in groups of 8, little-endian, each mixed in; then finalised. Of a shingle: a
//              polynomial over its words' hashes, finalised again. Words are finalised BEFORE they are combined: with
//              one multiplier for both steps, texts such as `k 1 20` and `k 2 10` collide.
//     minimum  of permutation p over all shingles: a[p] * fmix32(hash's low 32 bits) + b[p] mod 2^32, datasketch's
//              "affine32"
//     band     `rows` minima, hashed to 64 bits

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Size = std::int64_t;
using U64 = std::uint64_t;
using U32 = std::uint32_t;

constexpr U64 kWordMultiplier = 0x9E3779B97F4A7C15u;
constexpr U64 kShingleMultiplier = 0xD1342543DE82EF95u;

U64 finalise(U64 x) {
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9u;
  x ^= x >> 32;
  x *= 0x94D049BB133111EBu;
  return x ^ (x >> 29);
}

U32 fmix32(U32 x) {
  x ^= x >> 16;
  x *= 0x85EBCA6Bu;
  x ^= x >> 13;
  x *= 0xC2B2AE35u;
  return x ^ (x >> 16);
}

// Length in bytes of the space at `at` that is not ASCII, 0 if there is none: those of Python's `str.isspace`.
int wide_space_length(const unsigned char* at, const unsigned char* end) {
  const unsigned char c = *at;
  if (c < 0xC2 || end - at < 2) return 0;
  if (c == 0xC2) return at[1] == 0x85 || at[1] == 0xA0 ? 2 : 0;
  if (c > 0xE3 || c < 0xE1 || end - at < 3) return 0;
  const U32 code = (c & 0x0Fu) << 12 | (at[1] & 0x3Fu) << 6 | (at[2] & 0x3Fu);
  const bool is_space = code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
                        code == 0x202F || code == 0x205F || code == 0x3000;
  return is_space ? 3 : 0;
}

U64 load(const unsigned char* from) {
  U64 group;
  std::memcpy(&group, from, 8);
  return group;
}

// A text's bytes with ASCII letters lowered, and for each byte whether it is of a space: 0xFF or 0. Behind the text
// both have a group of spaces, so that groups can be read at any place.
struct Classified {
  std::vector<unsigned char> lowered, space;

  void fill(const unsigned char* text, Size length) {
    const std::size_t room = static_cast<std::size_t>(length) + 16;
    if (lowered.size() < room) {
      lowered.resize(room);
      space.resize(room);
    }
    std::memset(space.data() + length, 0xFF, 16);
    if (classify(text, length, lowered.data(), space.data()) < 0x80) return;
    for (Size i = 0; i < length; ++i)
      if (const int bytes = wide_space_length(text + i, text + length)) std::memset(space.data() + i, 0xFF, bytes);
  }

  // Returns all bytes or-ed together. The compiler makes vectors of the loop.
  static unsigned char classify(const unsigned char* __restrict text, Size length, unsigned char* __restrict to,
                                unsigned char* __restrict is_space) {
    unsigned char any = 0;
    for (Size i = 0; i < length; ++i) {
      const unsigned char c = text[i];
      any |= c;
      to[i] = static_cast<unsigned char>(c + (static_cast<unsigned char>(c - 'A') < 26 ? 32 : 0));
      is_space[i] = (c == ' ') | (static_cast<unsigned char>(c - 0x09) < 5) | (static_cast<unsigned char>(c - 0x1C) < 4)
                        ? 0xFF
                        : 0;
    }
    return any;
  }
};

// Appends the hash of each word, group by group of 8 bytes.
void hash_words(const unsigned char* text, Size length, Classified& classified, std::vector<U64>& words) {
  classified.fill(text, length);
  const unsigned char *lowered = classified.lowered.data(), *space = classified.space.data();
  for (Size at = 0;;) {
    while (space[at]) {
      if (at >= length) return;
      ++at;
    }
    const Size start = at;
    U64 hash = 0, spaces;
    while ((spaces = load(space + at)) == 0) {
      hash = (hash ^ load(lowered + at)) * kWordMultiplier;
      hash ^= hash >> 32;
      at += 8;
    }
    const int rest = __builtin_ctzll(spaces) / 8;  // bytes of the last group, 0 to 7
    hash = (hash ^ (load(lowered + at) & ((U64{1} << 8 * rest) - 1))) * kWordMultiplier;
    at += rest;
    words.push_back(finalise(hash ^ static_cast<U64>(at - start)));
  }
}

// Sorts well-mixed numbers: two counting passes over the upper 16 bits leave few neighbours to exchange, which takes a
// fifth of the time of `std::sort` for a text of 150 words.
void sort_hashes(std::vector<U64>& values, std::vector<U64>& other) {
  other.resize(values.size());
  for (const int shift : {48, 56}) {
    std::size_t starts[257] = {};
    for (const U64 value : values) ++starts[(value >> shift & 0xFF) + 1];
    for (int digit = 0; digit < 256; ++digit) starts[digit + 1] += starts[digit];
    for (const U64 value : values) other[starts[value >> shift & 0xFF]++] = value;
    values.swap(other);
  }
  for (std::size_t i = 1; i < values.size(); ++i) {
    const U64 value = values[i];
    std::size_t place = i;
    for (; place > 0 && values[place - 1] > value; --place) values[place] = values[place - 1];
    values[place] = value;
  }
}

// Replaces words by their shingles' hashes.
void hash_shingles(Size shingle_words, const std::vector<U64>& words, std::vector<U64>& shingles) {
  shingles.clear();
  const Size num_words = static_cast<Size>(words.size());
  const Size length = std::min(num_words, shingle_words);
  U64 polynomial = 0, oldest = 1;  // `oldest`: what the first word of a shingle is multiplied by
  for (Size i = 0; i < length; ++i) {
    polynomial = polynomial * kShingleMultiplier + words[i];
    if (i > 0) oldest *= kShingleMultiplier;
  }
  shingles.push_back(finalise(polynomial ^ static_cast<U64>(length)));
  for (Size i = length; i < num_words; ++i) {
    polynomial = (polynomial - words[i - length] * oldest) * kShingleMultiplier + words[i];
    shingles.push_back(finalise(polynomial ^ static_cast<U64>(length)));
  }
}

// 64 permutations at once stay in registers over all shingles. `a` and `b` are padded to whole blocks, as is `minima`.
constexpr Size kBlock = 64;

void take_minima(const std::vector<U64>& shingles, Size num_permutations, const U32* a, const U32* b,
                 std::vector<U32>& hashes, U32* minima) {
  hashes.clear();
  for (const U64 shingle : shingles) hashes.push_back(fmix32(static_cast<U32>(shingle)));
  using Vector = U32 __attribute__((vector_size(64)));
  constexpr int kVectors = kBlock / 16;
  for (Size block = 0; block < num_permutations; block += kBlock) {
    Vector factor[kVectors], offset[kVectors], minimum[kVectors];
    std::memcpy(factor, a + block, sizeof factor);
    std::memcpy(offset, b + block, sizeof offset);
    std::memset(minimum, 0xFF, sizeof minimum);
    for (const U32 hash : hashes)
      for (int i = 0; i < kVectors; ++i) {
        const Vector value = factor[i] * hash + offset[i];
        minimum[i] = value < minimum[i] ? value : minimum[i];
      }
    std::memcpy(minima + block, minimum, sizeof minimum);
  }
}

U64 hash_band(const U32* minima, Size rows) {
  U64 key = 0;
  for (Size row = 0; row < rows; ++row) key = finalise((key ^ minima[row]) * kWordMultiplier);
  return key;
}

}  // namespace

extern "C" {

// Texts lie one after another; text i is bytes offsets[i] to offsets[i + 1]. `keys` gets [texts, bands]; `signatures`,
// unless null, [texts, bands * rows]. `a` and `b` have zeros up to a multiple of 64.
void band_keys(const unsigned char* bytes, const Size* offsets, Size num_texts, Size shingle_words, Size bands,
               Size rows, const U32* a, const U32* b, U64* keys, U32* signatures) {
  Classified classified;
  std::vector<U64> words, shingles;
  std::vector<U32> hashes, minima(static_cast<std::size_t>((bands * rows + kBlock - 1) / kBlock * kBlock));
  for (Size text = 0; text < num_texts; ++text) {
    words.clear();
    hash_words(bytes + offsets[text], offsets[text + 1] - offsets[text], classified, words);
    hash_shingles(shingle_words, words, shingles);
    take_minima(shingles, bands * rows, a, b, hashes, minima.data());
    for (Size band = 0; band < bands; ++band) keys[text * bands + band] = hash_band(minima.data() + band * rows, rows);
    if (signatures != nullptr) std::copy_n(minima.begin(), bands * rows, signatures + text * bands * rows);
  }
}

// Band keys of minima, of which each text has `stride`: `keys` gets [texts, bands].
void keys_of_minima(const U32* minima, Size num_texts, Size stride, Size bands, Size rows, U64* keys) {
  for (Size text = 0; text < num_texts; ++text)
    for (Size band = 0; band < bands; ++band)
      keys[text * bands + band] = hash_band(minima + text * stride + band * rows, rows);
}

// The set of shingles of each text, as sorted 64-bit hashes one text after another: `ends[i]` is where that of text i
// ends. `sets` has room for one shingle a two bytes of text, and one a text. Returns the number of hashes.
Size shingle_sets(const unsigned char* bytes, const Size* offsets, Size num_texts, Size shingle_words, U64* sets,
                  Size* ends) {
  Classified classified;
  std::vector<U64> words, shingles, other;
  Size total = 0;
  for (Size text = 0; text < num_texts; ++text) {
    words.clear();
    hash_words(bytes + offsets[text], offsets[text + 1] - offsets[text], classified, words);
    hash_shingles(shingle_words, words, shingles);
    sort_hashes(shingles, other);
    const auto end = std::unique(shingles.begin(), shingles.end());
    total = std::copy(shingles.begin(), end, sets + total) - sets;
    ends[text] = total;
  }
  return total;
}

// Jaccard similarity of pairs of those sets.
void similarities(const U64* sets, const Size* borders, const Size* firsts, const Size* seconds, Size num_pairs,
                  double* similarity) {
  for (Size pair = 0; pair < num_pairs; ++pair) {
    const U64 *x = sets + borders[firsts[pair]], *x_end = sets + borders[firsts[pair] + 1];
    const U64 *y = sets + borders[seconds[pair]], *y_end = sets + borders[seconds[pair] + 1];
    const Size sum = (x_end - x) + (y_end - y);
    Size common = 0;
    while (x < x_end && y < y_end) {
      const U64 p = *x, q = *y;
      common += p == q;
      x += p <= q;
      y += q <= p;
    }
    similarity[pair] = static_cast<double>(common) / static_cast<double>(sum - common);
  }
}
}
