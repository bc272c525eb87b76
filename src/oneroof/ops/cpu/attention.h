// Attention of a packed batch, causal or not, over pages or over the batch itself.
//
// Exact: what a row gets depends on its query and on what it sees, not on how it is reached. Positions are
// cut into chunks of 512 keys, each an online softmax of its own in blocks of 64, whose results are joined in
// order. A score is one chain over d, a value's sum one chain over keys; a place that a row does not see has
// no link in either. Tiles, tasks and threads only decide who works out which row and which chunk.

#pragma once

#include <vector>

#include "abi.h"
#include "pool.h"
#include "scores.h"
#include "simd.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

constexpr int64_t CHUNK = 512;     // keys
constexpr int64_t SHARED = 24;     // rows of a head for which it pays to look at it alone
constexpr int64_t MOST_ROWS = 96;  // of a head in an item

// Some tokens of one sequence, some of its kv heads with all their queries, and the chunks of keys to be
// looked at.
struct Item {
  int64_t sequence, head, heads, token, tokens;
  int64_t first_chunk, chunks;  // this piece
  int64_t partial, all, start;  // where its results go: floats, chunks in all, its first; -1: joined here
};

// The state of an item's rows, in a thread's memory. Letters: R rows, w = padded(d).
struct Rows {
  float* q;            // [R][d] times scale * log2(e); pairs: [R][d/2], as they are
  float* sums;         // [R][w] of this chunk
  float* total;        // [R][w] of the chunks before
  float* share;        // [R][LANES] sums of weights of this chunk, lane by lane
  float* most;         // [R] largest score of this chunk
  float* total_share;  // [R]
  float* total_most;   // [R]
  float* keys;         // [d][BLOCK] of one head
  float* values;       // [BLOCK][w]
  float* key_scale;    // [BLOCK] of int8
  float* value_scale;
  int64_t* lo;  // [R] the first key that a row sees
  int64_t* hi;  // [R] past its last
  int64_t count;
  float times = 1.0f;  // pairs: what a score is to be multiplied by

  static size_t size(int64_t rows, int64_t dim) {
    int64_t width = padded(dim);
    return sizeof(float) *
           (rows * (dim + 2 * width + LANES + 3 + 4) + BLOCK * (dim + width + 2) + 20 * LANES);
  }
  Rows(char* memory, int64_t rows, int64_t dim) : count(rows) {
    int64_t width = padded(dim);
    auto take = [&](int64_t floats) {
      auto at = reinterpret_cast<float*>(memory);
      memory += (floats * sizeof(float) + 63) / 64 * 64;
      return at;
    };
    q = take(rows * dim), sums = take(rows * width), total = take(rows * width), share = take(rows * LANES);
    most = take(rows), total_share = take(rows), total_most = take(rows);
    keys = take(dim * BLOCK), values = take(BLOCK * width);
    key_scale = take(BLOCK), value_scale = take(BLOCK);
    lo = reinterpret_cast<int64_t*>(take(2 * rows)), hi = reinterpret_cast<int64_t*>(take(2 * rows));
  }
};

// What a row sees of the block from `first` on: keys from .. end - 1 of it.
struct Seen {
  int from, end;
};
inline Seen seen(const Rows& rows, int64_t r, int64_t first) {
  auto inside = [&](int64_t p) {
    return static_cast<int>(std::min<int64_t>(std::max<int64_t>(p - first, 0), BLOCK));
  };
  int from = inside(rows.lo[r]), end = inside(rows.hi[r]);
  return {from, std::max(from, end)};
}

inline F hide(F scores, int group, Seen s) {  // -inf where a row does not look
  int from = s.from - group * LANES, end = s.end - group * LANES;
  F none = set1(-INFINITY);
  if (end <= 0 || from >= LANES) return none;
  if (end < LANES) scores = keep_first(scores, end, none);
  return from > 0 ? keep_first(none, from, scores) : scores;
}

// From the scores of a row to its weights; gives the largest score it had less the one it has.
template <int type>
inline float weights_of(float* scores, int groups, Seen s, const Rows& rows, float& most, F& added) {
  constexpr bool scaled = type == INT8;
  F x[GROUPS];
  F top = set1(-INFINITY);
  for (int g = 0; g < groups; g++) {
    x[g] = load(scores + g * LANES);
    if (scaled) x[g] = mul(x[g], load(rows.key_scale + g * LANES));
    if (type == PAIRS) x[g] = mul(x[g], set1(rows.times));
    if (s.from > 0 || s.end < (g + 1) * LANES) x[g] = hide(x[g], g, s);
    top = max(x[g], top);
  }
  float best = largest(top), before = most;
  if (best > most) most = best;
  float base = most == -INFINITY ? 0.0f : most;
  added = zero();
  for (int g = 0; g < groups; g++) {
    F weight = power2(sub(x[g], set1(base)));
    added = add(added, weight);
    store(scores + g * LANES, scaled ? mul(weight, load(rows.value_scale + g * LANES)) : weight);
  }
  return before - base;
}

// One tile of rows meets one block.
template <int type, class Source>
inline void meet(const Source& source, Rows& rows, int64_t row, int many, int64_t first, int64_t dim,
                 Ahead& ahead) {
  alignas(64) float scores[MOST_TILE * BLOCK], change[LANES] = {}, factor[LANES];
  Seen s[MOST_TILE];
  F added[MOST_TILE];
  int64_t width = padded(dim);
  int low = BLOCK, high = 0, from = 0, end = BLOCK;  // what any row sees, what all see
  for (int r = 0; r < many; r++) {
    s[r] = seen(rows, row + r, first);
    if (s[r].from < s[r].end) low = std::min(low, s[r].from), high = std::max(high, s[r].end);
    from = std::max(from, s[r].from), end = std::min(end, s[r].end);
  }
  if (low >= high) return;
  int groups = (high + LANES - 1) / LANES;
  source.score(many, rows.q + row * (type == PAIRS ? dim / 2 : dim), groups, scores, ahead);
  for (int r = 0; r < many; r++) {
    if (s[r].from == s[r].end) {
      added[r] = zero();
      continue;
    }
    change[r] = weights_of<type>(scores + r * BLOCK, groups, s[r], rows, rows.most[row + r], added[r]);
  }
  store(factor, power2(load(change)));
  for (int r = 0; r < many; r++) {
    float* share = rows.share + (row + r) * LANES;
    store(share, add(mul(load(share), set1(factor[r])), added[r]));
  }
  float* sums = rows.sums + row * width;
  if (from >= end) from = end = BLOCK;  // they have no key in common: each by itself
  for (int r = 0; r < many; r++) {
    if (s[r].from < std::min(from, s[r].end)) {
      int until = std::min(from, s[r].end);
      source.weigh(1, scores + r * BLOCK, s[r].from, until, factor + r, sums + r * width, ahead);
      factor[r] = 1.0f;
    }
  }
  if (from < end) source.weigh(many, scores, from, end, factor, sums, ahead);
  std::fill(factor, factor + many, 1.0f);
  for (int r = 0; r < many; r++) {
    if (end < s[r].end) {
      source.weigh(1, scores + r * BLOCK, end, s[r].end, factor + r, sums + r * width, ahead);
    }
  }
}

// A head's rows meet a block, tile by tile, as even as can be.
template <int type, class Source>
void meet_tiles(const Source& source, Rows& rows, int64_t from, int64_t many, int tile, int64_t first,
                int64_t dim, Ahead& ahead) {
  int64_t tiles = (many + tile - 1) / tile;
  for (int64_t t = 0; t < tiles; t++) {
    int64_t row = many * t / tiles, end = many * (t + 1) / tiles;
    meet<type>(source, rows, from + row, static_cast<int>(end - row), first, dim, ahead);
  }
}

// A head of a block, as it lies where that is quicker, else laid as float32 first.
inline bool straight(const Attention& a, int64_t rows) { return rows <= FEW && a.dim % LANES == 0; }

template <int type>
void meet_head(const Attention& a, Rows& rows, const Block& block, int64_t head, int64_t each, Seen s,
               Ahead& ahead) {
  int64_t shift = head * a.dim * size_of(type);
  if (type == INT8) {
    for (int i = s.from; i < s.end; i++) {
      rows.key_scale[i] = a.key_scales[block.row[i] + head];
      rows.value_scale[i] = a.value_scales[block.row[i] + head];
    }
  }
  if (straight(a, each)) {
    Straight<type> source{block.at, shift, a.dim};
    return meet_tiles<type>(source, rows, head * each, each, FEW, block.first, a.dim, ahead);
  }
  for (int g = s.from / LANES; g * LANES < s.end; g++) {
    lay_keys<type>(block.at + g * LANES, shift, a.dim, rows.keys + g * LANES);
  }
  lay_values<type>(block.at, shift, s.from, s.end, a.dim, rows.values);
  Laid<type == PAIRS> source{rows.keys, rows.values, a.dim, padded(a.dim)};
  meet_tiles<type>(source, rows, head * each, each, TILE, block.first, a.dim, ahead);
}

struct Span {
  int64_t lo, hi;
};
inline Span span_of(const Attention& a, int64_t sequence, int64_t token) {  // the keys that a token sees
  int64_t position = a.positions[token];
  return {a.window ? std::max<int64_t>(0, position - a.window + 1) : 0,
          a.causal ? position + 1 : a.lengths[sequence]};
}
// ... or any of several
inline Span span_of(const Attention& a, int64_t sequence, int64_t token, int64_t tokens) {
  Span all = span_of(a, sequence, token);
  for (int64_t t = token + 1; t < token + tokens; t++) {
    Span one = span_of(a, sequence, t);
    all = {std::min(all.lo, one.lo), std::max(all.hi, one.hi)};
  }
  return all;
}

struct Query {
  int64_t token, head;
};
inline Query query_of(const Attention& a, const Item& item, int64_t row) {  // rows: by kv head, token, head
  int64_t group = a.heads / a.kv_heads, each = item.tokens * group;
  return {item.token + row % each / group, (item.head + row / each) * group + row % group};
}
inline int64_t rows_of(const Attention& a, const Item& item) {
  return item.heads * item.tokens * a.heads / a.kv_heads;
}

// Whether scores are made of pairs of bfloat16.
inline bool in_pairs(const Attention& a) {
#if defined(__AVX512BF16__)
  return a.type == BFLOAT16 && (!a.slots || a.pool_type == BFLOAT16);
#else
  (void)a;
  return false;
#endif
}

inline void read_queries(const Attention& a, const Item& item, Rows& rows) {
  bool pairs = in_pairs(a);
  F scale = set1(a.scale * 1.44269504f);
  if (pairs) rows.times = a.scale * 1.44269504f;
  for (int64_t r = 0; r < rows.count; r++) {
    Query query = query_of(a, item, r);
    Span span = span_of(a, item.sequence, query.token);
    rows.lo[r] = span.lo, rows.hi[r] = span.hi;
    int64_t from = query.token * a.q_stride + query.head * a.dim;
    if (pairs) {
      std::memcpy(rows.q + r * a.dim / 2, static_cast<const uint16_t*>(a.q) + from, a.dim * 2);
      continue;
    }
    for (int64_t i = 0; i < a.dim; i += LANES) {
      int many = lanes_of(a.dim - i);
      F x = many == LANES ? load_as(a.q, from + i, a.type) : load_as(a.q, from + i, a.type, many);
      store(rows.q + r * a.dim + i, mul(x, scale), many);
    }
  }
}

// The chunk joins those before it.
inline void join(int64_t width, const float* sums, float share, float most, float* total, float& total_share,
                 float& total_most) {
  float now = most > total_most ? most : total_most;
  float base = now == -INFINITY ? 0.0f : now;
  float old = power2(total_most - base), fresh = power2(most - base);
  for (int64_t i = 0; i < width; i += LANES) {
    store(total + i, add(mul(load(total + i), set1(old)), mul(load(sums + i), set1(fresh))));
  }
  total_share = total_share * old + share * fresh;
  total_most = now;
}

inline void write_out(const Attention& a, Query query, const float* total, float share) {
  int64_t to = (query.token * a.heads + query.head) * a.dim;
  for (int64_t i = 0; i < a.dim; i += LANES) {
    F y = div(load(total + i), set1(share));
    int many = lanes_of(a.dim - i);
    many == LANES ? store_as(a.out, to + i, a.type, y) : store_as(a.out, to + i, a.type, y, many);
  }
}

inline void clear(float* x, int64_t count, float value) { std::fill(x, x + count, value); }

// All rows of the item meet one block, head by head.
inline void meet_block(const Attention& a, const Item& item, Rows& rows, const Block& block, Seen s,
                       Ahead& ahead) {
  int64_t each = rows.count / item.heads;
  for (int64_t head = 0; head < item.heads; head++) {
    switch (a.slots ? a.pool_type : a.type) {
      case FLOAT32: meet_head<FLOAT32>(a, rows, block, head, each, s, ahead); break;
      case BFLOAT16:
#if defined(__AVX512BF16__)
        if (in_pairs(a)) {
          meet_head<PAIRS>(a, rows, block, head, each, s, ahead);
          break;
        }
#endif
        meet_head<BFLOAT16>(a, rows, block, head, each, s, ahead);
        break;
      case FLOAT16: meet_head<FLOAT16>(a, rows, block, head, each, s, ahead); break;
      default: meet_head<INT8>(a, rows, block, head, each, s, ahead);
    }
  }
}

// Where an item's blocks begin and end.
struct Reach {
  int64_t first, end;
};
inline Reach reach_of(const Item& item, Span all) {
  return {std::max(item.first_chunk * CHUNK, all.lo / BLOCK * BLOCK),
          std::min((item.first_chunk + item.chunks) * CHUNK, all.hi)};
}
inline int inside(int64_t keys) {
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(keys, 0), BLOCK));
}

// What is asked of memory while an item's rows meet a block: the block after it, and at the item's end the
// first one of the item that this thread is likely to serve next. A thread's first block is asked for at once.
struct Fetching {
  const Attention& a;
  const Item& item;
  const Item* following;
  bool cold;
  bool pays;  // else arithmetic is what the rows wait for
  Block after, beyond;

  Fetching(const Attention& a, const Item& item, const Item* following, bool cold, const Rows& rows)
      : a(a), item(item), following(following), cold(cold), pays(rows.count / item.heads <= SHARED) {}

  void add(const Item& whose, const Block& block, int keys, Ahead& ahead) const {
    int64_t size = bytes_of(a.slots ? a.pool_type : a.type);
    ahead.add(block.at, keys, (whose.heads * a.dim * size + 63) / 64);
  }

  // ... and how many lines at each of the steps at which some are asked for
  void share_out(const Rows& rows, Ahead& ahead) const {
    int64_t each = rows.count / item.heads, tiles = (each + TILE - 1) / TILE;
    int64_t size = bytes_of(a.slots ? a.pool_type : a.type);
    int64_t steps = item.heads * tiles * (a.dim + (a.dim + 63) / 64 * BLOCK);
    if (straight(a, each)) {
      int64_t columns = !WIDE ? 1 : each <= 4 ? 4 : 2;
      int64_t turns = a.dim * size / 16 * GROUPS / (each > ALONE ? 2 : 1);
      steps = item.heads * (turns + (a.dim / LANES + columns - 1) / columns * BLOCK);
    }
    ahead.each = static_cast<int>((ahead.all() + steps - 1) / steps);
  }

  void before(const Block& block, int keys) {
    Ahead now;
    if (!cold || !pays) return;
    cold = false;
    add(item, block, keys, now);
    now.each = static_cast<int>(now.all());
    now.fetch();
  }

  Ahead during(const Rows& rows, int64_t first, Span all, int64_t end) {
    Ahead ahead;
    if (!pays) return ahead;
    int64_t next = first + BLOCK;
    if (next < end) {
      Finder{a, item.sequence, item.head}.find(next, all.lo, all.hi, after);
      add(item, after, inside(end - next), ahead);
    }
    if (following != nullptr && end - next <= BLOCK / 4) {
      Span its = span_of(a, following->sequence, following->token, following->tokens);
      Reach reach = reach_of(*following, its);
      Finder{a, following->sequence, following->head}.find(reach.first, its.lo, its.hi, beyond);
      add(*following, beyond, inside(reach.end - reach.first), ahead);
      following = nullptr;
    }
    share_out(rows, ahead);
    return ahead;
  }
};

// All rows of the item meet the blocks of one chunk.
inline void walk(const Attention& a, const Item& item, Span all, int64_t chunk, Rows& rows,
                 Fetching& fetching) {
  Finder finder{a, item.sequence, item.head};
  Block block;
  int64_t end = std::min(all.hi, (chunk + 1) * CHUNK), last = reach_of(item, all).end;
  clear(rows.sums, rows.count * padded(a.dim), 0.0f);
  clear(rows.share, rows.count * LANES, 0.0f);
  clear(rows.most, rows.count, -INFINITY);
  for (int64_t first = std::max(chunk * CHUNK, all.lo / BLOCK * BLOCK); first < end; first += BLOCK) {
    finder.find(first, all.lo, all.hi, block);
    fetching.before(block, inside(last - first));
    Ahead ahead = fetching.during(rows, first, all, last);
    meet_block(a, item, rows, block, {inside(all.lo - first), inside(all.hi - first)}, ahead);
  }
}

inline bool sees(const Rows& rows, int64_t r, int64_t chunk) {
  return rows.lo[r] < (chunk + 1) * CHUNK && rows.hi[r] > chunk * CHUNK;
}

// A row's result for one chunk, kept for later: its sums, its share and its largest score.
inline void keep(const Rows& rows, int64_t r, int64_t width, float* out) {
  std::copy(rows.sums + r * width, rows.sums + (r + 1) * width, out);
  out[width] = sum(load(rows.share + r * LANES));
  out[width + 1] = rows.most[r];
}
inline int64_t kept(int64_t dim) { return padded(dim) + LANES; }  // floats

inline void serve(const Attention& a, const Item& item, const Item* following, bool cold, float* partials,
                  int thread) {
  int64_t count = rows_of(a, item), width = padded(a.dim);
  Rows rows(static_cast<char*>(thread_scratch(thread, Rows::size(count, a.dim))), count, a.dim);
  read_queries(a, item, rows);
  Span all = span_of(a, item.sequence, item.token, item.tokens);
  clear(rows.total, count * width, 0.0f);
  clear(rows.total_share, count, 0.0f);
  clear(rows.total_most, count, -INFINITY);
  Fetching fetching(a, item, following, cold, rows);
  for (int64_t chunk = item.first_chunk; chunk < item.first_chunk + item.chunks; chunk++) {
    walk(a, item, all, chunk, rows, fetching);
    for (int64_t r = 0; r < count; r++) {
      if (!sees(rows, r, chunk)) continue;
      if (item.partial >= 0) {
        keep(rows, r, width, partials + item.partial + (r * item.all + chunk - item.start) * kept(a.dim));
      } else {
        join(width, rows.sums + r * width, sum(load(rows.share + r * LANES)), rows.most[r],
             rows.total + r * width, rows.total_share[r], rows.total_most[r]);
      }
    }
  }
  if (item.partial >= 0) return;
  for (int64_t r = 0; r < count; r++) {
    write_out(a, query_of(a, item, r), rows.total + r * width, rows.total_share[r]);
  }
}

// The rows of an item that was cut along its keys.
inline void finish(const Attention& a, const Item& item, const float* partials, int thread) {
  int64_t width = padded(a.dim);
  auto total = static_cast<float*>(thread_scratch(thread, width * sizeof(float)));
  for (int64_t r = 0; r < rows_of(a, item); r++) {
    float share = 0.0f, most = -INFINITY;
    clear(total, width, 0.0f);
    Query query = query_of(a, item, r);
    Span span = span_of(a, item.sequence, query.token);
    for (int64_t chunk = span.lo / CHUNK; chunk * CHUNK < span.hi; chunk++) {
      const float* part = partials + item.partial + (r * item.all + chunk - item.start) * kept(a.dim);
      join(width, part, part[width], part[width + 1], total, share, most);
    }
    write_out(a, query, total, share);
  }
}

// What is to be done, as items of about equal work: several tokens share a block of keys; where they are few,
// all heads are looked at together, as they lie in memory; a long row is cut along its keys where threads
// would otherwise wait.
struct Plan {
  std::vector<Item> items, cut;
  int64_t floats = 0;  // of partial results

  void add_rows(const Attention& a, int64_t sequence, int64_t token, int64_t tokens, int64_t heads) {
    Span span = span_of(a, sequence, token, tokens);
    int64_t first = span.lo / CHUNK, chunks = (span.hi + CHUNK - 1) / CHUNK - first;
    for (int64_t h = 0; h < a.kv_heads; h += heads) {
      items.push_back({sequence, h, std::min(heads, a.kv_heads - h), token, tokens, first, chunks, -1, 0, 0});
    }
  }

  void cut_item(const Attention& a, size_t i, int64_t pieces) {
    Item item = items[i];
    item.partial = floats, item.all = item.chunks, item.start = item.first_chunk;
    floats += rows_of(a, item) * item.chunks * kept(a.dim);
    cut.push_back(item);
    for (int64_t p = 0; p < pieces; p++) {
      Item piece = item;
      piece.first_chunk = item.start + item.all * p / pieces;
      piece.chunks = item.start + item.all * (p + 1) / pieces - piece.first_chunk;
      if (p == 0) {
        items[i] = piece;
      } else {
        items.push_back(piece);
      }
    }
  }
};

inline int64_t work_of(const Item& item) { return item.heads * item.tokens * item.chunks; }

inline void plan(const Attention& a, Plan& made) {
  int64_t group = a.heads / a.kv_heads, wanted = 4 * thread_count(), chunks = 0;
  int64_t even = a.tokens * a.kv_heads / wanted, enough = std::max<int64_t>(1, SHARED / group);
  int64_t together = std::max<int64_t>(1, std::min(MOST_ROWS / group, std::max(even, enough)));  // tokens
  for (int64_t s = 0; s < a.sequences; s++) chunks += (a.lengths[s] + CHUNK - 1) / CHUNK;
  int64_t heads = std::max<int64_t>(1, std::min(a.kv_heads, a.kv_heads * chunks / (2 * thread_count())));
  made.items.clear(), made.cut.clear(), made.floats = 0;
  for (int64_t s = 0; s < a.sequences; s++) {
    for (int64_t end = a.bounds[s + 1]; end > a.bounds[s]; end -= together) {  // the longest rows first
      int64_t tokens = std::min(together, end - a.bounds[s]);
      made.add_rows(a, s, end - tokens, tokens, tokens * group < SHARED ? heads : 1);
    }
  }
  if (thread_count() == 1) return;
  int64_t work = 0;
  for (const Item& item : made.items) work += work_of(item);
  int64_t limit = std::max<int64_t>(1, work / wanted);
  for (size_t i = 0, uncut = made.items.size(); i < uncut; i++) {
    int64_t pieces = std::min(made.items[i].chunks, (work_of(made.items[i]) + limit - 1) / limit);
    if (pieces > 1) made.cut_item(a, i, pieces);
  }
}

void attention(const Attention& a) {
  if (a.tokens == 0) return;
  Call call;
  if (a.slots) store_all(a);
  static thread_local Plan made;
  plan(a, made);
  Plan& p = made;  // the caller's, in every thread
  auto partials = static_cast<float*>(call_scratch(0, p.floats * sizeof(float) + 64));
  parallel(p.items.size(), [&](int64_t task, int thread) {
    int64_t next = task + thread_count(), items = p.items.size();
    bool cold = task < thread_count();
    serve(a, p.items[task], next < items ? &p.items[next] : nullptr, cold, partials, thread);
  });
  parallel(p.cut.size(), [&](int64_t task, int thread) { finish(a, p.cut[task], partials, thread); });
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
