// Grouped experts as one list of tasks: gate and up with their activation, then down, then the weighted sum.
//
// Rows are sorted by expert, so that an expert's weights are read once; what a token gets is summed in the order of
// its own choice, whoever its neighbours are.

#pragma once

#include "matmul.h"

namespace oneroof {
namespace ONEROOF_VARIANT {
namespace {

// Rows of T tokens, each k times, sorted by expert; but for choices of an expert that is not here.
struct Sorting {
  int64_t count;    // T * k at most
  int64_t* begin;   // [E + 1] rows of each expert
  int64_t* place;   // [T * k] row of the pair (token, choice); -1: of none
  int64_t* source;  // [T * k] token of each row
};

inline Sorting sort_by_expert(const int64_t* chosen, int64_t first, int64_t tokens, int64_t k, int64_t experts) {
  int64_t count = tokens * k;
  auto memory = static_cast<int64_t*>(call_scratch(6, (experts + 1 + 2 * count) * sizeof(int64_t)));
  Sorting s{count, memory, memory + experts + 1, memory + experts + 1 + count};
  std::fill(s.begin, s.begin + experts + 1, 0);
  for (int64_t i = 0; i < count; i++) {
    int64_t expert = chosen[i] - first;
    if (expert >= 0 && expert < experts) s.begin[expert + 1]++;
  }
  for (int64_t e = 0; e < experts; e++) s.begin[e + 1] += s.begin[e];
  s.count = s.begin[experts];
  for (int64_t i = 0; i < count; i++) {
    int64_t expert = chosen[i] - first;
    if (expert < 0 || expert >= experts) {
      s.place[i] = -1;
      continue;
    }
    int64_t row = s.begin[expert]++;
    s.place[i] = row;
    s.source[row] = i / k;
  }
  for (int64_t e = experts; e > 0; e--) s.begin[e] = s.begin[e - 1];
  s.begin[0] = 0;
  return s;
}

struct ExpertTask {
  int64_t expert, row, rows, panel, count;
};

// Every expert's panels times its rows, cut so that unequal loads are shared out evenly.
inline int64_t list_tasks(const Sorting& s, int64_t experts, int64_t panels, int64_t stacked, ExpertTask** list) {
  int64_t number = 0;
  for (int pass = 0; pass < 2; pass++) {
    if (pass == 1) *list = static_cast<ExpertTask*>(call_scratch(7, std::max<int64_t>(1, number) * sizeof(ExpertTask)));
    number = 0;
    for (int64_t e = 0; e < experts; e++) {
      for (int64_t row = s.begin[e]; row < s.begin[e + 1]; row += ROWS) {
        int64_t rows = std::min(ROWS, s.begin[e + 1] - row);
        int64_t width = std::max<int64_t>(1, (rows > TILE ? COLUMNS : 16) / stacked);
        for (int64_t p = 0; p < panels; p += width, number++) {
          if (pass == 1) (*list)[number] = {e, row, rows, p, std::min(width, panels - p)};
        }
      }
    }
  }
  return number;
}

template <class Epilogue>
inline void each_expert(const Weight& w, const Sorting& s, const Rows& x, bool one_row, int64_t panels,
                        int64_t stacked, const Epilogue& epilogue) {
  Layout layout(w);
  ExpertTask* list = nullptr;
  int64_t number = list_tasks(s, w.experts, panels, stacked, &list);
  parallel(number, [&](int64_t i, int thread) {
    const ExpertTask& task = list[i];
    alignas(64) float small[TILE * MOST_PANELS * LANES];
    float* out = task.rows > TILE ? result_after_block(layout, thread) : small;
    int64_t from = one_row ? 0 : task.row;
    Rows mine = x.from(from, 2 * layout.groups);
    Job job{&w, &layout, &mine, task.expert, {}, 0, out};
    job.take(task.panel, task.count, panels, stacked, streams_of(x.mode, task.rows));
    compute(job, task.rows, thread);
    epilogue(job, task);
  });
}

// The prepared rows of tokens, once for each of their experts; in the call's slots 3 to 5.
inline Rows gather(const Rows& x, const Sorting& s, int64_t sums) {
  auto data = static_cast<uint32_t*>(call_scratch(3, s.count * x.stride * 4 + 64));
  auto scale = static_cast<float*>(call_scratch(4, s.count * sizeof(float)));
  auto total = static_cast<int32_t*>(call_scratch(5, s.count * sums * 4));
  constexpr int64_t some = 16;
  parallel(ceil_div(s.count, some), [&](int64_t task, int) {
    for (int64_t r = task * some; r < std::min(s.count, task * some + some); r++) {
      std::memcpy(data + r * x.stride, x.words(s.source[r]), x.stride * 4);
      if (x.scale) scale[r] = x.scale[s.source[r]];
      if (x.sums) std::memcpy(total + r * sums, x.sums + s.source[r] * sums, sums * 4);
    }
  });
  return {x.mode, data, x.stride, x.plane, x.scale ? scale : nullptr, x.sums ? total : nullptr};
}

inline void mix_some(const Mixture& m, int64_t first, int64_t tokens) {
  const Weight &up = *m.gate_up, &down = *m.down;
  int64_t width = down.dim, dim = down.rows;
  Sorting s = sort_by_expert(m.chosen + first * m.k, m.first, tokens, m.k, up.experts);
  Rows x = prepare(up, {m.x, first, tokens, m.x_stride, m.x_type, m.input, m.input_scale}, 0);
  bool one_row = tokens == 1;  // which every expert reads, once
  for (int64_t e = 0; e < up.experts; e++) one_row = one_row && s.begin[e + 1] - s.begin[e] <= 1;
  if (!one_row) x = gather(x, s, 2 * Layout(up).groups);
  int hidden_type = mode_of(down, m.x_type, m.input) == Mode::PAIRS ? BFLOAT16 : FLOAT32;
  void* hidden = call_scratch(8, s.count * width * (hidden_type == FLOAT32 ? 4 : 2) + 64);
  each_expert(up, s, x, one_row, width / LANES, 2, [&](const Job& job, const ExpertTask& task) {
    for (int64_t r = 0; r < task.rows; r++) {
      for (int i = 0; i < job.count; i += 2) {
        F y = mul(silu(scaled(job, r, i)), scaled(job, r, i + 1));
        store_as(hidden, (task.row + r) * width + job.panel[i] * LANES, hidden_type, y);
      }
    }
  });
  Rows h = prepare(down, {hidden, 0, s.count, width, hidden_type, m.input, m.hidden_scale}, 0);
  auto out = static_cast<float*>(call_scratch(9, s.count * (dim + LANES) * sizeof(float)));
  each_expert(down, s, h, false, ceil_div(dim, LANES), 1, [&](const Job& job, const ExpertTask& task) {
    for (int64_t r = 0; r < task.rows; r++) {
      for (int i = 0; i < job.count; i++) {
        int64_t column = job.panel[i] * LANES;
        store(out + (task.row + r) * dim + column, scaled(job, r, i),
              lanes_of(dim - column));
      }
    }
  });
  parallel(tokens, [&](int64_t t, int) {
    for (int64_t c = 0; c < dim; c += LANES) {
      int n = lanes_of(dim - c);
      F y = zero();
      for (int64_t j = 0; j < m.k; j++) {
        int64_t place = s.place[t * m.k + j];
        if (place >= 0) y = fma(set1(m.weights[(first + t) * m.k + j]), load(out + place * dim + c, n), y);
      }
      store_as(m.y, (first + t) * m.y_stride + c, m.y_type, y, n);
    }
  });
}

inline void mixture(const Mixture& m) {
  Call call;
  int64_t row = (m.down->rows + m.down->dim + m.gate_up->dim) * 4 * m.k;  // bytes that a token takes on the way
  int64_t at_once = std::max<int64_t>(ROWS, (int64_t{64} << 20) / row);
  for (int64_t first = 0; first < m.tokens; first += at_once) mix_some(m, first, std::min(at_once, m.tokens - first));
}

}  // namespace
}  // namespace ONEROOF_VARIANT
}  // namespace oneroof
