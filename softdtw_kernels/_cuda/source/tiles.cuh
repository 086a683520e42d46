// Strips in register tiles, in the numbers of fixed.cuh: one warp walks the strips of its item, 32 * C columns each.
//
// At step t lane l does its C columns in the R rows of block t - l: a skewed wavefront, as in strip.cuh, of tiles in place of
// rows. What enters a tile on the left are R differences u, by a shuffle, and from above C differences v, which the lane has.
// Every lane copies the costs of its own tiles into places of shared memory that are its own, a segment ahead, so that no lane
// waits for another's copies; going backward the probabilities take their place.
//
// A segment is SEGMENT steps. Before each the forward sweep leaves a checkpoint. It goes over a segment in Short; from the
// first of a strip on that this does not hold, in Long, to the end of the strip. What is between segments is of Long, so that
// a segment can be gone over twice. Results depend on nothing but the item.
//
// Steps in which no lane is at its first or last block, beyond them, or in the first column, have code without such cases
// (EDGE false): most steps of long items.
//
// The file is long since a tile is a struct of registers: what is done with them, forward, again and backward, is in one place.
#pragma once
#include "fixed.cuh"
#include "lattices.cuh"
#include "notes.cuh"

constexpr int SEGMENT = 4;  // as in fixed.py

template <int R, int C>
struct Tiles {
  static constexpr int WIDTH = LANES * C, PACK = C < 4 ? C : 4, IN_ROW = C / PACK, PACKS = R * IN_ROW, WORDS = R + C, KEPT = WORDS * 3 / 2;  // KEPT: of 4 bytes, in a checkpoint
  static_assert(WORDS % 2 == 0, "two to a word");
  typedef Vector<float, PACK> Pack;
  typedef Vector<LongWord, R> Side;  // of a tile
  typedef float Square[R][C];

  struct Flows {  // from a tile to the one on its left, by row: to the same row and to the row above
    Vector<float, R> left, over;
  };

  const Problem& problem;
  const Item<false>& item;
  const Scale scale;
  Pack *costs, *lefts;  // two segments of costs; one of probabilities of having come from the left
  const int lane, n, m, blocks, strips, segments;
  const int slots;  // of checkpoints, a strip
  LongWord* borders;
  uint32* checkpoints;
  Flows* flows;
  int* long_from;  // by strip, the first segment in Long
  int strip, begin;
  bool is_first, wide_in, wide_out;
  const float* cost;  // of the lane's columns
  float* out;

  __device__ __forceinline__ Tiles(const Problem& problem, const Item<false>& item, int64 slot, void* shared)
      : problem(problem), item(item), scale(problem.gamma_of(item.pair)), costs(static_cast<Pack*>(shared)),
        lefts(costs + 2 * SEGMENT * PACKS * LANES), lane(threadIdx.x % LANES), n(item.n), m(item.m), blocks((n + R - 1) / R),
        strips((m + WIDTH - 1) / WIDTH), segments((blocks + LANES - 1 + SEGMENT - 1) / SEGMENT), slots(slots_of(blocks)) {
    flows = static_cast<Flows*>(problem.flows) + slot * (2 * problem.span);
    if (problem.kept) slot = item.pair;
    borders = static_cast<LongWord*>(problem.borders) + slot * problem.kept_borders * (problem.span * R);
    checkpoints = static_cast<uint32*>(problem.checkpoints) + slot * problem.strips * slots_of(int(problem.span)) * (KEPT * LANES);
    long_from = problem.progress + slot * problem.strips;
  }

  __device__ __forceinline__ void select(int s) {
    strip = s;
    is_first = s == 0;
    begin = s * WIDTH + lane * C;
    cost = static_cast<const float*>(problem.cost) + problem.cost_offset(item.pair) + begin * problem.stride_column;
    wide_in = are_wide(cost, problem.stride_row, problem.stride_column);
  }
  __device__ __forceinline__ bool are_wide(const float* matrix, int64 row, int64 column) const {
    constexpr int bytes = PACK * int(sizeof(float));
    return begin + C <= m && column == 1 && row * int64(sizeof(float)) % bytes == 0 && reinterpret_cast<uint64>(matrix) % bytes == 0;
  }
  __device__ __forceinline__ LongWord* border_of(int s) const { return borders + s % int(problem.kept_borders) * (problem.span * R); }

  // A lane has no words before its first block, nor after its last: checkpoints are as many as it has segments.
  static __device__ __forceinline__ int slots_of(int blocks) { return (blocks + SEGMENT - 2) / SEGMENT + 1; }
  __device__ __forceinline__ bool checkpoint_at(int segment, uint32*& place) const {
    const int slot = segment - (lane + SEGMENT) / SEGMENT;
    place = checkpoints + (int64(strip) * slots + slot) * (KEPT * LANES) + lane;
    return unsigned(slot) < unsigned(slots);
  }
  static __device__ __forceinline__ LongWord& among(LongWord (&v)[C], LongWord (&edge)[R], int k) {
    return k < C ? v[k < C ? k : 0] : edge[k < C ? 0 : k - C];
  }
  // The integers, then how often each has wrapped, two to a word.
  __device__ __forceinline__ void save(int segment, LongWord (&v)[C], LongWord (&edge)[R]) const {
    uint32* place;
    if (!checkpoint_at(segment, place)) return;
#pragma unroll
    for (int k = 0; k < WORDS; k += 2) {
      uint32 wraps[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const LongWord& w = among(v, edge, k + i);
        place[(k + i) * LANES] = w.r;
        wraps[i] = uint32(int(max(min(Long::wraps(w), Long::MOST_WRAPS), -Long::MOST_WRAPS)));
      }
      place[(WORDS + k / 2) * LANES] = wraps[0] << 16 | (wraps[1] & 0xffffu);
    }
  }
  __device__ __forceinline__ void load(int segment, LongWord (&v)[C], LongWord (&edge)[R]) const {
    uint32* place;
    const bool exists = checkpoint_at(segment, place);
#pragma unroll
    for (int k = 0; k < WORDS; k += 2) {
      const uint32 wraps = exists ? place[(WORDS + k / 2) * LANES] : 0;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        among(v, edge, k + i) = exists ? Long::word_of(place[(k + i) * LANES], float(int(wraps << 16 * i) >> 16)) : Long::zero();
    }
  }

  __device__ __forceinline__ Pack* place(Pack* ring, int step) const { return ring + step * (PACKS * LANES) + lane; }
  __device__ __forceinline__ Pack* cost_place(int segment, int k) const { return place(costs, (segment & 1) * SEGMENT + k); }

  // Starts to copy the costs of a segment. Beyond the last row and column they go on as they are there: what becomes of them is
  // of no consequence, but numbers stay close.
  __device__ __forceinline__ void fetch(int segment) const {
    if (segment >= 0) {
      note(CHUNK_FETCHED);
#pragma unroll 1
      for (int k = 0; k < SEGMENT; ++k) {
        const int b = segment * SEGMENT + k - lane;
        if (unsigned(b) >= unsigned(blocks)) continue;
        float* to = reinterpret_cast<float*>(cost_place(segment, k));
        if (wide_in && (b + 1) * R <= n) {
          const float* from = cost + int64(b * R) * problem.stride_row;
#pragma unroll
          for (int r = 0; r < R; ++r, from += problem.stride_row)
#pragma unroll
            for (int i = 0; i < IN_ROW; ++i) copy_later<PACK>(to + (r * IN_ROW + i) * (LANES * PACK), from + i * PACK);
        } else {
#pragma unroll 1
          for (int r = 0; r < R; ++r) {
            const float* from = cost + int64(min(b * R + r, n - 1)) * problem.stride_row;
#pragma unroll 1
            for (int c = 0; c < C; ++c)
              copy_later<1>(to + (r * IN_ROW + c / PACK) * (LANES * PACK) + c % PACK, from + (min(begin + c, m - 1) - begin) * problem.stride_column);
          }
        }
      }
    }
    commit_copies();
  }

  static __device__ __forceinline__ void read(const Pack* from, Square& x) {
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
      const Pack pack = from[k * LANES];
#pragma unroll
      for (int i = 0; i < PACK; ++i) x[k / IN_ROW][k % IN_ROW * PACK + i] = pack.v[i];
    }
  }
  static __device__ __forceinline__ void write(Pack* to, const Square& x) {
#pragma unroll
    for (int k = 0; k < PACKS; ++k) {
      Pack pack;
#pragma unroll
      for (int i = 0; i < PACK; ++i) pack.v[i] = x[k / IN_ROW][k % IN_ROW * PACK + i];
      to[k * LANES] = pack;
    }
  }

  // ---- forward ----

  // A tile, in block b. `sum`: the first column's differences are added to it.
  template <class Form, bool EDGE, bool KEEP>
  __device__ __forceinline__ void cross(Form& form, typename Form::Word (&v)[C], typename Form::Word (&u)[R], const Square& x, int b,
                                        bool corner_column, int64& sum, Square& up, Square& left) const {
    const bool valid = !EDGE || unsigned(b) < unsigned(blocks);
    typename Form::Cost q[R][C];
    uint32 all = 0, low = 0xffffffffu;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) {
        q[r][c] = form.cost(x[r][c]);
        all |= q[r][c].h;
      }
    if (EDGE) {
      // Above the first row and left of the first column is nothing: far above what is beside it, and never chosen.
      if (b == 0) {
#pragma unroll
        for (int c = 0; c < C; ++c) v[c] = form.of(q[0][c]);
        u[0] = Form::far_below();
      }
      if (corner_column) {
        v[0] = Form::far_below();
#pragma unroll
        for (int r = 0; r < R; ++r) {
          u[r] = form.of(q[r][0]);
          if (!KEEP && valid && b * R + r < n) sum += Form::integer(u[r]);
        }
        if (b == 0) {
          v[0] = u[0];
          Form::put_far(v[0]);
          Form::put_far(u[0]);
        }
      }
    }
#pragma unroll
    for (int d = 0; d < R + C - 1; ++d)  // cells of a diagonal do not wait for each other
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const int c = d - r;
        if (c >= 0 && c < C) form.template cell<KEEP>(v[c], u[r], q[r][c], !EDGE || b * R + r < n, low, up[r][c], left[r][c]);
      }
    if (!KEEP) form.look(valid, low, all);
  }

  // A segment, from the words before it, which become those after it. KEEP: probabilities take the place of the costs; else
  // the border is written. Returns false where the form does not do, and the words are as they were.
  template <class Form, bool EDGE, bool KEEP>
  __device__ __forceinline__ bool go(int s, LongWord (&v)[C], LongWord (&edge)[R], int64& sum) const {
    Form form(scale);
    typename Form::Word x[C], y[R];
    const bool corner_column = EDGE && is_first && lane == 0, enters = lane == 0 && !is_first, leaves = !KEEP && lane == LANES - 1 && strip + 1 < strips;
    const int last = s * SEGMENT - 1 - lane;  // the block before
    int64 part = 0;
    // What is set anew before it is used, or never used, is not to be taken for out of range.
#pragma unroll
    for (int c = 0; c < C; ++c) x[c] = EDGE && (last < 0 || corner_column && c == 0) ? Form::zero() : form.from(v[c]);
#pragma unroll
    for (int r = 0; r < R; ++r)
      y[r] = EDGE && (last < 0 || last >= blocks || last == 0 && r == 0) ? Form::zero() : form.from(edge[r]);
    const Side* entering = reinterpret_cast<const Side*>(border_of(strip - 1)) + (s * SEGMENT + 1);
    Side* leaving = reinterpret_cast<Side*>(border_of(strip)) + (s * SEGMENT - lane);
    Side beside;
    if (enters && (!EDGE || s * SEGMENT < blocks)) beside = entering[-1];
    // Of Short, where it is the common case: what a step leaves in other registers is copied in every other one.
    constexpr int UNROLLED = EDGE || sizeof(typename Form::Word) > sizeof(uint32) ? 1 : 2;
    Pack *here = cost_place(s, 0), *beneath = place(lefts, 0);
#pragma unroll UNROLLED
    for (int k = 0; k < SEGMENT; ++k, here += PACKS * LANES, beneath += PACKS * LANES) {
      const int b = s * SEGMENT + k - lane;
      const bool valid = !EDGE || unsigned(b) < unsigned(blocks);
      typename Form::Word u[R];
#pragma unroll
      for (int r = 0; r < R; ++r) u[r] = from_lane_below(y[r]);
      if (enters && valid) {
#pragma unroll
        for (int r = 0; r < R; ++r) u[r] = EDGE && b == 0 && r == 0 ? Form::zero() : form.from(beside.v[r]);
        if (!EDGE || b + 1 < blocks) beside = *entering;
      }
      ++entering;
      Square d, up, left;
      read(here, d);
      cross<Form, EDGE, KEEP>(form, x, u, d, b, corner_column, part, up, left);
#pragma unroll
      for (int r = 0; r < R; ++r) y[r] = u[r];
      if (KEEP) {
        write(here, up);
        write(beneath, left);
      }
      if (leaves && valid) {
        Side side;
#pragma unroll
        for (int r = 0; r < R; ++r) side.v[r] = Form::to(u[r]);
        *leaving = side;
      }
      ++leaving;
    }
    if (KEEP) return true;
    if (!EDGE || unsigned(last + SEGMENT) < unsigned(blocks)) {
#pragma unroll
      for (int c = 0; c < C; ++c) form.compare(x[c]);
#pragma unroll
      for (int r = 0; r < R; ++r) form.compare(y[r]);
    }
    if (__any_sync(FULL_WARP, form.has_failed())) return false;
#pragma unroll
    for (int c = 0; c < C; ++c) v[c] = Form::settled(Form::to(x[c]));
#pragma unroll
    for (int r = 0; r < R; ++r) edge[r] = Form::settled(Form::to(y[r]));
    sum += part;
    return true;
  }

  __device__ __forceinline__ bool has_edge(int s) const { return is_first || s * SEGMENT < LANES || (s + 1) * SEGMENT >= blocks; }

  template <class Form, bool KEEP>
  __device__ __forceinline__ bool go(int s, LongWord (&v)[C], LongWord (&edge)[R], int64& sum) const {
    return has_edge(s) ? go<Form, true, KEEP>(s, v, edge, sum) : go<Form, false, KEEP>(s, v, edge, sum);
  }

  // A strip. Adds to the sum; false where no form does.
  __device__ __forceinline__ bool forward(int s, int64& sum) {
    select(s);
    LongWord v[C], edge[R];
    int64 part = 0;
    int from = segments;
    bool done = true;
#pragma unroll
    for (int c = 0; c < C; ++c) v[c] = Long::zero();
#pragma unroll
    for (int r = 0; r < R; ++r) edge[r] = Long::zero();
    fetch(0);
#pragma unroll 1
    for (int k = 0; k < segments && done; ++k) {
      if (problem.checkpoints) save(k, v, edge);
      if (k + 1 < segments) fetch(k + 1);
      else commit_copies();
      await_copies<1>();
      if (k < from && !go<Short, false>(k, v, edge, part)) from = k;
      if (k >= from) done = go<Long, false>(k, v, edge, part);
    }
    await_copies<0>();
    if (lane == 0 && problem.progress) long_from[s] = from;
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (begin + c > 0 && begin + c < m) part += Long::integer(v[c]);
    sum += part;
    __syncwarp();  // the border and checkpoints are read by other lanes than wrote them
    return done;
  }

  // ---- backward ----

  struct Visits {
    float below[C] = {}, pending = 0;  // what the row below sends to each column, and diagonally to the last one
    Flows leaving = {}, entering = {};  // to the lane on the left; from the strip on the right, a step ahead
  };

  template <bool EDGE, bool ENTROPY>
  __device__ __forceinline__ void sweep(int s, Visits& visits, float factor, double& entropy) const {
    const bool plain = fabs(factor) < infinity<float>();
    const Flows* in = flows + (strip + 1 & 1) * problem.span;
    Flows* to_left = flows + (strip & 1) * problem.span;
    float* to = out + int64((s * SEGMENT + SEGMENT - 1 - lane) * R) * problem.dense_row;
#pragma unroll 1
    for (int k = SEGMENT - 1; k >= 0; --k, to -= R * problem.dense_row) {
      const int b = s * SEGMENT + k - lane;
      Vector<float, R> right, over_right;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        right.v[r] = __shfl_down_sync(FULL_WARP, visits.leaving.left.v[r], 1);
        over_right.v[r] = __shfl_down_sync(FULL_WARP, visits.leaving.over.v[r], 1);
      }
      if (EDGE && unsigned(b) >= unsigned(blocks)) continue;
      if (lane == LANES - 1) {
        right = visits.entering.left;
        over_right = visits.entering.over;
        if (strip + 1 < strips && b > 0) visits.entering = in[b - 1];
      }
      Square up, left, result;
      read(cost_place(s, k), up);
      read(place(lefts, k), left);
      if (EDGE && b == blocks - 1 && strip + 1 == strips) {  // where all visits come from; rows below it let them pass
        const int last_column = m - 1 - begin, last_row = (n - 1) % R;
#pragma unroll
        for (int c = 0; c < C; ++c)
          if (c == last_column) visits.below[c] = 1.0f;
#pragma unroll
        for (int r = 0; r < R; ++r)
          if (r > last_row) {
#pragma unroll
            for (int c = 0; c < C; ++c) {
              up[r][c] = 1.0f;
              left[r][c] = 0.0f;
            }
          }
      }
#pragma unroll
      for (int r = R - 1; r >= 0; --r) {
        visits.below[C - 1] += r == R - 1 ? visits.pending : over_right.v[r + 1 < R ? r + 1 : r];
        float e = 0, over = 0;
#pragma unroll
        for (int c = C - 1; c >= 0; --c) {
          // What goes up, left and over is taken from the visits, so that none are lost or made by rounding.
          e = c == C - 1 ? visits.below[c] + right.v[r] : fmaf(e, left[r][c + 1 < C ? c + 1 : c], visits.below[c]);
          visits.below[c] = fmaf(e, up[r][c], over);
          over = max(fmaf(-e, left[r][c], fmaf(-e, up[r][c], e)), 0.0f);
          result[r][c] = e * factor;
          if (EDGE && !plain && e == 0) result[r][c] = 0;
          if (ENTROPY && b * R + r < n && begin + c < m && e > 0) entropy += double(e * entropy_of_shares(up[r][c], left[r][c]));
        }
        visits.leaving.left.v[r] = e * left[r][0];
        visits.leaving.over.v[r] = over;
      }
      visits.pending = over_right.v[0];
      store<EDGE>(to, b, result);
      if (lane == 0 && !is_first) to_left[b] = visits.leaving;
    }
  }

  // The results of a tile in block b, whose place is given.
  template <bool EDGE>
  __device__ __forceinline__ void store(float* to, int b, const Square& result) const {
    if (!EDGE || wide_out && (b + 1) * R <= n) {
#pragma unroll
      for (int k = 0; k < PACKS; ++k) {
        Pack pack;
#pragma unroll
        for (int i = 0; i < PACK; ++i) pack.v[i] = result[k / IN_ROW][k % IN_ROW * PACK + i];
        *reinterpret_cast<Pack*>(to + k / IN_ROW * problem.dense_row + k % IN_ROW * PACK) = pack;
      }
    } else {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < C; ++c)
          if (b * R + r < n && begin + c < m) to[r * problem.dense_row + c * problem.dense_column] = result[r][c];
    }
  }

  // Whether any visits enter a segment, from below or from the strip on the right.
  __device__ __forceinline__ bool has_visits(int s, const Visits& visits) const {
    bool found = visits.pending != 0;
#pragma unroll
    for (int c = 0; c < C; ++c) found |= visits.below[c] != 0;
#pragma unroll
    for (int r = 0; r < R; ++r) found |= lane > 0 && (visits.leaving.left.v[r] != 0 || visits.leaving.over.v[r] != 0);
    if (strip + 1 == strips) {
      const int b = s * SEGMENT + SEGMENT - 1 - (m - 1 - strip * WIDTH) / C;  // the lowest of the lane that has the end
      found |= b >= blocks - 1 && b - SEGMENT < blocks - 1;
    } else {
      const Flows* in = flows + (strip + 1 & 1) * problem.span;
      const int b = s * SEGMENT + lane - (LANES - 1);
      if (lane < SEGMENT && unsigned(b) < unsigned(blocks)) {
        const Flows flow = in[b];
#pragma unroll
        for (int r = 0; r < R; ++r) found |= flow.left.v[r] != 0 || flow.over.v[r] != 0;
      }
    }
    return __any_sync(FULL_WARP, found);
  }

  // A segment without visits: zeros, and nothing read.
  __device__ __forceinline__ void pass(int s, Visits& visits) const {
    Flows* to_left = flows + (strip & 1) * problem.span;
    const Square zeros = {};
#pragma unroll 1
    for (int k = SEGMENT - 1; k >= 0; --k) {
      const int b = s * SEGMENT + k - lane;
      if (unsigned(b) >= unsigned(blocks)) continue;
      store<true>(out + int64(b * R) * problem.dense_row, b, zeros);
      if (lane == 0 && !is_first) to_left[b] = Flows{};
    }
    visits.leaving = Flows{};
    if (lane == LANES - 1) {
      const int next = s * SEGMENT - LANES;  // the block that it comes to
      if (strip + 1 < strips && unsigned(next) < unsigned(blocks)) visits.entering = flows[(strip + 1 & 1) * problem.span + next];
    }
  }

  // Writes `factor` times the visits of the strip's cells; adds to the entropy of the transitions, weighted by visits.
  __device__ __forceinline__ void backward(int s, float factor, bool with_entropy, double& entropy) {
    select(s);
    out = static_cast<float*>(problem.grad_cost) + problem.dense_offset(item.pair) + begin * problem.dense_column;
    wide_out = are_wide(out, problem.dense_row, problem.dense_column);
    const int from = long_from[s];
    // Code without rare cases, for those segments in which all lanes have none.
    const bool common = fabs(factor) < infinity<float>() && __all_sync(FULL_WARP, wide_out);
    Visits visits;
    if (strip + 1 < strips && lane == LANES - 1) visits.entering = flows[(strip + 1 & 1) * problem.span + blocks - 1];
    int fetched = segments;  // the first segment whose costs are there or on their way
#pragma unroll 1
    for (int k = segments - 1; k >= 0; --k) {
      const bool visited = has_visits(k, visits);
      note(visited ? CHUNK_VISITED : CHUNK_PASSED);
      if (!visited) {
        pass(k, visits);
        __syncwarp();
        continue;
      }
      if (fetched > k) fetch(k);
      fetched = max(k - 1, 0);
      if (k > 0) fetch(k - 1);
      else commit_copies();
      await_copies<1>();
      note(CHUNK_RECOMPUTED);
      LongWord v[C], edge[R];
      load(k, v, edge);
      int64 none = 0;
      if (k < from) go<Short, true>(k, v, edge, none);
      else go<Long, true>(k, v, edge, none);
      if (with_entropy) sweep<true, true>(k, visits, factor, entropy);
      else if (common && !has_edge(k)) sweep<false, false>(k, visits, factor, entropy);
      else sweep<true, false>(k, visits, factor, entropy);
      __syncwarp();  // flows that lane 0 writes are read by others in the next strip
    }
    await_copies<0>();
    __syncwarp();
  }
};
